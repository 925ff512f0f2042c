"""Resolve names and expressions of Python files without importing the files.

Annotations such as ``NeuronParameter[Fraction]`` are evaluated with the real objects of a few modules (:data:`LIGHT`,
:data:`OWN`); any other class is represented by an empty placeholder. Nothing else is imported, and only the types in
:data:`CALLABLE` are called.
"""

import ast
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import annotated_types

from snnexp.spec import annotations
from snnexp.spec.annotations import OPERATIONS

LIGHT = ("typing", "typing_extensions", "collections.abc", "annotated_types", "dataclasses", "functools", "math")
OWN = ("snnexp.errors", "snnexp.text", "snnexp.spec")
"""Modules that may be imported."""
TYPES = {
    kind.__name__: kind for kind in (bool, bytes, complex, dict, float, frozenset, int, list, object, set, str, tuple)
}
"""The builtins that an expression may use."""
CALLABLE = (float, int, TypeVar, annotated_types.doc)
"""The callables that an expression may call, besides classes of annotated-types and :mod:`snnexp.spec.annotations`."""
OPAQUE = {"torch", "torchvision", "lightning", "numpy", "scipy", *sys.stdlib_module_names}
"""Packages whose source is not read."""


class UnreadableError(Exception):
    """Something cannot be determined from the source; the message says why."""


@dataclass(frozen=True)
class Object:
    """A name that is bound to an object of an importable module, or to the value of an expression."""

    value: Any


@dataclass(frozen=True)
class External:
    """A name of a package whose source is not read."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Module:
    """A name that is bound to a module."""

    name: str


class Source:
    """A module's file and the names that it binds.

    Args:
        name: name of the module.
        path: its file; None for a namespace package.
    """

    def __init__(self, name: str, path: Path | None) -> None:
        self.name, self.path = name, path
        self.package = name if path is None or path.stem == "__init__" else name.rpartition(".")[0]
        self.names: dict[str, ast.AST] = {}
        self.ambiguous: set[str] = set()
        """Names that are bound more than once, or by a statement that is not supported."""
        self.star_imports: list[str] = []
        if path is not None:
            content = path.read_bytes()
            tree = ast.parse(content, str(path))
            for node in tree.body:
                self._bind(node)
            if re.search(rb"^\s+global\s", content, re.M):
                found = [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
                self.ambiguous |= {name for node in found for name in node.names}

    def _bind(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            for inner in (*node.body, *node.orelse):
                self._bind(inner)
            return
        bound = dict(bindings(node))
        for name in bound_names(node) - bound.keys():
            self.ambiguous.add(name)
        for name, value in bound.items():
            if name == "*":
                assert isinstance(value, ast.ImportFrom)
                self.star_imports.append(self.absolute(value))
            elif name in self.names:
                self.ambiguous.add(name)
            self.names[name] = value

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the absolute name of the module that is imported from."""
        if not node.level:
            return node.module or ""
        parents = self.package.split(".")
        return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


@dataclass(frozen=True)
class Definition:
    """A class or function, and the module that defines it."""

    source: Source
    node: ast.ClassDef | ast.FunctionDef

    @property
    def target(self) -> str:
        return f"{self.source.name}.{self.node.name}"

    def __str__(self) -> str:
        return self.target


Binding = Object | External | Module | Definition


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that a supported statement binds, with the nodes that they are bound to."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name, node
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            whole = isinstance(node, ast.ImportFrom) or alias.asname
            yield alias.asname or (alias.name if whole else alias.name.partition(".")[0]), node
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and len(node.targets) == 1:
        yield node.targets[0].id, node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value


def bound_names(node: ast.AST) -> set[str]:
    """Return the names that a statement binds, or whose attributes it sets, outside nested definitions."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {name for name, _ in bindings(node)} - {"*"}
    found: set[str] = set()
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        found.add(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
        found.add(node.value.id)
    # only targets bind names; the assigned values are skipped
    parts = getattr(node, "targets", None) or (
        [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else None
    )
    if isinstance(node, ast.Expr):
        parts = []
    return found.union(*map(bound_names, ast.iter_child_nodes(node) if parts is None else parts))


def load(name: str) -> Source:
    """Parse the file of a module; the result is cached until the file changes.

    Raises:
        UnreadableError: there is no file, or it is not valid Python.
    """
    path = _file(name)
    try:
        signature = None if path is None else (path.stat().st_mtime_ns, path.stat().st_size)
        return _parsed(name, path, signature)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableError(f"{path} cannot be read") from error


@functools.lru_cache(maxsize=256)
def _parsed(name: str, path: Path | None, signature: tuple[int, int] | None) -> Source:
    return Source(name, path)


def _file(name: str) -> Path | None:
    """Find the file of a module as an import would, without importing its parents; None for a namespace package."""
    # files of this package do not move during the process
    return _file_of_own(name) if name.startswith("snnexp.") else _search(name)


def _search(name: str) -> Path | None:
    root, *rest = name.split(".")
    if not all(word.isidentifier() for word in (root, *rest)):
        raise UnreadableError(f"{name} is not a module name")
    try:
        spec = importlib.util.find_spec(root)
    except (ValueError, ImportError):
        spec = None
    if spec is None:
        raise UnreadableError(f"no module {root} is installed")
    path = spec.origin if spec.has_location else None
    folders = [*(spec.submodule_search_locations or ())]
    for index, word in enumerate(rest):
        for place in (os.path.join(folder, word) for folder in folders):
            inside = os.path.join(place, "__init__.py")
            if os.path.isfile(inside):
                path, folders = inside, [place]
                break
            if os.path.isfile(f"{place}.py"):
                path, folders = f"{place}.py", []
                break
            if os.path.isdir(place):
                path, folders = None, [place]
                break
        else:
            raise UnreadableError(f"no source file of {'.'.join([root, *rest[: index + 1]])} was found")
    if path is not None and not path.endswith(".py"):
        raise UnreadableError(f"no source file of {name} was found")
    return None if path is None else Path(path)


_file_of_own = functools.cache(_search)


def submodules(name: str) -> list[str]:
    """Return the names of the modules in the folder of a package."""
    path = _file(name)
    if path is None or path.stem != "__init__":
        return []
    return [f"{name}.{each.stem}" for each in sorted(path.parent.glob("*.py")) if each.stem != "__init__"]


def _is_module(name: str) -> bool:
    try:
        _file(name)
    except UnreadableError:
        return False
    return True


def may_import(module: str) -> bool:
    """Return True if a module may be imported while source is analyzed."""
    return module in LIGHT or any(f"{module}.".startswith(f"{own}.") for own in OWN)


def member(module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Binding:
    """Return what ``module.name`` is bound to.

    Raises:
        UnreadableError: the source does not determine it.
    """
    if may_import(module):
        if not _is_module(module) and module not in LIGHT:
            raise UnreadableError(f"there is no module {module}")
        try:
            whole = importlib.import_module(module)
        except ImportError as error:
            raise UnreadableError(f"no module {module} is installed") from error
        if hasattr(whole, name) and not name.startswith("_"):
            return Object(getattr(whole, name))
        if _is_module(f"{module}.{name}"):
            return Module(f"{module}.{name}")
        raise UnreadableError(f"{module} has no {name}")
    if module.partition(".")[0] in OPAQUE:
        return External(module, name)
    if (module, name) in seen:
        raise UnreadableError(f"{module}.{name} refers to itself")
    source = load(module)
    if name not in source.names and not source.star_imports and _is_module(f"{module}.{name}"):
        return Module(f"{module}.{name}")
    return resolve_name(source, name, seen | {(module, name)})


def resolve_name(source: Source, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Binding:
    """Return what a name is bound to in a module; raises like :func:`member`."""
    if name in source.ambiguous:
        raise UnreadableError(f"{source.name}.{name} is bound more than once, or in a branch")
    node = source.names.get(name)
    providers = [star for star in source.star_imports if name in load(star).names or load(star).star_imports]
    if providers and (node is not None or len(providers) > 1):
        raise UnreadableError(f"{source.name}.{name} may come from a star import")
    if node is None:
        if providers:
            return member(providers[0], name, seen)
        if "__getattr__" in source.names:
            raise UnreadableError(f"{source.name} defines a module __getattr__")
        if name in TYPES:
            return Object(TYPES[name])
        raise UnreadableError(f"{source.name} does not define {name}")
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return Definition(source, node)
    if isinstance(node, ast.ImportFrom):
        origin = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return member(source.absolute(node), origin, seen)
    if isinstance(node, ast.Import):
        return Module(next((alias.name for alias in node.names if alias.asname == name), name))
    if isinstance(node, ast.Name | ast.Attribute):
        alias = (source.name, f"{name} =")
        if alias in seen:
            raise UnreadableError(f"{source.name}.{name} refers to itself")
        return _expression(source, node, seen | {alias})
    return Object(evaluate(source, node))


def _expression(source: Source, node: ast.AST, seen: frozenset[tuple[str, str]] = frozenset()) -> Binding:
    if isinstance(node, ast.Name):
        return resolve_name(source, node.id, seen)
    if isinstance(node, ast.Attribute):
        owner = _expression(source, node.value, seen)
        if isinstance(owner, Module):
            return member(owner.name, node.attr, seen)
        if isinstance(owner, External):
            return External(str(owner), node.attr)
    raise UnreadableError(f"{source.name}: cannot resolve {ast.unparse(node)}")


def resolve(source: Source, node: ast.AST) -> Binding:
    """Return what a name or a dotted name is bound to in a module."""
    return _expression(source, node)


def evaluate(source: Source, node: ast.AST) -> Any:
    """Evaluate an expression of literals, types, and calls of :data:`CALLABLE`.

    Raises:
        UnreadableError: the expression contains anything else, or raises an error.
    """
    try:
        return _evaluate(source, node)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"an expression in {source.name} raises {type(error).__name__}") from error


def _evaluate(source: Source, node: ast.AST) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute():
            return _value(resolve(source, node))
        case ast.Tuple() | ast.List():
            values = [_evaluate(source, element) for element in node.elts]
            return tuple(values) if isinstance(node, ast.Tuple) else values
        case ast.Dict() if None not in node.keys:
            keys = [_evaluate(source, key) for key in node.keys if key is not None]
            return dict(zip(keys, (_evaluate(source, value) for value in node.values), strict=True))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(source, node.operand)
        case ast.BinOp(op=ast.BitOr()):
            return _evaluate(source, node.left) | _evaluate(source, node.right)
        case ast.BinOp() if type(node.op) in OPERATIONS:
            sides = [_evaluate(source, side) for side in (node.left, node.right)]
            if all(isinstance(side, int | float) for side in sides):
                return OPERATIONS[type(node.op)](*sides)
        case ast.BinOp(left=ast.Constant(value=2), op=ast.Pow(), right=ast.Constant(value=int(power))) if (
            0 <= power <= 64
        ):
            return 2**power
        case ast.Subscript():
            return _evaluate(source, node.value)[_evaluate(source, node.slice)]
        case ast.Call() if _may_call(function := _value(resolve(source, node.func))):
            named = {word.arg: _evaluate(source, word.value) for word in node.keywords if word.arg}
            return function(*(_evaluate(source, argument) for argument in node.args), **named)
    raise UnreadableError(f"an expression in {source.name} cannot be evaluated without running the module")


def _may_call(function: Any) -> bool:
    vocabulary = (annotated_types.__name__, annotations.__name__)
    return function in CALLABLE or (isinstance(function, type) and function.__module__ in vocabulary)


def _value(found: Binding) -> Any:
    if isinstance(found, Object):
        return found.value
    if isinstance(found, External):
        return placeholder(found.module, found.name)
    if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
        name = found.node.name
        others = (node for node in found.source.names.values() if isinstance(node, ast.ClassDef))
        first = next((node.name for node in others if name in [ast.unparse(base) for base in node.bases]), name)
        return placeholder(found.source.name, name, first)
    raise UnreadableError(f"{found} is not a value")


@functools.cache
def placeholder(module: str, name: str, example: str = "") -> type:
    """Return an empty class that represents a class of the source; ``example`` names a subclass for messages."""
    return type(name, (), {"__module__": module, "_example": example})

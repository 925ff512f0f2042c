"""Python files as they are written: what their names mean, told without importing any of them.

Only light modules of Python and of this package are imported for real (:data:`LIGHT`), so that an annotation such as
``NeuronParameter[Fraction]`` becomes the object that it is. A class that is only read is represented by an empty one.
"""

import __future__

import ast
import builtins
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIGHT = ("typing", "typing_extensions", "collections.abc", "annotated_types", "dataclasses", "functools", "math")
OWN = ("snnexp.errors", "snnexp.text", "snnexp.spec")
OPAQUE = {"torch", "torchvision", "lightning", "numpy", "scipy", *sys.stdlib_module_names}
"""Packages whose files are not read: nothing of a part's own stands there."""


class UnreadableError(Exception):
    """Something cannot be told from the source alone; the message says what."""


@dataclass(frozen=True)
class Object:
    """A name that means a real object."""

    value: Any


@dataclass(frozen=True)
class Outside:
    """A name of a package that is not read."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Module:
    """A name that means a module."""

    name: str


class Source:
    """A module's file.

    Args:
        name: of the module.
        path: of the file; None for a folder without one.
    """

    def __init__(self, name: str, path: Path | None) -> None:
        self.name, self.path = name, path
        self.package = name if path is None or path.stem == "__init__" else name.rpartition(".")[0]
        self.names: dict[str, ast.AST] = {}
        self.unsure: set[str] = set()
        """Names that are bound in a branch, perhaps."""
        self.stars: list[str] = []
        if path is not None:
            tree = ast.parse(path.read_bytes(), str(path))
            for node in tree.body:
                self._bind(node)

    def _bind(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            for inner in node.body:
                self._bind(inner)
            return
        bound = [*_bound_by(node)]
        if not bound:
            self.unsure |= {name for inner in ast.walk(node) for name, _ in _bound_by(inner)}
        for name, value in bound:
            if name == "*":
                assert isinstance(value, ast.ImportFrom)
                self.stars.append(self.absolute(value))
            else:
                self.names[name] = value
                self.unsure.discard(name)

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import is from."""
        if not node.level:
            return node.module or ""
        parents = self.package.split(".")
        return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


@dataclass(frozen=True)
class Definition:
    """A class or function, and where it is written."""

    source: Source
    node: ast.ClassDef | ast.FunctionDef

    @property
    def target(self) -> str:
        return f"{self.source.name}.{self.node.name}"

    def __str__(self) -> str:
        return self.target


Meaning = Object | Outside | Module | Definition


def _bound_by(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name, node
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            whole = isinstance(node, ast.ImportFrom) or alias.asname
            yield alias.asname or (alias.name if whole else alias.name.partition(".")[0]), node
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value


def load(name: str) -> Source:
    """The file of a module.

    Raises:
        UnreadableError: there is none, or it is no Python.
    """
    path = _file(name)
    try:
        signature = None if path is None else (path.stat().st_mtime_ns, path.stat().st_size)
        return _parsed(name, path, signature)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{path} cannot be read") from error


@functools.lru_cache(maxsize=256)
def _parsed(name: str, path: Path | None, signature: tuple[int, int] | None) -> Source:
    return Source(name, path)


def _file(name: str) -> Path | None:
    """Where a module is written, found as an import would find it; no parent of it is imported."""
    return _found(name, tuple(sys.path))


@functools.lru_cache(maxsize=1024)
def _found(name: str, places: tuple[str, ...]) -> Path | None:
    root, *rest = name.split(".")
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
            raise UnreadableError(f"there is no source of {'.'.join([root, *rest[: index + 1]])}")
    if path is not None and not path.endswith(".py"):
        raise UnreadableError(f"there is no source of {name}")
    return None if path is None else Path(path)


def _is_module(name: str) -> bool:
    try:
        _file(name)
    except UnreadableError:
        return False
    return True


def member(module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Meaning:
    """What ``module.name`` means.

    Raises:
        UnreadableError: its source does not say.
    """
    if module in LIGHT or any(f"{module}.".startswith(f"{own}.") for own in OWN):
        whole = importlib.import_module(module)
        return Object(getattr(whole, name)) if hasattr(whole, name) else Module(f"{module}.{name}")
    if module.partition(".")[0] in OPAQUE:
        return Outside(module, name)
    if (module, name) in seen:
        raise UnreadableError(f"{module}.{name} is defined by itself")
    seen |= {(module, name)}
    source = load(module)
    if name not in source.names and name not in source.unsure:
        for star in source.stars:
            try:
                return member(star, name, seen)
            except UnreadableError:
                continue
        if _is_module(f"{module}.{name}"):
            return Module(f"{module}.{name}")
    return meaning(source, name, seen)


def meaning(source: Source, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Meaning:
    """What a name means in a module; errors as of :func:`member`."""
    if name in source.unsure:
        raise UnreadableError(f"{source.name}.{name} is bound in a branch")
    node = source.names.get(name)
    if node is None:
        if source.stars:
            return member(source.stars[0], name, seen)
        if "__getattr__" in source.names:
            raise UnreadableError(f"{source.name} makes its names when they are asked for")
        if hasattr(builtins, name):
            return Object(getattr(builtins, name))
        raise UnreadableError(f"{source.name} has no {name}")
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
            raise UnreadableError(f"{source.name}.{name} is defined by itself")
        return _expression(source, node, seen | {alias})
    return Object(evaluate(source, node))


def _expression(source: Source, node: ast.AST, seen: frozenset[tuple[str, str]] = frozenset()) -> Meaning:
    if isinstance(node, ast.Name):
        return meaning(source, node.id, seen)
    if isinstance(node, ast.Attribute):
        owner = _expression(source, node.value, seen)
        if isinstance(owner, Module):
            return member(owner.name, node.attr, seen)
        if isinstance(owner, Outside):
            return Outside(str(owner), node.attr)
        if isinstance(owner, Object):
            return Object(getattr(owner.value, node.attr))
    raise UnreadableError(f"{source.name} does not say what {ast.unparse(node)} is")


def resolve(source: Source, node: ast.AST) -> Meaning:
    """What a name, perhaps with dots, means in a module."""
    return _expression(source, node)


def evaluate(source: Source, node: ast.AST) -> Any:
    """The value of an expression of literals, names, and calls of light things; a class that is read is an empty one.

    Raises:
        UnreadableError: it is more than that.
    """
    try:
        return _evaluate(source, node)
    except UnreadableError:
        raise
    except Exception as error:
        # what it would raise when it is run
        raise UnreadableError(f"{source.name}: {ast.unparse(node)} raises {type(error).__name__}") from error


def _evaluate(source: Source, node: ast.AST) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute():
            return _value(resolve(source, node))
        case ast.Tuple() | ast.List():
            found = [_evaluate(source, each) for each in node.elts]
            return tuple(found) if isinstance(node, ast.Tuple) else found
        case ast.Dict() if None not in node.keys:
            keys = [_evaluate(source, key) for key in node.keys if key is not None]
            return dict(zip(keys, (_evaluate(source, value) for value in node.values), strict=True))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(source, node.operand)
        case ast.BinOp():
            return OPERATIONS[type(node.op)](_evaluate(source, node.left), _evaluate(source, node.right))
        case ast.Subscript():
            return _evaluate(source, node.value)[_evaluate(source, node.slice)]
        case ast.Call():
            function = resolve(source, node.func)
            if isinstance(function, Object) and callable(function.value):
                named = {word.arg: _evaluate(source, word.value) for word in node.keywords if word.arg}
                return function.value(*(_evaluate(source, argument) for argument in node.args), **named)
    raise UnreadableError(f"{source.name}: {ast.unparse(node)} is known only when it runs")


OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitOr: lambda left, right: left | right,
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}


def _value(found: Meaning) -> Any:
    if isinstance(found, Object):
        return found.value
    if isinstance(found, Outside):
        return stand_in(found.module, found.name)
    if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
        name = found.node.name
        others = (node for node in found.source.names.values() if isinstance(node, ast.ClassDef))
        first = next((node.name for node in others if name in [ast.unparse(base) for base in node.bases]), name)
        return stand_in(found.source.name, name, first)
    raise UnreadableError(f"{found} is no value")


@functools.cache
def stand_in(module: str, name: str, example: str = "") -> type:
    """An empty class in the place of one that is only read; ``example`` derives from it."""
    return type(name, (), {"__module__": module, "_example": example})


def compiled(definition: Definition, allowed: Callable[[Source], bool]) -> Callable[..., Any]:
    """A function whose source needs literals, light modules and other such functions alone.

    Raises:
        UnreadableError: it needs more.
    """
    return _compiled(definition, {}, allowed)


def _compiled(definition: Definition, made: dict[str, Any], allowed: Callable[[Source], bool]) -> Callable[..., Any]:
    source, node = definition.source, definition.node
    assert isinstance(node, ast.FunctionDef)
    if not allowed(source):
        raise UnreadableError(f"{definition} is not of an allowed package")
    plain = ast.FunctionDef(**{**vars(node), "decorator_list": [], "returns": None})
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += filter(None, [node.args.vararg, node.args.kwarg])
    own = {argument.arg for argument in arguments}
    own |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load)}
    typed: list[ast.arg | ast.AnnAssign] = [*arguments]
    typed += [each for each in ast.walk(node) if isinstance(each, ast.AnnAssign)]
    annotations = {id(inner) for each in typed for inner in _walked(each.annotation)}
    annotations |= {id(inner) for inner in _walked(node.returns)}
    used = {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and id(each) not in annotations
    }
    namespace: dict[str, Any] = {"__name__": source.name, "__builtins__": builtins}
    made[definition.target] = None
    for name in used - own - vars(builtins).keys():
        found = meaning(source, name)
        if isinstance(found, Definition) and isinstance(found.node, ast.FunctionDef):
            if found.target not in made:
                _compiled(found, made, allowed)
            namespace[name] = lambda *given, _of=found.target, **named: made[_of](*given, **named)
        elif isinstance(found, Object):
            namespace[name] = found.value
        else:
            raise UnreadableError(f"{definition} needs {name}")
    # annotations stay texts
    code = compile(ast.Module([plain], []), str(source.path), "exec", __future__.annotations.compiler_flag)
    exec(code, namespace)
    made[definition.target] = namespace[node.name]
    return made[definition.target]  # type: ignore[no-any-return]


def _walked(node: ast.AST | None) -> Iterator[ast.AST]:
    return iter(()) if node is None else ast.walk(node)

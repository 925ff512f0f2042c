"""What a part is, read from the source of its class or function: its arguments, and what others need to know of it.

Nothing is imported. What cannot be told from the source is never refused: the constructor decides, and
:attr:`Spec.unread` says why.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from snnexp.spec import source as sources
from snnexp.spec import values
from snnexp.spec.annotations import AtLeast, AtMost
from snnexp.spec.source import Definition, Meaning, Object, Outside, UnreadableError
from snnexp.spec.values import Domain

MISSING = object()
"""The value of a default that is known only when it runs, or of what is not there."""


@dataclass(frozen=True)
class Argument:
    """An argument of a part.

    Args:
        name: its name.
        domain: what it may be; None for anything.
        default: as it is written; None where the argument must be given.
        value: the default, where it can be told.
        stackable: whether members of a stack may differ in it.
        relations: what it owes other arguments.
        kind: the class of an object that may stand there, ``module.name``.
        doc: what the docstring says of it.
    """

    name: str
    domain: Domain | None = None
    default: str | None = None
    value: Any = MISSING
    stackable: bool = False
    relations: tuple[AtMost | AtLeast, ...] = ()
    kind: str | None = None
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is None


@dataclass(frozen=True)
class Spec:
    """A part as its source describes it.

    Args:
        target: what a config names it by.
        arguments: by name.
        takes_all: whether it takes any other key too.
        unread: why the source does not say what it takes; "" where it does.
        doc: the first line of its docstring.
    """

    target: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    takes_all: bool = False
    unread: str = ""
    doc: str = ""
    definition: Definition | None = None
    facts: Mapping[str, Any] | None = None
    """Of a function, what its ``@part(...)`` says."""

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def bases(self) -> tuple[str, ...]:
        """The classes that it derives from, itself included, by the modules that define them."""
        found = self.definition
        if found is None or not isinstance(found.node, ast.ClassDef):
            return ()
        return tuple(str(base) for base in mro(found))

    def fact(self, name: str) -> Any:
        """A class attribute, or what ``@part`` says by that name; MISSING where the source does not tell."""
        if self.facts is not None:
            return self.facts.get(name, MISSING)
        found = self.definition
        if found is None or not isinstance(found.node, ast.ClassDef):
            return MISSING
        for base in mro(found):
            if isinstance(base, Outside):
                return MISSING
            if (node := _assigned(base.node, name)) is not None:
                try:
                    return sources.evaluate(base.source, node)
                except UnreadableError:
                    return MISSING
        return MISSING

    def own(self, name: str) -> Any:
        """As :meth:`fact`, where the class itself says it; it may say so of no more than its own code."""
        found = self.definition
        is_own = found is None or isinstance(found.node, ast.FunctionDef) or _assigned(found.node, name) is not None
        return self.fact(name) if is_own else MISSING

    def rule(self, name: str, allowed: Callable[[sources.Source], bool]) -> Callable[..., Any] | None:
        """A static method of its class, to be called; None where there is none, or its source is not enough."""
        found = self.definition
        if found is None or not isinstance(found.node, ast.ClassDef):
            return None
        for base in mro(found):
            if isinstance(base, Outside):
                return None
            for node in base.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    static = [ast.unparse(each) for each in node.decorator_list] == ["staticmethod"]
                    try:
                        return sources.compiled(Definition(base.source, node), allowed) if static else None
                    except UnreadableError:
                        return None
        return None


def read(target: str) -> Spec:
    """The part that a config names by ``target``."""
    module, _, name = target.rpartition(".")
    try:
        found = sources.member(module, name)
        if not isinstance(found, Definition):
            raise UnreadableError(f"{target} is neither a class nor a function in a file of its own")
        return _spec(target, found)
    except UnreadableError as error:
        return Spec(target, takes_all=True, unread=str(error))


def _spec(target: str, found: Definition) -> Spec:
    doc = (ast.get_docstring(found.node) or "").partition("\n")[0]
    try:
        if isinstance(found.node, ast.ClassDef):
            arguments, takes_all = _of_class(found)
            return Spec(target, arguments, takes_all, doc=doc, definition=found)
        facts = _marked(found)
        arguments, takes_all = _of_function(found, found.node, 0, ast.get_docstring(found.node) or "")
        return Spec(target, arguments, takes_all, doc=doc, definition=found, facts=facts)
    except UnreadableError as error:
        return Spec(target, takes_all=True, unread=str(error), doc=doc, definition=found)


def _marked(found: Definition) -> dict[str, Any] | None:
    """What the decorators of a function say of it; others than ours could make anything of it."""
    facts: dict[str, Any] | None = None
    for node in found.node.decorator_list:
        call = node if isinstance(node, ast.Call) else None
        meaning = sources.resolve(found.source, call.func if call else node)
        marks = meaning.value if isinstance(meaning, Object) else None
        if getattr(marks, "__name__", "") == "part" and call is not None:
            facts = {word.arg: sources.evaluate(found.source, word.value) for word in call.keywords if word.arg}
        elif marks not in (functools.cache, functools.lru_cache) and getattr(marks, "__name__", "") != "checked":
            raise UnreadableError(f"{found} is what {ast.unparse(node)} makes of it")
    return facts


@functools.lru_cache(maxsize=256)
def mro(found: Definition) -> tuple[Definition | Outside, ...]:
    """A class and its bases, in the order in which Python looks for names; what is not read ends each line.

    Raises:
        UnreadableError: a base is not known.
    """
    assert isinstance(found.node, ast.ClassDef)
    lines: list[list[Definition | Outside]] = []
    for node in found.node.bases:
        # Generic[T] and the like
        inner = node.value if isinstance(node, ast.Subscript) else node
        base: Meaning = sources.resolve(found.source, inner)
        if isinstance(base, Definition) and isinstance(base.node, ast.ClassDef):
            lines.append([*mro(base)])
        elif isinstance(base, Outside):
            lines.append([base])
        elif not isinstance(base, Object):
            raise UnreadableError(f"{found.node.name} derives from {ast.unparse(node)}, which is no class")
    return (found, *_merged([*lines, [line[0] for line in lines]]))


def _merged(lines: list[list[Definition | Outside]]) -> Iterator[Definition | Outside]:
    while lines := [line for line in lines if line]:
        for line in lines:
            if not any(line[0] in other[1:] for other in lines):
                first = line[0]
                break
        else:
            raise UnreadableError("its bases have no order")
        yield first
        lines = [line[1:] if line[0] == first else line for line in lines]


def _assigned(node: ast.AST, name: str) -> ast.AST | None:
    """What the body of a class assigns to a name."""
    for each in reversed(getattr(node, "body", [])):
        for bound, value in sources._bound_by(each):
            if bound == name and isinstance(each, ast.Assign | ast.AnnAssign):
                return value
    return None


def _of_class(found: Definition) -> tuple[dict[str, Argument], bool]:
    line = mro(found)
    for index, base in enumerate(line):
        if isinstance(base, Outside):
            raise UnreadableError(f"its constructor is that of {base}")
        assert isinstance(base.node, ast.ClassDef)
        if base.node.keywords:
            raise UnreadableError(f"{base} has a metaclass or other keywords")
        dataclass_ = _is_dataclass(base)
        methods = {node.name: node for node in base.node.body if isinstance(node, ast.FunctionDef)}
        if "__new__" in methods or _in_branch(base.node):
            raise UnreadableError(f"{base} makes its constructor when it runs")
        if "__init__" in methods:
            doc = ast.get_docstring(base.node) or ""
            arguments, takes_all = _of_function(base, methods["__init__"], 1, doc)
            return _passed_on(methods["__init__"], line[index + 1 :], arguments) if takes_all else (arguments, False)
        if dataclass_:
            return _fields(line[index:]), False
    raise UnreadableError(f"{found} has no constructor")


def _in_branch(node: ast.ClassDef) -> bool:
    branches = [
        each for each in node.body if not isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    inner = [each for branch in branches for each in ast.walk(branch)]
    return any(isinstance(each, ast.FunctionDef) and each.name == "__init__" for each in inner)


def _is_dataclass(found: Definition) -> bool:
    for node in found.node.decorator_list:
        meaning = sources.resolve(found.source, node.func if isinstance(node, ast.Call) else node)
        if not (isinstance(meaning, Object) and getattr(meaning.value, "__name__", "") in ("dataclass", "final")):
            raise UnreadableError(f"{found} is what {ast.unparse(node)} makes of it")
        if isinstance(node, ast.Call) and any(word.arg == "init" for word in node.keywords):
            raise UnreadableError(f"{found} is a dataclass without a constructor")
    return bool(found.node.decorator_list)


def _fields(line: tuple[Definition | Outside, ...]) -> dict[str, Argument]:
    found: dict[str, Argument] = {}
    for base in reversed(line):
        if not isinstance(base, Definition) or not _is_dataclass(base):
            continue
        docs = _documented(ast.get_docstring(base.node) or "")
        for node in base.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if "ClassVar" in ast.unparse(node.annotation):
                    continue
                default = _default_of_field(base, node.value)
                name = node.target.id
                found[name] = _argument(base, name, node.annotation, default, docs.get(name, ""))
    return found


def _default_of_field(found: Definition, node: ast.expr | None) -> ast.expr | None:
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "field":
        words = {word.arg: word.value for word in node.keywords}
        return words.get("default", words.get("default_factory"))
    return node


def _of_function(found: Definition, node: ast.FunctionDef, skip: int, doc: str) -> tuple[dict[str, Argument], bool]:
    positional = [*node.args.posonlyargs, *node.args.args][skip:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    defaults += node.args.defaults
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    docs = _documented(doc)
    arguments = {
        each.arg: _argument(found, each.arg, each.annotation, default, docs.get(each.arg, ""))
        for each, default in pairs
    }
    return arguments, node.args.kwarg is not None


def _passed_on(
    node: ast.FunctionDef, line: tuple[Definition | Outside, ...], own: dict[str, Argument]
) -> tuple[dict[str, Argument], bool]:
    """The arguments of a constructor with ``**kwargs``: those of the next one too, where it gets them."""
    assert node.args.kwarg is not None
    for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
        passed = any(word.arg is None and ast.unparse(word.value) == node.args.kwarg.arg for word in call.keywords)
        if passed and ast.unparse(call.func) == "super().__init__" and line and isinstance(line[0], Definition):
            arguments, takes_all = _of_class(line[0])
            taken = [*arguments][: len(call.args)] + [word.arg for word in call.keywords if word.arg]
            return {**{name: each for name, each in arguments.items() if name not in taken}, **own}, takes_all
    return own, True


def _argument(
    found: Definition, name: str, annotation: ast.expr | None, default: ast.expr | None, doc: str
) -> Argument:
    value = MISSING
    if default is not None:
        with suppress(UnreadableError):
            value = sources.evaluate(found.source, default)
    written = None if default is None else ast.unparse(default)
    try:
        if annotation is None:
            raise UnreadableError
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        kind = sources.evaluate(found.source, annotation)
    except (UnreadableError, SyntaxError):
        return Argument(name, None, written, value, doc=doc)
    return Argument(
        name,
        values.or_null(values.domain(kind), value),
        written,
        value,
        values.is_stackable(kind),
        tuple(values.relations(kind)),
        _kind(values.domain(kind)),
        doc,
    )


def _kind(domain: Domain | None) -> str | None:
    match domain:
        case values.Part():
            return f"{domain.kind.__module__}.{domain.kind.__qualname__}"
        case values.Parameter():
            return _kind(domain.part)
        case values.Either():
            return _kind(domain.first) or _kind(domain.second)
    return None


def _documented(doc: str) -> dict[str, str]:
    """What the section Args of a docstring says of each argument."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.M | re.S)
    if section is None:
        return {}
    found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", section[1], re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}

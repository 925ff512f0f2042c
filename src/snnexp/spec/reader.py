"""Read the specification of a part from the source of its class or function: its arguments and facts.

Nothing is imported. What cannot be determined from the source is not checked before the constructor runs;
:attr:`Spec.unread` gives the reason.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_origin

from snnexp.spec import source as sources
from snnexp.spec import values
from snnexp.spec.annotations import AtLeast, AtMost
from snnexp.spec.classes import MISSING, Class, attribute, mro
from snnexp.spec.compiled import compiled
from snnexp.spec.source import Definition, External, Object, Source, UnreadableError
from snnexp.spec.values import Domain


@dataclass(frozen=True)
class Argument:
    """An argument of a part.

    Args:
        name: its name.
        domain: the values that it accepts; None for any.
        default: source code of the default; None for a required argument.
        value: value of the default, or MISSING if it cannot be evaluated.
        stackable: whether it may differ between the members of a stack.
        relations: bounds by other arguments.
        kinds: the classes of the objects that it accepts, as ``module.name``.
        holds_parts: whether it may contain parts at any depth.
        doc: its description in the docstring.
    """

    name: str
    domain: Domain | None = None
    default: str | None = None
    value: Any = MISSING
    stackable: bool = False
    relations: tuple[AtMost | AtLeast, ...] = ()
    kinds: tuple[str, ...] = ()
    holds_parts: bool = False
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is None


@dataclass(frozen=True)
class Spec:
    """A part as its source describes it.

    Args:
        target: the ``_target_`` that names it in a config.
        arguments: its arguments, by name.
        takes_all: whether it accepts any other key too.
        unread: why its arguments cannot be read from the source; "" if they can.
        doc: first line of its docstring.
        classes: the class and its bases in method resolution order.
        facts: the arguments of ``@part(...)``; None for a class and for a function without the decorator.
        definition: ``module.name`` of its definition.
    """

    target: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    takes_all: bool = False
    unread: str = ""
    doc: str = ""
    classes: Sequence[Class] = ()
    facts: Mapping[str, Any] | None = None
    definition: str = ""

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def bases(self) -> tuple[str, ...]:
        """The class and its bases, as ``module.name`` of their definitions."""
        return tuple(map(str, self.classes))

    def fact(self, name: str) -> Any:
        """Return a class attribute or an argument of ``@part``; MISSING if the source does not determine it."""
        if self.facts is not None:
            return self.facts.get(name, MISSING)
        if name in self.arguments:
            return MISSING
        for each in self.classes:
            if isinstance(each, External):
                return MISSING
            if (found := attribute(each, name)) is not None:
                return found
        return MISSING

    def own_fact(self, name: str) -> Any:
        """Return :meth:`fact` if the class defines the attribute itself, MISSING if it inherits it."""
        if self.facts is not None:
            return self.facts.get(name, MISSING)
        first = self.classes[0] if self.classes else None
        found = attribute(first, name) if isinstance(first, Definition) else None
        return MISSING if found is None else found

    def rule(self, name: str, allowed: Callable[[Source], bool]) -> Callable[..., Any] | None:
        """Return a static method of the class as a function, or None if there is none.

        Raises:
            UnreadableError: it cannot be compiled from its source alone.
        """
        for each in self.classes:
            if isinstance(each, External):
                return None
            for node in each.node.body:
                if name in sources.bound_names(node):
                    static = isinstance(node, ast.FunctionDef) and list(map(ast.unparse, node.decorator_list))
                    if not isinstance(node, ast.FunctionDef) or static != ["staticmethod"]:
                        raise UnreadableError(f"{name} of {each} is not a static method")
                    return compiled(Definition(each.source, node), allowed)
        return None


def read(target: str) -> Spec:
    """Read the specification of the part that a config names by ``target``."""
    module, _, name = target.rpartition(".")
    try:
        found = sources.member(module, name)
        if not isinstance(found, Definition):
            raise UnreadableError(f"{target} is not a class or function of a Python file")
        return _spec(target, found)
    except UnreadableError as error:
        return Spec(target, takes_all=True, unread=str(error))
    except Exception as error:
        # unusual source code is not an error of the config
        return Spec(target, takes_all=True, unread=f"its source cannot be analyzed ({type(error).__name__})")


def _spec(target: str, found: Definition) -> Spec:
    doc = ast.get_docstring(found.node) or ""
    first = doc.partition("\n")[0]
    if isinstance(found.node, ast.FunctionDef):
        facts = _part_facts(found)
        arguments, takes_all = _function_arguments(found)
        return Spec(target, arguments, takes_all, doc=first, facts=facts, definition=found.target)
    classes = mro(found)
    try:
        arguments, takes_all = _constructor_arguments(classes)
    except UnreadableError as error:
        return Spec(target, {}, True, str(error), first, classes, definition=found.target)
    return Spec(target, arguments, takes_all, "", first, classes, definition=found.target)


def _part_facts(found: Definition) -> dict[str, Any] | None:
    """Return the facts of ``@part``, or None without it; raise UnreadableError for an unknown decorator."""
    facts: dict[str, Any] | None = None
    for node in found.node.decorator_list:
        call = node if isinstance(node, ast.Call) else None
        binding = sources.resolve(found.source, call.func if call else node)
        decorator = binding.value if isinstance(binding, Object) else None
        if getattr(decorator, "__name__", "") == "part" and call is not None:
            facts = {word.arg: sources.evaluate(found.source, word.value) for word in call.keywords if word.arg}
        elif getattr(decorator, "__name__", "") not in ("cache", "lru_cache", "checked"):
            raise UnreadableError(f"{found} has an unknown decorator")
    return facts


def _constructor_arguments(classes: Sequence[Class]) -> tuple[dict[str, Argument], bool]:
    """Return the arguments of the first constructor in the MRO, and whether it accepts any other."""
    for each in classes:
        if isinstance(each, Definition):
            _require_static_constructor(each)
    for index, each in enumerate(classes):
        if isinstance(each, External):
            raise UnreadableError(f"its constructor is inherited from {each}")
        assert isinstance(each.node, ast.ClassDef)
        methods = {node.name: node for node in each.node.body if isinstance(node, ast.FunctionDef)}
        if "__init__" in methods:
            init = methods["__init__"]
            arguments, takes_all = _signature_arguments(each, init, 1, ast.get_docstring(each.node) or "")
            return _with_forwarded(init, classes[index + 1 :], arguments) if takes_all else (arguments, False)
        if _is_dataclass(each):
            return _dataclass_arguments(classes[index:]), False
    raise UnreadableError("it has no constructor")


def _require_static_constructor(found: Definition) -> None:
    """Raise UnreadableError for a class whose constructor may differ from its source."""
    assert isinstance(found.node, ast.ClassDef)
    if found.node.name in found.source.ambiguous or found.node.keywords:
        raise UnreadableError(f"{found} has a metaclass or class keywords, or is modified after its definition")
    _is_dataclass(found)
    for node in found.node.body:
        for name in sources.bound_names(node) & {"__init__", "__new__", "__init_subclass__"}:
            decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else [None]
            known = [_decorator_name(found.source, decorator) in ("checked", "override") for decorator in decorators]
            if name != "__init__" or not all(known):
                raise UnreadableError(f"{found} creates its constructor at runtime")


def _decorator_name(source: Source, node: ast.AST | None) -> str:
    """Return the name of a decorator of an importable module; "" for any other node."""
    if node is None:
        return ""
    binding = sources.resolve(source, node.func if isinstance(node, ast.Call) else node)
    return getattr(binding.value, "__name__", "") if isinstance(binding, Object) else ""


def _is_dataclass(found: Definition) -> bool:
    names = [_decorator_name(found.source, node) for node in found.node.decorator_list]
    calls = [node for node in found.node.decorator_list if isinstance(node, ast.Call)]
    if {*names} - {"dataclass", "final"} or any(word.arg == "init" for call in calls for word in call.keywords):
        raise UnreadableError(f"{found} has an unknown decorator")
    return "dataclass" in names


def _dataclass_arguments(classes: Sequence[Class]) -> dict[str, Argument]:
    found: dict[str, Argument] = {}
    for each in reversed(classes):
        if isinstance(each, External):
            raise UnreadableError(f"{each} may define fields")
        if not _is_dataclass(each):
            continue
        docs = _argument_docs(ast.get_docstring(each.node) or "")
        for node in each.node.body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            name, default = node.target.id, _field_default(node.value)
            if default is not MISSING and not _is_not_field(each, node.annotation):
                found[name] = _argument(each, name, node.annotation, default, docs.get(name, ""))
    return found


def _is_not_field(found: Definition, annotation: ast.expr) -> bool:
    text = ast.unparse(annotation)
    if "ClassVar" in text or "KW_ONLY" in text:
        return True
    try:
        kind = sources.evaluate(found.source, annotation)
    except UnreadableError:
        return False
    return kind is ClassVar or get_origin(kind) is ClassVar or getattr(kind, "__name__", "") == "KW_ONLY"


def _field_default(node: ast.expr | None) -> Any:
    """Return the default of a field; None for a required one, MISSING for one that is not in the constructor."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "field":
        words = {word.arg: word.value for word in node.keywords}
        if "init" in words:
            return MISSING
        return words.get("default", words.get("default_factory"))
    return node


def _signature_arguments(
    found: Definition, node: ast.FunctionDef, skip: int, doc: str
) -> tuple[dict[str, Argument], bool]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    defaults += node.args.defaults
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    docs = _argument_docs(doc)
    arguments = {
        each.arg: _argument(found, each.arg, each.annotation, default, docs.get(each.arg, ""))
        for each, default in pairs
    }
    return arguments, node.args.kwarg is not None


def _function_arguments(found: Definition) -> tuple[dict[str, Argument], bool]:
    """Return the arguments of a function, including those of the function that it forwards ``**kwargs`` to."""
    assert isinstance(found.node, ast.FunctionDef)
    arguments, takes_all = _signature_arguments(found, found.node, 0, ast.get_docstring(found.node) or "")
    call = _forwarding_call(found.node) if takes_all else None
    if call is None:
        return arguments, takes_all
    other = sources.resolve(found.source, call.func)
    if not isinstance(other, Definition) or not isinstance(other.node, ast.FunctionDef):
        return arguments, True
    _part_facts(other)
    others, takes_all = _function_arguments(other)
    return arguments | {
        name: each for name, each in _remaining(others, call).items() if name not in arguments
    }, takes_all


def _with_forwarded(
    node: ast.FunctionDef, classes: Sequence[Class], own: dict[str, Argument]
) -> tuple[dict[str, Argument], bool]:
    """Add the arguments of the next constructor, if ``**kwargs`` are only forwarded to ``super().__init__``."""
    call = _forwarding_call(node)
    if call is None or ast.unparse(call.func) != "super().__init__":
        return own, True
    others, takes_all = _constructor_arguments(classes)
    return {**_remaining(others, call), **own}, takes_all


def _forwarding_call(node: ast.FunctionDef) -> ast.Call | None:
    """Return the call that a function forwards its ``**kwargs`` to, if that is their only use."""
    assert node.args.kwarg is not None
    used = [each for each in ast.walk(node) if isinstance(each, ast.Name) and each.id == node.args.kwarg.arg]
    for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
        passed = any(word.arg is None and word.value in used for word in call.keywords)
        if passed and len(used) == 1 and not any(isinstance(each, ast.Starred) for each in call.args):
            return call
    return None


def _remaining(arguments: Mapping[str, Argument], call: ast.Call) -> dict[str, Argument]:
    """Return the arguments that a call does not pass."""
    given = [*arguments][: len(call.args)] + [word.arg for word in call.keywords if word.arg]
    return {name: each for name, each in arguments.items() if name not in given}


def _argument(
    found: Definition, name: str, annotation: ast.expr | None, default: ast.expr | None, doc: str
) -> Argument:
    # names that the class body binds are not resolved
    local = sources.bound_names(ast.Module(found.node.body, [])) if isinstance(found.node, ast.ClassDef) else set()

    def evaluated(node: ast.expr) -> Any:
        if local & {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}:
            raise UnreadableError(f"{found} binds names in its body")
        return sources.evaluate(found.source, node)

    value = MISSING
    if default is not None:
        with suppress(UnreadableError):
            value = evaluated(default)
    written = None if default is None else ast.unparse(default)
    bare = Argument(name, None, written, value, doc=doc)
    if annotation is None:
        return bare
    try:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        kind = evaluated(annotation)
        domain = values.domain(kind)
    except (UnreadableError, SyntaxError, TypeError, ValueError, IndexError):
        return bare
    marks = values.is_stackable(kind), tuple(values.relations(kind)), tuple(values.kinds(domain))
    return Argument(name, values.with_default(domain, value), written, value, *marks, values.holds_parts(kind), doc)


def _argument_docs(doc: str) -> dict[str, str]:
    """Return the descriptions of the arguments from the ``Args:`` section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(doc), re.M | re.S)
    if section is None:
        return {}
    found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", section[1], re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}

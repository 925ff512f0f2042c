"""Compile a static method from its source, without importing its module."""

import __future__

import ast
import builtins
import dis
import importlib
from collections.abc import Callable
from types import CodeType
from typing import Any

from snnexp.spec.source import Definition, Module, Object, Source, UnreadableError, may_import, resolve_name


def compiled(definition: Definition, allowed: Callable[[Source], bool]) -> Callable[..., Any]:
    """Compile a static method with the light modules, and the literals and functions of its module, that it uses.

    Raises:
        UnreadableError: it uses anything else, or ``allowed`` rejects its file.
    """
    function: Callable[..., Any] = _compiled(definition, {}, allowed)
    return function


def _compiled(
    definition: Definition, made: dict[ast.AST, Any], allowed: Callable[[Source], bool]
) -> Callable[..., Any]:
    source, node = definition.source, definition.node
    assert isinstance(node, ast.FunctionDef)
    if not allowed(source):
        raise UnreadableError(f"{definition} is not in an allowed package")
    plain = ast.FunctionDef(**{**vars(node), "decorator_list": [], "returns": None})
    # annotations are not evaluated, so their names need not resolve
    code = compile(ast.Module([plain], []), str(source.path), "exec", __future__.annotations.compiler_flag)
    namespace: dict[str, Any] = {"__name__": source.name, "__builtins__": builtins}
    made[node] = None
    for name in _globals(code):
        if name not in source.names and not source.star_imports and hasattr(builtins, name):
            continue
        found = resolve_name(source, name)
        if isinstance(found, Definition) and isinstance(found.node, ast.FunctionDef) and not found.node.decorator_list:
            if found.node not in made:
                _compiled(found, made, allowed)
            namespace[name] = lambda *given, _of=found.node, **named: made[_of](*given, **named)
        elif isinstance(found, Object):
            namespace[name] = found.value
        elif isinstance(found, Module) and may_import(found.name):
            namespace[name] = importlib.import_module(found.name)
        else:
            raise UnreadableError(f"{definition} uses {name}")
    # a separate namespace: a function of the module may have the same name
    own: dict[str, Any] = {}
    exec(code, namespace, own)
    made[node] = own[node.name]
    return made[node]  # type: ignore[no-any-return]


def _globals(code: CodeType) -> set[str]:
    """Return the global names that code and its nested functions read."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))

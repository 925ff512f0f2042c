"""Classes as their source defines them: their method resolution order and class attributes."""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any, Generic, Protocol

from snnexp.spec import source as sources
from snnexp.spec.source import Definition, External, Object, UnreadableError

MISSING = object()
"""A value that does not exist, or is known only at runtime."""
Class = Definition | External
PLAIN_BASES = (object, Generic, Protocol)


def mro(found: Definition, below: tuple[Definition, ...] = ()) -> tuple[Class, ...]:
    """Return a class and its bases in method resolution order; classes whose source is not read have no bases.

    Raises:
        UnreadableError: a base is unknown.
    """
    assert isinstance(found.node, ast.ClassDef)
    if found in below:
        raise UnreadableError(f"{found} is a base of itself")
    lines: list[list[Class]] = []
    for node in found.node.bases:
        # Generic[T] and the like
        base = sources.resolve(found.source, node.value if isinstance(node, ast.Subscript) else node)
        if isinstance(base, Definition) and isinstance(base.node, ast.ClassDef):
            lines.append([*mro(base, (*below, found))])
        elif isinstance(base, External):
            lines.append([base])
        elif not (isinstance(base, Object) and base.value in PLAIN_BASES):
            raise UnreadableError(f"a base of {found} cannot be read")
    return (found, *_merge_c3([*lines, [line[0] for line in lines]]))


def _merge_c3(lines: list[list[Class]]) -> Iterator[Class]:
    while lines := [line for line in lines if line]:
        for line in lines:
            if not any(line[0] in other[1:] for other in lines):
                first = line[0]
                break
        else:
            raise UnreadableError("the bases have no consistent order")
        yield first
        lines = [line[1:] if line[0] == first else line for line in lines]


def attribute(found: Definition, name: str) -> Any:
    """Return the value that a class body assigns to a name; None if it does not, MISSING if it cannot be determined."""
    assert isinstance(found.node, ast.ClassDef)
    assigned = [node for node in found.node.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    plain = [value for node in assigned for bound, value in sources.bindings(node) if bound == name]
    bare = [node for node in assigned if isinstance(node, ast.AnnAssign) and node.value is None]
    count = (
        sum(name in sources.bound_names(node) for node in found.node.body if node not in bare)
        + _count_names(found)[name]
    )
    if not count:
        return None
    if count > 1 or not plain:
        return MISSING
    try:
        return sources.evaluate(found.source, plain[0])
    except UnreadableError:
        return MISSING


@functools.lru_cache(maxsize=256)
def _count_names(found: Definition) -> Counter[str]:
    """Count, by name, the attributes that the code of a class sets, and its string literals, which setattr may use."""
    names: Counter[str] = Counter()
    for node in ast.walk(found.node):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names[node.value] += 1
    return names

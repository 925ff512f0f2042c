"""Describe a choice for ``snnexp list``: its keys, their values, domains and documentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snnexp.config import keys, targets
from snnexp.config.compose import keys_of_choice
from snnexp.config.folders import GLOBAL
from snnexp.config.overrides import hydra_literal
from snnexp.spec import parts
from snnexp.spec.annotations import AtMost
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Argument
from snnexp.spec.source import UnreadableError


def describe_choice(
    group: str, choice: str, folders: Sequence[Path] = ()
) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Return rows (key, value, domain, documentation), and notes on what is not checked before a part is built.

    The rows include the arguments that the file of the choice does not set, with their defaults.

    Raises:
        ConfigError: the choice does not exist or cannot be composed.
    """
    found = keys_of_choice(group, choice, folders)
    rows = [(key, hydra_literal(value), *_describe_key(key, found)) for key, value in found.items()]
    unread = []
    for key, target in found.items():
        path, _, name = key.rpartition(".")
        if name != "_target_" or group in GLOBAL or not isinstance(target, str):
            continue
        if target == "???":
            unread.append(f"{path}: set {key}=mypkg.Mine to use your own class")
            continue
        spec = parts.of(target)
        if spec.unread:
            unread.append(f"{path}: the arguments of {target} are not checked before it is built: {spec.unread}")
        for rule in targets.RULES:
            try:
                spec.rule(rule, targets.may_call_rules)
            except UnreadableError as error:
                unread.append(f"{path}: {rule} of {target} is not called before it is built: {error}")
        given = PLACES[path].given if path in PLACES else ()
        for argument in spec.arguments.values():
            own = f"{path}.{argument.name}"
            is_set = any(f"{other}.".startswith(f"{own}.") for other in found)
            if not (is_set or argument.name in given or argument.default is None):
                rows.append((own, argument.default, *_describe_argument(argument)))
    return rows, unread


def _describe_key(key: str, found: Mapping[str, Any]) -> tuple[str, str]:
    path, _, name = key.rpartition(".")
    if found[key] == "???" and name == "_target_":
        # an object without a target: describe the argument that takes it
        node, _, argument = path.rpartition(".")
        entry = keys.lookup(found.get(f"{node}._target_"), node, argument)
    else:
        entry = keys.lookup(found.get(f"{path}._target_"), path, name)
    if isinstance(entry, Argument):
        return _describe_argument(entry)
    return "" if entry is None or entry.domain is None else str(entry.domain), ""


def _describe_argument(argument: Argument) -> tuple[str, str]:
    domain = "" if argument.domain is None else str(argument.domain)
    bounds = [f"at {'most' if isinstance(each, AtMost) else 'least'} {each.bound}" for each in argument.relations]
    return "; ".join(filter(None, [domain, *bounds])), argument.doc

"""Values of a config are held against the domains of their names, and parts against each other, without torch."""

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from snnexp.config import keys, security, targets, user_parts
from snnexp.config.folders import GLOBAL, GROUPS, KEYS, LOGGER, NODES, choices, resolving
from snnexp.config.messages import explained, in_one_line
from snnexp.errors import ConfigError, Refusals, located
from snnexp.record import upgrade
from snnexp.spec import checked, parts, rules, values
from snnexp.spec.places import NEURON, PLACES, SYNAPSE, Place
from snnexp.spec.reader import MISSING, Spec
from snnexp.spec.rules import Facts
from snnexp.spec.source import UnreadableError
from snnexp.text import closest, listed, shown


def check(cfg: DictConfig, together: bool = True) -> DictConfig:
    """Resolve ``cfg`` and hold every value against what its part takes.

    Args:
        cfg: a composed config.
        together: whether parts are held against each other too.

    Raises:
        ConfigError: values cannot work; one sentence for each key.
    """
    with in_one_line(), explained(), resolving():
        if missing := [key for key in (*KEYS, *NODES) if key not in cfg]:
            hints = {key: f", {listed(choices(key))}" for key in NODES}
            raise ConfigError(*(f"{key}: every run needs one{hints.get(key, '')}" for key in missing))
        written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        security.require_bounded(written, written)
        # a recipe may be older than the places of parts
        plain = upgrade.with_targets(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        return OmegaConf.create(_checked(plain, written, together))


def _checked(plain: dict[str, Any], written: Mapping[str, Any], together: bool) -> dict[str, Any]:
    refusals = Refusals()
    for key, value in plain.items():
        if key in GLOBAL:
            refusals.add(f"{key}: its files set other keys, and must begin with the line # @package _global_")
        elif key not in (*KEYS, *NODES):
            refusals.add(f"{shown(key)}: unknown key, {closest(str(key), (*KEYS, *GROUPS))}")
        elif key in NODES and not isinstance(value, dict):
            hint = "must be a mapping, as a file of this group holds it" if isinstance(value, list) else None
            refusals.add(f"{key}: got {shown(value)}, {hint or listed(choices(key))}")
        else:
            with refusals.collected():
                targets.require_targets(value, key, key if key in PLACES else None)
    for key in plain["logger"] if isinstance(plain["logger"], dict) else ():
        if key not in LOGGER:
            refusals.add(f"logger.{shown(key)}: unknown key, {closest(str(key), LOGGER)}")
    for about, node, prefix in (
        (keys.Run, plain, ""),
        (keys.Logger, plain["logger"], "logger."),
        (keys.Data, plain["data"], "data."),
    ):
        if isinstance(node, Mapping):
            with refusals.collected():
                own = {key: value for key, value in node.items() if not refusals.about(f"{prefix}{key}")}
                checked.check(about, own, prefix)
    nodes = {key: value for key, value in plain.items() if key in PLACES and _is_part(value, key, refusals)}
    specs = {key: parts.of(node["_target_"]) for key, node in nodes.items()}
    for key, node in nodes.items():
        _check_values(node, key, specs[key], refusals)
    if together:
        for key, node in nodes.items():
            _check_arguments(node, key, specs[key], *_given(specs[key], PLACES[key]), refusals)
        _check_pairs(nodes, specs, plain["num_steps"], refusals)
    for key in [*refusals.sentences]:
        # what is only read from a key that is refused itself is told once
        if any(origin in refusals.sentences for origin in _origins(key, written)):
            del refusals.sentences[key]
    refusals.tell()
    return at_home(plain)


def at_home(plain: dict[str, Any]) -> dict[str, Any]:
    for key in ("data", "logger"):
        # once, so that all who read a path mean the same
        if isinstance(root := plain[key].get("root"), str):
            plain[key]["root"] = os.path.expanduser(root)
    return plain


def _origins(key: str, written: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a key of a config gets its value from, by interpolations as they were written."""
    node: Any = written
    words = key.split(".")
    for index, word in enumerate(words):
        node = node.get(word) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            origin = ".".join([match[1], *words[index + 1 :]])
            yield origin
            yield from _origins(origin, written)


def _is_made(value: Any) -> bool:
    """Whether code from elsewhere makes the value, so that it is checked when it is there."""
    return isinstance(value, Mapping) and targets.may_be_named(str(value.get("_target_")))


def _is_part(node: Any, path: str, refusals: Refusals) -> bool:
    named = isinstance(node, Mapping) and isinstance(node.get("_target_"), str)
    return named and path not in refusals.sentences and f"{path}._target_" not in refusals.sentences


def _children(node: Any, path: str, refusals: Refusals) -> Iterator[tuple[str, Any, Spec]]:
    """The parts within a node, without those within these."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        child = f"{path}.{key}"
        if _is_part(value, child, refusals):
            target = value["_target_"]
            if targets.is_own(target) or targets.may_be_named(target):
                yield child, value, parts.of(target)
        elif isinstance(value, Mapping | list):
            yield from _children(value, child, refusals)


def _check_values(node: Mapping[str, Any], path: str, spec: Spec, refusals: Refusals) -> None:
    """Hold each value against what its part takes."""
    for name, value in node.items():
        domain = spec.arguments[name].domain if name in spec.arguments else None
        if _is_made(value) or domain is None or value in domain:
            continue
        if not refusals.about(f"{path}.{name}"):
            refusals.add(values.refusal(f"{path}.{name}", value, domain))
    for child, value, its in _children(node, path, refusals):
        _check_values(value, child, its, refusals)


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    # what the inputs are is for the assembly, whatever the data
    return {key: value for key, value in node.items() if key not in ("_target_", *keys.Data.__annotations__)}


def _check_arguments(
    node: Mapping[str, Any],
    path: str,
    spec: Spec,
    given: Sequence[str],
    offered: Sequence[str],
    refusals: Refusals,
) -> None:
    """Refuse what a part does not take, what it lacks, and values that do not fit each other."""
    own = _values(node)
    known = [name for name in spec.arguments if name not in given]
    if not spec.takes_all:
        with refusals.collected():
            rules.require_arguments(path, spec.name, own, known)
    for name in known:
        if spec.arguments[name].required and name not in own and name not in offered:
            refusals.add(f"{path}: {spec.name} is missing a required argument: '{name}'")
    if not refusals.about(path):
        whole = _with_defaults(own, spec)
        for argument in spec.arguments.values():
            for relation in argument.relations:
                if sentence := checked.violation(argument.name, relation, argument.domain, whole):
                    refusals.add(f"{path}.{sentence}")
        with refusals.collected():
            _call(spec, "requires", path, whole)
    for child, value, its in _children(node, path, refusals):
        _check_arguments(value, child, its, (), (*NEURON.given, *SYNAPSE), refusals)


def _given(spec: Spec, place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments that a place gives a part, and those that it offers: to another kind of module, all of them."""
    if place is PLACES["network"] and place.base not in spec.bases:
        return (), (*place.given, *place.offered)
    return place.given, place.offered


def _with_defaults(own: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    defaults = {name: argument.value for name, argument in spec.arguments.items() if argument.value is not MISSING}
    return {**defaults, **own}


def _call(spec: Spec, name: str, path: str, known: Mapping[str, Any]) -> Any:
    """The result of a static method of a part; None where there is none, or it needs what is not known here."""
    try:
        rule = spec.rule(name, targets.may_be_read)
    except UnreadableError:
        return None
    if rule is None:
        return None
    parameters = inspect.signature(rule).parameters.values()
    wanted = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    first = [each for each in wanted if each.kind is each.POSITIONAL_ONLY]
    if any(each.name not in known and (each in first or each.default is each.empty) for each in wanted):
        return None
    given = [known[each.name] for each in first]
    named = {each.name: known[each.name] for each in wanted if each.name in known and each not in first}
    try:
        with user_parts.constructing(path), located(path):
            return rule(*given, **named)
    except ConfigError as error:
        # what is described by a mapping is no number yet
        if error.__cause__ is not None and any(isinstance(value, Mapping) for value in (*given, *named.values())):
            return None
        raise


def _check_pairs(nodes: Mapping[str, Any], specs: Mapping[str, Spec], num_steps: Any, refusals: Refusals) -> None:
    """Hold parts against each other and the length of the run, as far as their sources tell."""
    facts = {key: Facts(spec, _with_defaults(_values(nodes[key]), spec)) for key, spec in specs.items()}
    data, loss, encoder, readout = (facts.get(key) for key in ("data", "loss", "encoder", "readout"))
    if data and loss:
        with refusals.collected():
            rules.require_target(loss, data)
    if data and encoder:
        with refusals.collected():
            rules.require_encoder(encoder, data)
    if data and not refusals.about("num_steps") and not refusals.about("data"):
        with refusals.collected():
            rules.require_steps(data, num_steps)
    if loss and readout:
        with refusals.collected():
            rules.require_spikes(loss, readout)
    if data and not refusals.about("data") and not refusals.about("trainer"):
        devices = nodes["trainer"].get("devices", 1) if "trainer" in nodes else 1
        with refusals.collected(), located("data"):
            if targets.is_own(specs["data"].target):
                rules.require_batches(data.samples, devices, **_with_defaults(_values(nodes["data"]), specs["data"]))
    if data and "network" in nodes and not refusals.about("network"):
        with refusals.collected():
            _check_shapes(nodes, specs, data, refusals)


def _check_shapes(nodes: Mapping[str, Any], specs: Mapping[str, Spec], data: Facts, refusals: Refusals) -> None:
    """Hold neurons against the shapes that their network gives them."""
    shapes = {name: value for name in ("inputs", "outputs") if (value := getattr(data, name)) is not MISSING}
    known = _with_defaults(_values(nodes["network"]), specs["network"])
    found = _call(specs["network"], "shapes", "network", {**known, **shapes})
    for layer in found if isinstance(found, list) else ():
        place, features = layer if isinstance(layer, tuple) and len(layer) == 2 else (None, ())
        if place in ("neuron", "readout") and isinstance(features, tuple) and not refusals.about(place):
            own = _with_defaults(_values(nodes[place]), specs[place])
            with refusals.collected():
                _call(specs[place], "fits", place, {**own, "features": features})

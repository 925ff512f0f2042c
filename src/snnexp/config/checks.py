"""Check the values of a config against their domains, and its parts against each other, without importing torch."""

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from snnexp.config import decoding, initial, keys, loggers, security, steps, targets, user_parts
from snnexp.config.folders import GLOBAL, GROUPS, KEYS, LOGGER, NODES, OPTIONAL, choices, registered_resolvers
from snnexp.config.messages import explain_errors, in_one_line
from snnexp.errors import ConfigError, ConfigErrors, key_prefix
from snnexp.record import upgrade
from snnexp.spec import checked, parts, places, rules, values
from snnexp.spec.classes import MISSING
from snnexp.spec.places import NEURON, PLACES, SYNAPSE, Place
from snnexp.spec.reader import Spec
from snnexp.spec.rules import Facts
from snnexp.spec.source import UnreadableError
from snnexp.text import format_value, list_options, suggest

RESERVED = (
    *("loss", "epoch_loss", "penalty", "accuracy", "undecided", "l1", "relative_error", "seed_mean_loss"),
    *("firing_rate", "dead", "saturated", "synops"),
)
"""Names of the metrics that every run logs."""


def check(cfg: DictConfig, together: bool = True) -> DictConfig:
    """Resolve ``cfg`` and check its values.

    Args:
        cfg: a composed config.
        together: whether to check the parts against each other too.

    Raises:
        ConfigError: values are invalid; one message for each key.
    """
    with in_one_line(), explain_errors(), registered_resolvers():
        if missing := [key for key in (*KEYS, *NODES) if key not in cfg and key not in OPTIONAL]:
            hints = {key: f", {list_options(choices(key))}" for key in NODES}
            raise ConfigError(*(f"{key}: every run needs one{hints.get(key, '')}" for key in missing))
        written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        security.require_bounded(written, written)
        cfg = steps.resolve_num_steps(cfg)
        # a recipe may have been written for an earlier version
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        plain = decoding.with_missing_nodes(upgrade.with_schedule(upgrade.with_targets(resolved)))
        return OmegaConf.create(_checked(plain, written, together))


def _checked(plain: dict[str, Any], written: Mapping[str, Any], together: bool) -> dict[str, Any]:
    errors = ConfigErrors()
    for key, value in plain.items():
        if key in GLOBAL:
            errors.add(f"{key}: its files set other keys, and must begin with the line # @package _global_")
        elif key not in (*KEYS, *NODES):
            errors.add(f"{format_value(key)}: unknown key, {suggest(str(key), (*KEYS, *GROUPS))}")
        elif key == "decoder" and value in (None, decoding.AUTO, decoding.EARLIER):
            # no decoder, or one that is chosen when the parts are built
            continue
        elif key in NODES and not isinstance(value, dict):
            hint = "must be a mapping, as in a file of this group" if isinstance(value, list) else None
            errors.add(f"{key}: got {format_value(value)}, {hint or list_options(choices(key))}")
        elif key == "init_from":
            initial.check(value, errors)
        else:
            named = {f"{key}.{name}": node for name, node in value.items()} if _is_collection(key) else {key: value}
            if key == "logger":
                # the loggers below `also` are checked separately
                named = {key: {name: node for name, node in value.items() if name != "also"}}
            for path, node in named.items():
                with errors.collect():
                    if _is_collection(key):
                        _require_name(path)
                    targets.require_targets(node, path, key if key in PLACES else None)
    if isinstance(plain["logger"], dict):
        loggers.check(plain["logger"].get("also", {}), errors)
    for key in plain["logger"] if isinstance(plain["logger"], dict) else ():
        if key not in LOGGER:
            errors.add(f"logger.{format_value(key)}: unknown key, {suggest(str(key), LOGGER)}")
    for about, node, prefix in (
        (keys.Run, plain, ""),
        (keys.Logger, plain["logger"], "logger."),
        (keys.Data, plain["data"], "data."),
    ):
        if isinstance(node, Mapping):
            with errors.collect():
                own = {key: value for key, value in node.items() if not errors.covers(f"{prefix}{key}")}
                checked.check(about, own, prefix)
    found = [(path, place, node) for path, place, node in places.nodes(plain) if _is_part(node, path, errors)]
    nodes = {path: node for path, _, node in found}
    specs = {path: parts.of(node["_target_"]) for path, node in nodes.items()}
    for path, node in nodes.items():
        _check_values(node, path, specs[path], errors)
    if together:
        for path, place, node in found:
            _check_arguments(node, path, specs[path], *_given(specs[path], PLACES[place]), errors)
        _check_pairs(plain, nodes, specs, errors)
    for key in [*errors.messages]:
        # an interpolation of an invalid key is not reported again
        if any(origin in errors.messages for origin in _origins(key, written)):
            del errors.messages[key]
    errors.raise_if_any()
    plain["init_from"] = initial.with_absolute_paths(plain["init_from"])
    return expand_user_paths(plain)


def _is_collection(key: str) -> bool:
    return key in PLACES and PLACES[key].many


def _require_name(path: str) -> None:
    """Reject an invalid or reserved name of a metric or penalty."""
    place, _, name = path.partition(".")
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ConfigError(
            f"{place}.{format_value(name)}: must consist of letters, digits and _, and begin with a letter"
        )
    if place == "measure" and name in RESERVED:
        raise ConfigError(f"{path}: every run logs a metric of this name; use another name")


def expand_user_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """Expand ``~`` in the paths of a config, in place."""
    for key in ("data", "logger"):
        if isinstance(root := plain[key].get("root"), str):
            plain[key]["root"] = os.path.expanduser(root)
    return plain


def _origins(key: str, written: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that the value of a key is interpolated from.

    Args:
        key: a dotted key.
        written: the config, not resolved.
    """
    node: Any = written
    words = key.split(".")
    for index, word in enumerate(words):
        node = node.get(word) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            origin = ".".join([match[1], *words[index + 1 :]])
            yield origin
            yield from _origins(origin, written)


def _is_user_object(value: Any) -> bool:
    """Return True if code of an allowed package creates the value, which cannot be checked before."""
    return isinstance(value, Mapping) and targets.is_allowed(str(value.get("_target_")))


def _is_part(node: Any, path: str, errors: ConfigErrors) -> bool:
    named = isinstance(node, Mapping) and isinstance(node.get("_target_"), str)
    return named and path not in errors.messages and f"{path}._target_" not in errors.messages


def _children(node: Any, path: str, errors: ConfigErrors) -> Iterator[tuple[str, Any, Spec]]:
    """Yield the parts in a node, not those nested in them."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        child = f"{path}.{key}"
        if _is_part(value, child, errors):
            target = value["_target_"]
            if targets.is_snnexp(target) or targets.is_allowed(target):
                yield child, value, parts.of(target)
        elif isinstance(value, Mapping | list):
            yield from _children(value, child, errors)


def _check_values(node: Mapping[str, Any], path: str, spec: Spec, errors: ConfigErrors) -> None:
    """Check each value against the domain of its argument."""
    for name, value in node.items():
        domain = spec.arguments[name].domain if name in spec.arguments else None
        if _is_user_object(value) or domain is None or value in domain:
            continue
        if not errors.covers(f"{path}.{name}"):
            errors.add(values.error_message(f"{path}.{name}", value, domain))
    for child, value, its in _children(node, path, errors):
        _check_values(value, child, its, errors)


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    # these keys of data are not arguments of the part
    return {key: value for key, value in node.items() if key not in ("_target_", *keys.Data.__annotations__)}


def _check_arguments(
    node: Mapping[str, Any],
    path: str,
    spec: Spec,
    given: Sequence[str],
    offered: Sequence[str],
    errors: ConfigErrors,
) -> None:
    """Reject unknown and missing arguments of a part, and values that contradict each other."""
    own = _values(node)
    known = [name for name in spec.arguments if name not in given]
    if not spec.takes_all:
        with errors.collect():
            rules.require_arguments(path, spec.name, own, known)
    for name in known:
        if spec.arguments[name].required and name not in own and name not in offered:
            errors.add(f"{path}: {spec.name} is missing a required argument: '{name}'")
    if not errors.covers(path):
        whole = _with_defaults(own, spec)
        for argument in spec.arguments.values():
            for relation in argument.relations:
                if message := checked.violation(argument.name, relation, argument.domain, whole):
                    errors.add(f"{path}.{message}")
        with errors.collect():
            _call(spec, "requires", path, whole)
    for child, value, its in _children(node, path, errors):
        _check_arguments(value, child, its, (), (*NEURON.given, *SYNAPSE), errors)


def _given(spec: Spec, place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arguments that a place supplies and those that it offers; a plain module is offered all of them."""
    if place is PLACES["network"] and place.base not in spec.bases:
        return (), (*place.given, *place.offered)
    return place.given, place.offered


def _with_defaults(own: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    defaults = {name: argument.value for name, argument in spec.arguments.items() if argument.value is not MISSING}
    return {**defaults, **own}


def _call(spec: Spec, name: str, path: str, known: Mapping[str, Any]) -> Any:
    """Return the result of a static method of a part; None if there is none, or one of its arguments is unknown."""
    try:
        rule = spec.rule(name, targets.may_call_rules)
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
        with user_parts.wrap_constructor_errors(path), key_prefix(path):
            return rule(*given, **named)
    except ConfigError as error:
        # the method expects a number, but the config has a mapping that describes an object
        if error.__cause__ is not None and any(isinstance(value, Mapping) for value in (*given, *named.values())):
            return None
        raise


def _check_pairs(
    plain: Mapping[str, Any], nodes: Mapping[str, Any], specs: Mapping[str, Spec], errors: ConfigErrors
) -> None:
    """Check the parts against each other and ``num_steps``, as far as their source determines it."""
    plain_decoder, num_steps = MISSING if plain["decoder"] is not None else None, plain["num_steps"]
    facts = {key: Facts(spec, _with_defaults(_values(nodes[key]), spec)) for key, spec in specs.items()}
    data, loss, encoder, readout = (facts.get(key) for key in ("data", "loss", "encoder", "readout"))
    if "network" in nodes and not rules.takes_neurons(nodes["network"], "readout"):
        # the network defines its readout itself
        readout = None
    if data and loss:
        with errors.collect():
            rules.require_target(loss, data)
    if data and encoder:
        with errors.collect():
            rules.require_encoder(encoder, data)
    if data and not errors.covers("num_steps") and not errors.covers("data"):
        with errors.collect():
            rules.require_steps(data, num_steps)
    if loss and readout:
        with errors.collect():
            rules.require_spikes(loss, readout)
    if data and readout and (decoder := facts.get("decoder", plain_decoder)) is not MISSING:
        with errors.collect():
            rules.require_decoder(decoder, readout, data)
    for path, measure in facts.items() if data else ():
        place, _, name = path.partition(".")
        if place == "measure":
            with errors.collect():
                rules.require_measure(name, measure, data, readout)
    devices = nodes["trainer"].get("devices", 1) if "trainer" in nodes else 1
    if data and not errors.covers("data") and not errors.covers("trainer"):
        with errors.collect(), key_prefix("data"):
            if targets.is_snnexp(specs["data"].target):
                rules.require_batches(data.samples, devices, **_with_defaults(_values(nodes["data"]), specs["data"]))
    if isinstance(plain["logger"], dict) and plain["logger"].get("predictions") and devices != 1:
        errors.add(
            "logger.predictions: got true, but a run on several devices writes no predictions; use snnexp predict RUN"
        )
    if data:
        known = _with_defaults(_values(nodes["data"]), specs["data"])
        for key, value, measure in _watched_metrics(nodes, facts):
            with errors.collect():
                rules.require_validation(key, value, measure, data, known)
    if data and "network" in nodes and not errors.covers("network"):
        with errors.collect():
            _check_shapes(nodes, specs, data, errors)


def _watched_metrics(nodes: Mapping[str, Any], facts: Mapping[str, Facts]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys that monitor a metric, their values, and the metric."""
    if "schedule" in facts and facts["schedule"].watches is True:
        own = _with_defaults(_values(nodes["schedule"]), facts["schedule"].spec)
        yield "schedule.measure", own.get("measure"), own.get("measure")
    if "trainer" in nodes and nodes["trainer"].get("early_stopping") is not None:
        yield "trainer.early_stopping", nodes["trainer"]["early_stopping"], "val/loss"


def _check_shapes(nodes: Mapping[str, Any], specs: Mapping[str, Spec], data: Facts, errors: ConfigErrors) -> None:
    """Check the neurons against the shapes of their layers."""
    shapes = {name: value for name in ("inputs", "outputs") if (value := getattr(data, name)) is not MISSING}
    known = _with_defaults(_values(nodes["network"]), specs["network"])
    found = _call(specs["network"], "shapes", "network", {**known, **shapes})
    for layer in found if isinstance(found, list) else ():
        place, features = layer if isinstance(layer, tuple) and len(layer) == 2 else (None, ())
        if place in ("neuron", "readout") and isinstance(features, tuple) and not errors.covers(place):
            own = _with_defaults(_values(nodes[place]), specs[place])
            with errors.collect():
                _call(specs[place], "fits", place, {**own, "features": features})

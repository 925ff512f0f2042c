"""The decoder of a config: the default of its loss, and what a config of an earlier version means."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from snnexp.config import initial
from snnexp.config.folders import choices
from snnexp.errors import ConfigError
from snnexp.record import upgrade
from snnexp.record.names import key_of
from snnexp.spec import parts, rules
from snnexp.spec.classes import MISSING
from snnexp.spec.reader import Spec
from snnexp.spec.rules import Facts
from snnexp.text import format_value, snake_case

AUTO, EARLIER, NONE = "auto", "earlier", "none"
"""Stand for a decoder whose parts cannot be read before they are made: the default of today, or that of versions
whose configs had no decoder; and the choice of none."""
DEPEND = ("loss", "readout", "data")
"""The groups that decide which decoder is the default."""
DECISIVE = tuple(f"{group}._target_" for group in DEPEND)
NOTE = "snnexp_decoder"
UNREAD = Spec("unread", takes_all=True)


def with_missing_nodes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config with the nodes that those of earlier versions lack."""
    found = initial.with_defaults(plain)
    for key in ("regularizer", "measure"):
        found.setdefault(key, {})
    if "decoder" not in found:
        name = _default(upgrade.with_targets(found), earlier=True)
        found["decoder"] = EARLIER if name is MISSING else shipped_node(name)
    return found


def shipped_node(name: str | None) -> dict[str, Any] | None:
    """The node of a shipped decoder, as its choice has it."""
    if name is None:
        return None
    spec = parts.by_choice("decoder")[name]
    return {"_target_": spec.target, **{key: argument.value for key, argument in spec.arguments.items()}}


def decoder_name(cfg: Mapping[str, Any], otherwise: object = None) -> str:
    """The decoder of a config in a word, as reports show it.

    Args:
        cfg: the config of a run.
        otherwise: where the config does not name it, what run.json says.
    """
    found = cfg.get("decoder")
    target = found.get("_target_") if isinstance(found, Mapping) else None
    if isinstance(target, str):
        return snake_case(target.rpartition(".")[2])
    return rules.RENAMED.get(otherwise, otherwise) if isinstance(otherwise, str) else ""


def measure_descriptions(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What the measures that a config names say of themselves."""
    return {name: spec.doc.rstrip(".") for name, spec in parts.measures(cfg).items()}


def _default(plain: Mapping[str, Any], earlier: bool = False) -> Any:
    """As :func:`snnexp.spec.rules.default_decoder`, as far as the sources of the parts tell."""
    nodes = (plain.get(key) for key in DEPEND)
    found = (node.get("_target_") if isinstance(node, Mapping) else None for node in nodes)
    loss, readout, data = (Facts(parts.of(each) if isinstance(each, str) else UNREAD) for each in found)
    return rules.default_decoder(loss, readout, data, earlier)


Compose = Callable[[Sequence[str]], DictConfig]


def compose_with_decoder(overrides: Sequence[str], compose: Compose, folders: Sequence[Path] = ()) -> DictConfig:
    """Compose a config whose decoder is chosen: the one that was typed, that of the recipe, or the loss's default.

    That of a recipe belongs to its loss and readout: where another loss or readout is typed and no decoder, or data
    whose targets it does not decode, the default takes its place; :func:`note` says so.

    Args:
        overrides: what was typed.
        compose: composes overrides as they are, with Hydra's own node.
        folders: more configs.

    Raises:
        ConfigError: the loss names a decoder that is no choice, or the decoder is deleted.
    """
    if any(override.startswith("~decoder") and key_of(override) == "decoder" for override in overrides):
        raise ConfigError("decoder: cannot be deleted; decoder=null leaves it out, decoder=auto is the default")
    cfg = compose(overrides)
    choice = _choices(cfg).get("decoder")
    others = [override for override in overrides if key_of(override) != "decoder"]
    if "decoder" not in cfg or (choice != AUTO and len(others) < len(overrides)):
        return cfg
    another = {"loss"} if choice == AUTO else _another(overrides, cfg, compose)
    if not another:
        return cfg
    named = {key: _named(cfg, key) for key in DEPEND}
    name = _default(named)
    name = AUTO if name is MISSING else NONE if name is None else name
    if name == choice or (another == {"data"} and (name == NONE) == (choice == NONE)):
        return cfg
    if name not in (known := choices("decoder", folders)):
        loss = str(named["loss"]["_target_"]).rpartition(".")[2]
        raise ConfigError(f"loss: {loss}.decoder is {format_value(name)}, must be one of {', '.join(known)}")
    if choice == AUTO and not any((folder / "decoder" / f"{name}.yaml").is_file() for folder in folders):
        # what the file of a shipped choice holds, without a second composition
        with open_dict(cfg):
            cfg.decoder = name if name == AUTO else shipped_node(None if name == NONE else name)
            cfg.hydra.runtime.choices.decoder = name
        return cfg
    cfg = compose([*others, f"decoder={name}"])
    if choice != AUTO:
        vars(cfg._metadata)[NOTE] = f"decoder: {name} goes with what was typed, and replaces the recipe's {choice}"
    return cfg


def _another(overrides: Sequence[str], cfg: DictConfig, compose: Compose) -> set[str]:
    """The groups that a recipe's decoder depends on, of which another choice was typed."""
    typed = {key_of(override) for override in overrides} & {*DEPEND}
    if not typed:
        return set()
    own = compose([override for override in overrides if key_of(override).partition(".")[0] not in typed])
    return {group for group in typed if _choices(own).get(group) != _choices(cfg).get(group)}


def _choices(cfg: DictConfig) -> DictConfig:
    found: DictConfig = cfg.hydra.runtime.choices
    return found


def _named(cfg: DictConfig, key: str) -> dict[str, Any]:
    """The target of a node; what is wrong with it is told later."""
    try:
        found = OmegaConf.select(cfg, f"{key}._target_")
    except OmegaConfBaseException:
        found = None
    return {"_target_": found}


def decoder_note(cfg: DictConfig) -> str | None:
    """What is to be said of the decoder of a composed config; None where nothing is."""
    found: str | None = vars(cfg._metadata).get(NOTE)
    return found

"""The default decoder of a config, and the decoder of configs from earlier versions."""

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
"""AUTO and EARLIER stand for a default that is only known when the parts are built: the present default, or that of
versions whose configs had no decoder. NONE is the choice of no decoder."""
DEPEND = ("loss", "readout", "data")
"""The groups that determine the default decoder."""
DECISIVE = tuple(f"{group}._target_" for group in DEPEND)
NOTE = "snnexp_decoder"
UNREAD = Spec("unread", takes_all=True)


def with_missing_nodes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved config with the nodes that earlier versions did not have."""
    found = initial.with_defaults(plain)
    for key in ("regularizer", "measure"):
        found.setdefault(key, {})
    if "decoder" not in found:
        name = _default(upgrade.with_targets(found), earlier=True)
        found["decoder"] = EARLIER if name is MISSING else shipped_node(name)
    return found


def shipped_node(name: str | None) -> dict[str, Any] | None:
    """Return the node of a shipped decoder with its default arguments."""
    if name is None:
        return None
    spec = parts.by_choice("decoder")[name]
    return {"_target_": spec.target, **{key: argument.value for key, argument in spec.arguments.items()}}


def decoder_name(cfg: Mapping[str, Any], otherwise: object = None) -> str:
    """Return the name of the decoder of a config, as reports show it.

    Args:
        cfg: the config of a run.
        otherwise: the decoder in run.json, used if the config has none.
    """
    found = cfg.get("decoder")
    target = found.get("_target_") if isinstance(found, Mapping) else None
    if isinstance(target, str):
        return snake_case(target.rpartition(".")[2])
    return rules.RENAMED.get(otherwise, otherwise) if isinstance(otherwise, str) else ""


def measure_descriptions(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the descriptions of the metrics that a config adds, by name."""
    return {name: spec.doc.rstrip(".") for name, spec in parts.measures(cfg).items()}


def _default(plain: Mapping[str, Any], earlier: bool = False) -> Any:
    """Return :func:`snnexp.spec.rules.default_decoder` for the parts as their source describes them."""
    nodes = (plain.get(key) for key in DEPEND)
    found = (node.get("_target_") if isinstance(node, Mapping) else None for node in nodes)
    loss, readout, data = (Facts(parts.of(each) if isinstance(each, str) else UNREAD) for each in found)
    return rules.default_decoder(loss, readout, data, earlier)


Compose = Callable[[Sequence[str]], DictConfig]


def compose_with_decoder(overrides: Sequence[str], compose: Compose, folders: Sequence[Path] = ()) -> DictConfig:
    """Compose a config with the decoder of the overrides, of the recipe, or the default of the loss, in this order.

    The decoder of a recipe belongs to its loss and readout. If the overrides change these, or choose data that it does
    not decode, and set no decoder, the default replaces it; :func:`decoder_note` returns a message about that.

    Args:
        overrides: the command-line overrides.
        compose: composes overrides as they are, including the ``hydra`` node.
        folders: additional config folders.

    Raises:
        ConfigError: the default of the loss does not exist, or the decoder is deleted.
    """
    if any(override.startswith("~decoder") and key_of(override) == "decoder" for override in overrides):
        raise ConfigError("decoder: cannot be deleted; decoder=null disables it, decoder=auto is the default")
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
        # equals the file of the shipped choice, without a second composition
        with open_dict(cfg):
            cfg.decoder = name if name == AUTO else shipped_node(None if name == NONE else name)
            cfg.hydra.runtime.choices.decoder = name
        return cfg
    cfg = compose([*others, f"decoder={name}"])
    if choice != AUTO:
        vars(cfg._metadata)[NOTE] = (
            f"decoder: {name}, the default for the command-line overrides, replaces {choice} of the recipe"
        )
    return cfg


def _another(overrides: Sequence[str], cfg: DictConfig, compose: Compose) -> set[str]:
    """Return the groups in DEPEND for which the overrides choose another part than the recipe."""
    chosen = {key_of(override) for override in overrides} & {*DEPEND}
    if not chosen:
        return set()
    own = compose([override for override in overrides if key_of(override).partition(".")[0] not in chosen])
    return {group for group in chosen if _choices(own).get(group) != _choices(cfg).get(group)}


def _choices(cfg: DictConfig) -> DictConfig:
    found: DictConfig = cfg.hydra.runtime.choices
    return found


def _named(cfg: DictConfig, key: str) -> dict[str, Any]:
    """Return a node with only its target; errors are reported later, when the config is checked."""
    try:
        found = OmegaConf.select(cfg, f"{key}._target_")
    except OmegaConfBaseException:
        found = None
    return {"_target_": found}


def decoder_note(cfg: DictConfig) -> str | None:
    """Return a message if the decoder of the recipe was replaced, else None."""
    found: str | None = vars(cfg._metadata).get(NOTE)
    return found

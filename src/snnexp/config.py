"""Configs: where they lie, how they are composed, checked, and turned into objects.

Everything up to :func:`check` works without torch, so that a mistake is answered at once; :func:`instantiate` is the
only door from a config to code, and it opens for this package and for what SNNEXP_ALLOW_TARGETS names.
"""

import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp import domains, runs
from snnexp.errors import ConfigError, located

GROUPS = (
    "data",
    "encoder",
    "network",
    "neuron",
    "readout",
    "surrogate",
    "loss",
    "optimizer",
    "trainer",
    "logger",
    "experiment",
    "debug",
)
NODES = GROUPS[:-2]
"""The groups that become a node of the config; an experiment and a debug choice only set others."""
REFUSALS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
"""What Hydra raises about what was typed or written; :func:`explain` makes one sentence of it."""
LOGGER = ("root", "tensorboard", "save_every_n_epochs")
KEYS = ("seed", "num_steps", "kernel", "name", "published")


def conf_dir() -> Path:
    """The folder of configs: $SNNEXP_CONF, else inside the installed package, else beside ``src/``.

    Raises:
        ConfigError: it is not there.
    """
    here = Path(__file__).resolve().parent
    given = os.environ.get("SNNEXP_CONF")
    places = [Path(given).expanduser()] if given else [here / "conf", here.parents[1] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place.resolve()
    raise ConfigError(f"SNNEXP_CONF: no train.yaml in {places[0]}; unset it, or set it to a folder of configs")


def choices(group: str, conf: Path | None = None) -> dict[str, str]:
    """What can be chosen in a group: name to description, which is the first line of comment in its file."""
    folder = (conf or conf_dir()) / group
    return {path.stem: _description(path) for path in sorted(folder.glob("*.yaml"))}


def _description(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def prepare() -> None:
    """Register what the configs call by name; safe to call again."""
    OmegaConf.register_new_resolver("new_run_id", runs.new_id, use_cache=True, replace=True)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose, resolve and check the config of one run, as ``snnexp train`` would.

    Args:
        overrides: in Hydra's grammar, ``["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"]``.

    Raises:
        ConfigError: it cannot work; the sentence names the key.
    """
    prepare()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra_compose("train", list(overrides))
    except REFUSALS as error:
        raise explain(error, overrides) from error
    return check(cfg)


def check(cfg: DictConfig) -> DictConfig:
    """Resolve ``cfg`` and hold every value against the domain of its name.

    Raises:
        ConfigError: the first key whose value cannot work.
    """
    for key in (*KEYS, *NODES):
        if key not in cfg:
            hint = f", {domains.listed(choices(key))}" if key in NODES else ""
            raise ConfigError(f"{key}: every run needs one{hint}")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    return OmegaConf.create(_checked(cast(dict[str, Any], plain)))


def _checked(plain: dict[str, Any]) -> dict[str, Any]:
    for key, value in plain.items():
        if key not in (*KEYS, *NODES):
            raise ConfigError(f"{key}: unknown key, {domains.closest(key, (*KEYS, *GROUPS))}")
        if key in NODES and not isinstance(value, dict):
            raise ConfigError(f"{key}: got {domains.shown(value)}, must be one of {', '.join(choices(key))}")
    for key in plain["logger"]:
        if key not in LOGGER:
            raise ConfigError(f"logger.{key}: unknown key, {domains.closest(str(key), LOGGER)}")
    if not re.fullmatch(r"[\w.-]+", str(plain["name"])) or str(plain["name"]).startswith("."):
        raise ConfigError(f"name: got {domains.shown(plain['name'])}, must be letters, digits, '.', '_' and '-'")
    _check_node(plain, "")
    return plain


def _check_node(node: Mapping[str, Any], prefix: str) -> None:
    # names have the meanings of `domains` in this package; the constructors of others check for themselves
    if str(node.get("_target_", "snnexp.")).startswith("snnexp."):
        domains.check(node, prefix)
    for key, value in node.items():
        if key == "_target_":
            _require_allowed(str(value), prefix.rstrip("."))
        if isinstance(value, Mapping) and key != "published":
            _check_node(value, f"{prefix}{key}.")


def instantiate(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build the object that a node describes: ``_target_`` is called with the node's other keys and ``arguments``.

    Raises:
        ConfigError: the target is not allowed, or refuses its arguments; the sentence begins with the key.
    """
    return factory(node, path, given=arguments)(**arguments)


def factory(node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> Callable[..., Any]:
    """A function that builds the object of a node each time it is called, with what is still missing.

    Args:
        node: a mapping with ``_target_``.
        path: where the node stands in the config, for messages.
        given: names of the arguments that the caller will pass.
    """
    target = _locate(str(node.get("_target_")), path)
    signature = inspect.signature(target)
    known = signature.parameters
    own = {key: value for key, value in node.items() if key != "_target_"}
    for key in own:
        if key not in known or key in given:
            options = [name for name in known if name not in given]
            raise ConfigError(f"{path}.{key}: {target.__name__} has no such argument, {domains.closest(key, options)}")
    values = {
        key: instantiate(value, f"{path}.{key}") if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in own.items()
    }

    def make(*positional: Any, **more: Any) -> Any:
        try:
            signature.bind(*positional, **values, **more)
        except TypeError as error:
            raise ConfigError(f"{path}: {target.__name__} is {error}") from error
        with located(path):
            return target(*positional, **values, **more)

    return make


def _allowed() -> tuple[str, ...]:
    """Packages whose code a config may name: this one, and those that the user allowed."""
    named = (package.strip() for package in os.environ.get("SNNEXP_ALLOW_TARGETS", "").split(","))
    return ("snnexp", *filter(None, named))


def _require_allowed(name: str, path: str) -> None:
    if not any(f"{name}.".startswith(f"{package}.") for package in _allowed()):
        packages = ", ".join(_allowed())
        raise ConfigError(f"{path}._target_: {name} is not from {packages}; SNNEXP_ALLOW_TARGETS can allow its package")


def _locate(name: str, path: str) -> Any:
    """The object that a ``_target_`` names."""
    _require_allowed(name, path)
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}._target_: there is no {name}: {_first_line(error)}") from error
    if not callable(target):
        raise ConfigError(f"{path}._target_: {name} is neither a class nor a function")
    # a name inside an allowed package may be bound to something that the package imported
    _require_allowed(str(getattr(target, "__module__", None)), path)
    return target


def explain(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """One sentence for what Hydra, OmegaConf or YAML refused: the key, what is wrong, what would do.

    Args:
        error: what was raised.
        overrides: what was typed, where the error itself does not name the key.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}: line {mark.line + 1} is not YAML: {error.problem}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{domains.shown(error.override)}: not key=value or group=choice as Hydra reads it; "
            "quote what holds a space, '=', a bracket or an accent: key='\"value\"'"
        )
    return _about_a_key(error) or _about_a_choice(error, overrides) or ConfigError(_first_line(error))


def _about_a_key(error: Exception) -> ConfigError | None:
    for cause in _causes(error):
        key = getattr(cause, "full_key", None)
        if key and "not in struct" in str(cause):
            parent = getattr(cause, "parent_node", None)
            options = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
            # Hydra refuses a group of no such name in the same words
            options += list(GROUPS) if "." not in str(key) else []
            return ConfigError(f"{key}: unknown key, {_near(str(key), options)}")
        if key and isinstance(cause, OmegaConfBaseException):
            return ConfigError(f"{key}: {_first_line(cause)}")
    return None


def _about_a_choice(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    text = str(error)
    if match := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        return _no_choice(*match.groups())
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return ConfigError(f"{match[1]}: no such group, {domains.closest(match[1].split('@')[0], GROUPS)}")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return ConfigError(f"{match[1]}: several values; add -m for a sweep, or brackets for a list: key=[1,2]")
    if "Config group override must be" in text:
        # Hydra does not say which group it means
        for group, _, choice in (override.partition("=") for override in overrides):
            if group in GROUPS and choice not in choices(group):
                return _no_choice(group, choice)
    return None


def _no_choice(group: str, choice: str) -> ConfigError:
    if choice in ("", "null"):
        return ConfigError(f"{group}: every run needs one, {domains.listed(choices(group))}")
    return ConfigError(f"{group}={choice}: no such choice, {domains.closest(choice, choices(group))}")


def _near(key: str, options: list[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    if not options and parent == "readout":
        return "readout=same repeats the neuron; choose another readout to set it apart"
    hint = domains.closest(leaf, options) if options else "nothing can be set below it"
    return hint.replace("did you mean ", f"did you mean {parent}.") if parent else hint


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

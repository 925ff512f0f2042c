"""The folders of configs, and what can be chosen there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.version import setbase
from omegaconf import OmegaConf

from snnexp.config import keys
from snnexp.config.files import Files, read
from snnexp.config.loader import Loader
from snnexp.errors import ConfigError
from snnexp.isolation import HYDRA, RESOLVING, restored
from snnexp.record.names import new_id
from snnexp.spec import parts
from snnexp.spec.places import PLACES

VERSION_BASE = "1.3"
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
    "sweep",
    "debug",
)
NODES, GLOBAL = GROUPS[:-3], GROUPS[-3:]
"""The groups that become a node of the config, and those whose choices only set keys of others."""
LOGGER = tuple(keys.Logger.__annotations__)
KEYS = tuple(keys.Run.__annotations__)


def conf_dir() -> Path:
    """The folder of configs: $SNNEXP_CONF, else inside the installed package, else beside ``src/``.

    Raises:
        ConfigError: it is not there.
    """
    here = Path(__file__).resolve().parents[1]
    given = os.environ.get("SNNEXP_CONF")
    places = [Path(given).expanduser()] if given else [here / "conf", here.parents[1] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place.resolve()
    raise ConfigError(f"SNNEXP_CONF: no train.yaml in {places[0]}; unset it, or set it to a folder of configs")


def choices(group: str, folders: Sequence[Path] = ()) -> dict[str, str]:
    """What can be chosen in a group: name to description, which is the first line of comment in its file.

    Args:
        group: its name.
        folders: more configs, as of ``--config-dir``; a file there stands before one of the same name.
    """
    return {name: _description(path) for name, path in sorted(_files(group, folders).items())}


def _files(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    # of two files of a name the last one here counts
    places = [conf_dir(), *reversed(folders)]
    return {path.stem: path for place in places for path in (place / group).glob("*.yaml")}


def keys_taken(group: str, folders: Sequence[Path] = (), seen: Sequence[str] = ()) -> set[str] | None:
    """The keys that the choices of a group take, all together; None where a part takes any, or cannot be read.

    Args:
        group: its name.
        folders: as of :func:`choices`.
        seen: groups that a file of this one's refers to it from.
    """
    known: set[str] = set()
    for path in _files(group, folders).values() if group in PLACES and group not in seen else ():
        try:
            node = yaml.safe_load(read(path))
        except ConfigError:
            return None
        defaults = node.get("defaults", []) if isinstance(node, dict) else None
        if not isinstance(defaults, list):
            return None
        known |= {str(key) for key in node if key != "defaults"}
        if "_target_" in node:
            spec = parts.of(str(node["_target_"]))
            if spec.takes_all:
                return None
            known |= {*spec.arguments} - {*PLACES[group].given}
        for other in (key for default in defaults if isinstance(default, dict) for key in default):
            found = keys_taken(str(other).strip("/").partition("@")[0], folders, [*seen, group])
            if found is None:
                return None
            known |= found
    return known


def _description(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def require_global(name: str, folders: Sequence[Path]) -> None:
    """Refuse a file of one of the groups that set keys of others, where it does not say so."""
    paths = (place / f"{name}.yaml" for place in (*folders, conf_dir()))
    path = next((path for path in paths if path.is_file()), None)
    if path is not None and "@package" not in read(path)[:512]:
        raise ConfigError(f"{path}: begin with the line # @package _global_")


@contextmanager
def resolving() -> Iterator[None]:
    """What interpolations of a config may call, in place of another application's."""
    with restored(RESOLVING):
        if not os.environ.get("SNNEXP_DATA_DIR"):
            # an interpolation would take the empty text for a path
            os.environ.pop("SNNEXP_DATA_DIR", None)
        OmegaConf.register_new_resolver("new_run_id", new_id, use_cache=True, replace=True)
        yield


@contextmanager
def hydra_reading(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra, which reads the shipped configs and those of ``folders``."""
    # another application may be running in this process
    with restored(HYDRA), resolving():
        GlobalHydra.instance().clear()
        Files.register()
        setbase(VERSION_BASE)
        search = create_config_search_path(str(conf_dir()))
        for folder in folders:
            search.prepend("command-line", f"file://{folder.absolute()}", "main")
        hydra = Hydra(task_name="snnexp", config_loader=Loader(search, NODES))
        GlobalHydra.instance().initialize(hydra)
        yield hydra

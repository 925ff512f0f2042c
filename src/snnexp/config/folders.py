"""The folders of configs, and what can be chosen there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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

VERSION_BASE = "1.3"
GROUPS = (
    "data",
    "encoder",
    "network",
    "neuron",
    "readout",
    "surrogate",
    "loss",
    "decoder",
    "regularizer",
    "measure",
    "optimizer",
    "schedule",
    "trainer",
    "logger",
    "experiment",
    "sweep",
    "debug",
)
NODES, GLOBAL = GROUPS[:-3], GROUPS[-3:]
"""The groups that become a node of the config, and those whose choices only set keys of others."""
OPTIONAL = ("decoder", "regularizer", "measure", "init_from")
"""Nodes that a config may lack: one of an earlier version, or of a folder of configs of one's own."""
LOGGER = tuple(keys.Logger.__annotations__)
KEYS = (*keys.Run.__annotations__, "init_from")


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
    # one that begins with an underscore is a part of others
    return {path.stem: path for place in places for path in (place / group).glob("[!_]*.yaml")}


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
def registered_resolvers() -> Iterator[None]:
    """What interpolations of a config may call, in place of another application's."""
    with restored(RESOLVING):
        if not os.environ.get("SNNEXP_DATA_DIR"):
            # an interpolation would take the empty text for a path
            os.environ.pop("SNNEXP_DATA_DIR", None)
        OmegaConf.register_new_resolver("new_run_id", new_id, use_cache=True, replace=True)
        yield


@contextmanager
def initialized_hydra(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra, which reads the shipped configs and those of ``folders``."""
    # another application may be running in this process
    with restored(HYDRA), registered_resolvers():
        GlobalHydra.instance().clear()
        Files.register()
        setbase(VERSION_BASE)
        search = create_config_search_path(str(conf_dir()))
        for folder in folders:
            search.prepend("command-line", f"file://{folder.absolute()}", "main")
        hydra = Hydra(task_name="snnexp", config_loader=Loader(search, NODES))
        GlobalHydra.instance().initialize(hydra)
        yield hydra

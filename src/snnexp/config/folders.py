"""The config folders, and the groups and choices in them."""

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
"""Groups that become a node of the config, and groups whose choices only set keys of other nodes."""
OPTIONAL = ("decoder", "regularizer", "measure", "init_from")
"""Nodes that may be missing, in a config from an earlier version or from a user's config folder."""
LOGGER = tuple(keys.Logger.__annotations__)
KEYS = (*keys.Run.__annotations__, "init_from")


def conf_dir() -> Path:
    """Return the main config folder: $SNNEXP_CONF, else in the installed package, else next to ``src/``.

    Raises:
        ConfigError: the folder does not exist.
    """
    here = Path(__file__).resolve().parents[1]
    given = os.environ.get("SNNEXP_CONF")
    places = [Path(given).expanduser()] if given else [here / "conf", here.parents[1] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place.resolve()
    raise ConfigError(f"SNNEXP_CONF: no train.yaml in {places[0]}; unset it, or set it to a config folder")


def choices(group: str, folders: Sequence[Path] = ()) -> dict[str, str]:
    """Return the choices of a group and their descriptions, the first comment line of each file.

    Args:
        group: name of the group.
        folders: additional config folders, from ``--config-dir``; their files override shipped ones.
    """
    return {name: _description(path) for name, path in sorted(_files(group, folders).items())}


def _files(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    # of two files with the same name, the last one wins
    places = [conf_dir(), *reversed(folders)]
    # files that begin with an underscore are only included by others
    return {path.stem: path for place in places for path in (place / group).glob("[!_]*.yaml")}


def _description(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def require_global(name: str, folders: Sequence[Path]) -> None:
    """Reject a file of a group in GLOBAL without the line ``# @package _global_``."""
    paths = (place / f"{name}.yaml" for place in (*folders, conf_dir()))
    path = next((path for path in paths if path.is_file()), None)
    if path is not None and "@package" not in read(path)[:512]:
        raise ConfigError(f"{path}: begin with the line # @package _global_")


@contextmanager
def registered_resolvers() -> Iterator[None]:
    """Register the resolvers of this package; restore those of another application afterwards."""
    with restored(RESOLVING):
        if not os.environ.get("SNNEXP_DATA_DIR"):
            # an interpolation would treat the empty string as a path
            os.environ.pop("SNNEXP_DATA_DIR", None)
        OmegaConf.register_new_resolver("new_run_id", new_id, use_cache=True, replace=True)
        yield


@contextmanager
def initialized_hydra(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Initialize Hydra with the shipped configs and those of ``folders``."""
    # another application may use Hydra in this process
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

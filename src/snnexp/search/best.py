"""Write the config of a point as an experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from snnexp import config
from snnexp.record.files import write_atomically
from snnexp.text import one_line


def write_best(
    path: Path, cfg: Mapping[str, Any], choices: Mapping[str, str], about: str, folders: Sequence[Path] = ()
) -> None:
    """Write an experiment file that composes to ``cfg``: ``--config-dir FOLDER experiment=NAME``.

    Args:
        path: ``FOLDER/experiment/NAME.yaml``.
        cfg: a checked and resolved config.
        choices: the choice of each group, as in ``hydra.runtime.choices``.
        about: one-line description, shown by ``snnexp list``.
        folders: additional config directories that ``cfg`` was composed with. Choices from them are copied to
            ``FOLDER/<group>/NAME.yaml``, so that the command needs no other directory.
    """
    header = f"# {one_line(about)}\n"
    # a list of choices in one group has no name; its node is part of cfg below
    chosen = {group: choices[group] for group in config.NODES if choices.get(group)}
    for group, choice in chosen.items():
        if any((folder / group / f"{choice}.yaml").is_file() for folder in folders):
            chosen[group] = path.stem
            _write_config(path.parents[1] / group / path.name, header, cfg[group])
    defaults = {"defaults": [{f"override /{group}": choice} for group, choice in chosen.items()]}
    _write_config(path, f"# @package _global_\n{header}", defaults, cfg)


def _write_config(path: Path, head: str, *parts: Mapping[str, Any]) -> None:
    text = "\n".join(OmegaConf.to_yaml(OmegaConf.create(dict(part))) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (head + text).encode())

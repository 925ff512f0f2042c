"""Write the reference of all config keys, docs/reference.md, from the specs of parts and the comments of YAML files.

make reference
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from snnexp import config
from snnexp.config import keys
from snnexp.config.overrides import hydra_literal

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
NAMED = ("experiment", "sweep", "debug")
"""Groups whose choices set keys of other groups."""
SETTINGS = ("hydra/launcher", "hydra/sweeper")
HEAD = """\
# Config reference

All config groups, their choices, and the keys of each choice with default, allowed values and meaning. `make reference`
generates this page; `snnexp list GROUP CHOICE` prints the same for one choice, including your own choices with
`--config-dir`. [Configuration](configuration.md) describes how to set keys.
"""


class Key(NamedTuple):
    """A key of a config, as formatted on the page."""

    name: str
    default: str
    allowed: str
    meaning: str


def page() -> str:
    """Return the text of the page."""
    return "\n".join([HEAD, *_top_level(), *(line for group in config.GROUPS for line in _group(group)), *_settings()])


def _top_level() -> Iterator[str]:
    path = ROOT / "conf" / "train.yaml"
    nodes = yaml.safe_load(path.read_text())
    found = {key: value for key, value in _flat(nodes).items() if key.split(".")[0] not in ("defaults", "hydra")}
    yield from ("## Top level", "", *_table([_key(path, key, value) for key, value in found.items()]), "")


def _group(group: str) -> Iterator[str]:
    choices = config.choices(group)
    yield from (f"## {group}", "", *_rows(("choice", "meaning"), choices.items()), "")
    if group in NAMED:
        return
    shared: dict[tuple[tuple[str, ...], ...], dict[str, list[Key]]] = {}
    for choice in choices:
        found = _keys(group, choice)
        shared.setdefault(tuple(key[::2] + key[3:] for key in found), {})[choice] = found
    for members in shared.values():
        tables = [*members.values()]
        if tables[0]:
            yield from (f"### {group}={', '.join(members)}", "", *_table(*tables, names=[*members]), "")


def _keys(group: str, choice: str) -> list[Key]:
    described, _ = config.describe_choice(group, choice)
    path = ROOT / "conf" / group / f"{choice}.yaml"
    comments = _comments(path.read_text())
    return [
        Key(key, default, allowed, meaning or comments.get(key.partition(".")[2], ""))
        for key, default, allowed, meaning in described
        if not key.endswith("_target_") or default == "???"
    ]


def _settings() -> Iterator[str]:
    for group in SETTINGS:
        yield from (f"## {group}", "", *_rows(("choice", "meaning"), config.choices(group).items()), "")
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            found = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "_target_"}
            node = group.replace("/", ".")
            if found:
                table = [_key(path, key, value, node) for key, value in found.items()]
                yield from (f"### {group}={path.stem}", "", *_table(table), "")


def _key(path: Path, key: str, value: Any, prefix: str = "") -> Key:
    name = f"{prefix}.{key}" if prefix else key
    node, _, last = name.rpartition(".")
    entry = keys.lookup(None, node, last)
    allowed = str(entry.domain) if entry is not None and entry.domain is not None else ""
    return Key(name, hydra_literal(value), allowed, _comments(path.read_text()).get(key, ""))


def _table(*tables: list[Key], names: Iterable[str] = ()) -> list[str]:
    """Return a table with a row for each key, and a column for the defaults in each of ``tables``."""
    columns = [*names] if len(tables) > 1 else ["default"]
    rows = [
        (f"`{same[0].name}`", *(f"`{key.default}`" for key in same), same[0].allowed, same[0].meaning)
        for same in zip(*tables, strict=True)
    ]
    return _rows(("key", *columns, "values", "meaning"), rows)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[cell.replace("``", "`").replace("|", "\\|") for cell in row] for row in lines]
    return [f"| {' | '.join(row)} |" for row in cells]


def _flat(nodes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nodes.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _comments(text: str) -> dict[str, str]:
    """Return the comment above each key of a YAML file, by dotted key."""
    found, comment, nodes = {}, [], []
    for line in text.splitlines():
        if match := re.match(r"( *)(\w+):", line):
            nodes = [*nodes[: len(match[1]) // 2], match[2]]
            found[".".join(nodes)] = " ".join(comment)
        comment = [*comment, line.strip().lstrip("# ")] if line.strip().startswith("#") else []
    return found


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit(f"reference.py takes no arguments, got {' '.join(sys.argv[1:])}")
    PAGE.write_text(page())

"""Plain values, and the JSON and YAML that hold nothing else."""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from snnexp.errors import CheckpointError
from snnexp.record.files import read_regular

MAX_LEVELS = 32
"""Of what is nested in a record."""


def replace_non_finite(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON cannot hold, replaced by None."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: bytes | str) -> Any:
    """JSON as runs write it.

    Raises:
        ValueError: it is none, or has integers of more than 64 bits, numbers that are not finite, or too many levels.
    """
    value = json.loads(text)
    level = [value]
    for _ in range(MAX_LEVELS):
        for node in level:
            if abs(node) >= 2**63 if isinstance(node, int) else isinstance(node, float) and not math.isfinite(node):
                raise ValueError("a number that no run writes")
        level = [inner for node in level for inner in _inside(node)]
        if not level:
            return value
    raise ValueError(f"more than {MAX_LEVELS} levels")


def _inside(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file, which may be anybody's.

    Raises:
        CheckpointError: it is missing, or is not what a run writes.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        content = read_regular(path, at_most=2**20)
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # aliases multiply, tags build what they like, and nested deep enough the loader crashes
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None or depth > MAX_LEVELS:
                raise CheckpointError(f"{path}: damaged, it holds more than plain values")
        return yaml.load(content, Loader=loader)
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: missing or damaged") from error

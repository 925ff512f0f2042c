"""Parse untrusted JSON and YAML that contain only plain values."""

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
"""Maximum nesting depth."""


def replace_non_finite(value: Any) -> Any:
    """Return ``value`` with NaN and infinities, which JSON does not support, replaced by None."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is invalid, nested too deeply, or has integers beyond 64 bits or non-finite numbers.
    """
    value = json.loads(text)
    level = [value]
    for _ in range(MAX_LEVELS):
        for node in level:
            if abs(node) >= 2**63 if isinstance(node, int) else isinstance(node, float) and not math.isfinite(node):
                raise ValueError("a number that is out of range or not finite")
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(f"more than {MAX_LEVELS} levels")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def is_finite_number(value: Any) -> bool:
    """Return True for an int or float in the range of floats; bool does not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_yaml(path: Path) -> Any:
    """Read an untrusted YAML file of plain values.

    Raises:
        CheckpointError: it is missing or corrupt, or has aliases, tags or too many levels.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        content = read_regular(path, at_most=2**20)
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # aliases can grow exponentially, tags can construct objects, and deep nesting crashes the loader
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None or depth > MAX_LEVELS:
                raise CheckpointError(f"{path}: damaged, it contains tags, aliases or deep nesting")
        return yaml.load(content, Loader=loader)
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: missing or damaged") from error

"""Find the parameters that vary between runs, and group runs that differ only in the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from snnexp.config import MAY_CHANGE, flat
from snnexp.config.decoding import with_missing_nodes
from snnexp.errors import CheckpointError
from snnexp.record.facts import Facts
from snnexp.record.measures import main_metric
from snnexp.record.run import Run
from snnexp.report.statistics import is_number

Level = int | float | str
"""A value of a parameter; anything but a number is a string, such as ``true``, ``null`` or ``[64,64]``."""
NOT_SET = "not set"
DEFAULT = "default"
CLASS = "._target_"
EXCLUDED = ("seed", "hydra", "logger", *MAY_CHANGE)
"""Prefixes of keys that do not define groups: runs are replicated over seeds, and the others do not affect results."""


@dataclass(frozen=True)
class Parameter:
    """A parameter that varies between runs.

    Args:
        key: its key; of several keys that vary together, the topmost one.
        also: the other keys that vary with it.
        values: its value in each run with a readable config.
    """

    key: str
    also: tuple[str, ...]
    values: Mapping[Path, Level]

    def levels(self) -> list[Level]:
        """Return its distinct values: numbers ascending, strings in the order of the runs."""
        unique = list(dict.fromkeys(self.values.values()))
        return sorted(unique) if all(is_number(level) for level in unique) else unique

    def format(self, value: Level) -> str:
        """Format a value with at least four digits, and as many as needed to distinguish all values."""
        return f"{value:.{self._digits}g}" if isinstance(value, float) else str(value)

    @cached_property
    def _digits(self) -> int:
        numbers = {level for level in self.values.values() if isinstance(level, float)}
        return next(d for d in range(4, 18) if len({f"{number:.{d}g}" for number in numbers}) == len(numbers))


@dataclass(frozen=True)
class Group:
    """Runs with equal values of all parameters.

    Args:
        values: the values of the parameters.
        runs: runs by seed, or by run id if the seed is unknown.
        repeated: runs that are ignored because a later run has the same seed.
    """

    values: tuple[Level, ...]
    runs: Mapping[Any, Facts]
    repeated: Sequence[Facts]

    def metric(self, name: str) -> dict[Any, float]:
        """Return the metric by seed, for the runs that have it."""
        return {seed: run.metrics[name] for seed, run in self.runs.items() if name in run.metrics}


def flat_config(run: Facts) -> dict[str, Level]:
    """Return the config of a run by full keys; empty if it cannot be read."""
    try:
        content = Run(run.path).config()
    except (CheckpointError, OSError):
        return {}
    # an empty file is a lost config
    return {str(key): normalize(value) for key, value in flat(with_missing_nodes(content)).items()} if content else {}


def normalize(value: Any) -> Level:
    """Normalize a value of an override or of YAML, so that 1e-3 equals 0.001 and [64, 64] equals [64,64]."""
    if is_number(value):
        return value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(str(normalize(entry)) for entry in value)}]"
    text = str(value).strip("'\"")
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if is_number(number) else text
    return text.replace(", ", ",") if text.startswith("[") else text


def parse_overrides(overrides: Sequence[str]) -> dict[str, Level]:
    """Return keys and normalized values of overrides."""
    return {
        key.lstrip("+"): normalize(value)
        for key, _, value in (override.partition("=") for override in overrides)
        if key
    }


def varied_parameters(runs: Sequence[Facts], configs: Mapping[Path, Mapping[str, Level]]) -> list[Parameter]:
    """Return the parameters that vary between runs.

    These are the keys of overrides, if all runs have overrides and some differ, else the keys of the configs. Keys with
    equal values in every run are one parameter, as is a class with its arguments; keys that equal the seed are skipped.

    Args:
        runs: finished and unfinished runs.
        configs: the config of each run, see :func:`flat_config`.
    """
    known = [run for run in runs if run.overrides or configs[run.path]]
    overrides = [parse_overrides(run.overrides) for run in known]
    columns: dict[str, list[Level]] = {}
    if all(overrides):
        # the config takes precedence: a run may have been resumed with other values
        for key in dict.fromkeys(key for own in overrides for key in own):
            nodes = [_node(configs[run.path], key) for run in known]
            chosen = {node: own[key] for node, own in zip(nodes, overrides, strict=True) if node and key in own}
            columns[key] = [
                configs[run.path].get(key, own.get(key, chosen.get(node, DEFAULT)))
                for run, own, node in zip(known, overrides, nodes, strict=True)
            ]
    return _distinct(known, columns) or _distinct(
        known,
        {
            key: [configs[run.path].get(key, NOT_SET) for run in known]
            for key in dict.fromkeys(key for run in known for key in configs[run.path])
        },
    )


def _node(values: Mapping[str, Level], group: str) -> frozenset[tuple[str, Level]]:
    """Return the values set by the choice of a group, which identify the choice in runs that did not override it."""
    return frozenset(
        (key, value)
        for key, value in values.items()
        if key.startswith(f"{group}.") and not key.startswith(EXCLUDED) and not key.endswith(".seed")
    )


def _distinct(runs: Sequence[Facts], columns: Mapping[str, list[Level]]) -> list[Parameter]:
    """Return the parameters among ``columns``, the value of each key in each run."""
    seeds = [run.seed for run in runs]
    alike: dict[tuple[int, ...], list[str]] = {}
    for key, column in columns.items():
        if not key.startswith(EXCLUDED) and len(set(column)) > 1 and column != seeds:
            first: dict[Level, int] = {}
            alike.setdefault(tuple(first.setdefault(value, len(first)) for value in column), []).append(key)
    parameters = []
    for keys in alike.values():
        keys.sort(key=lambda key: (NOT_SET in columns[key], key.count("."), not key.endswith(CLASS)))
        nodes = tuple(key.removesuffix(CLASS) + "." for key in keys if key.endswith(CLASS))
        heads: dict[str, list[str]] = {}
        for key in keys:
            same = [head for head in heads if columns[head] == columns[key]]
            # arguments exist only with their class
            if NOT_SET in columns[key] or (key.startswith(nodes) and not key.endswith(CLASS)):
                same += [head for head in heads if head.endswith(CLASS)]
            if same:
                heads[same[0]].append(key)
            else:
                heads[key] = []
        for head, also in heads.items():
            column = columns[head]
            if head.endswith(CLASS):
                column = [str(value).rpartition(".")[2] for value in column]
            values = dict(zip((run.path for run in runs), column, strict=True))
            parameters.append(Parameter(head.removesuffix(CLASS), tuple(also), values))
    return parameters


def make_groups(runs: Sequence[Facts], parameters: Sequence[Parameter], metric: str, higher: bool) -> list[Group]:
    """Group the finished runs that have the metric; return the groups with the best mean first.

    Args:
        runs: any runs.
        parameters: the parameters that define groups.
        metric: the metric to sort by.
        higher: True if higher is better.
    """
    by_values: dict[tuple[Level, ...], dict[Any, list[Facts]]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        known = all(run.path in parameter.values for parameter in parameters)
        if run.status == "finished" and metric in run.metrics and known:
            values = tuple(parameter.values[run.path] for parameter in parameters)
            seed = run.id if run.seed is None else run.seed
            by_values.setdefault(values, {}).setdefault(seed, []).append(run)
    groups = [
        Group(
            values,
            {seed: same[-1] for seed, same in sorted(by_seed.items(), key=lambda item: str(item[0]).zfill(20))},
            [run for same in by_seed.values() for run in same[:-1]],
        )
        for values, by_seed in by_values.items()
    ]

    def mean(group: Group) -> float:
        values = group.metric(metric).values()
        return sum(values) / len(values)

    return sorted(groups, key=mean, reverse=higher)


def other_differences(groups: Sequence[Group], configs: Mapping[Path, Mapping[str, Level]]) -> list[str]:
    """Return keys other than the seed in which runs of one group differ."""
    keys: dict[str, None] = {}
    for group in groups:
        runs = list(group.runs.values())
        for key in dict.fromkeys(key for run in runs for key in configs[run.path]):
            column = [configs[run.path].get(key, NOT_SET) for run in runs]
            if not key.startswith(EXCLUDED) and len(set(column)) > 1 and column != [run.seed for run in runs]:
                keys[key] = None
    return list(keys)


def default_metric(runs: Sequence[Facts]) -> str | None:
    """Return the most frequent main metric of the finished runs."""
    main_metrics = [main_metric(run.metrics) for run in runs if run.status == "finished"]
    names = [name for name in main_metrics if name is not None]
    return max(dict.fromkeys(names), key=names.count, default=None)

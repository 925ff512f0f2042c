"""Which runs belong together: what was varied between them, and groups that differ in nothing but the seed."""

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
"""A value of a parameter; what is no number is a text, such as ``true``, ``null`` or ``[64,64]``."""
NOT_SET = "not set"
DEFAULT = "default"
CLASS = "._target_"
NO_PARAMETER = ("seed", "hydra", "logger", *MAY_CHANGE)
"""Keys that begin so make no groups: replicates are over seeds, and the others do not decide what is computed."""


@dataclass(frozen=True)
class Parameter:
    """What was varied.

    Args:
        key: its key, the top-most of those that vary with it.
        also: the others.
        values: its value in each run whose config could be read.
    """

    key: str
    also: tuple[str, ...]
    values: Mapping[Path, Level]

    def levels(self) -> list[Level]:
        """Its values, numbers ascending, texts in the order of the runs."""
        found = list(dict.fromkeys(self.values.values()))
        return sorted(found) if all(is_number(level) for level in found) else found

    def shown(self, value: Level) -> str:
        """A value in as few digits as tell all apart, but at least four."""
        return f"{value:.{self._digits}g}" if isinstance(value, float) else str(value)

    @cached_property
    def _digits(self) -> int:
        numbers = {level for level in self.values.values() if isinstance(level, float)}
        return next(d for d in range(4, 18) if len({f"{number:.{d}g}" for number in numbers}) == len(numbers))


@dataclass(frozen=True)
class Group:
    """Runs that share the values of all parameters.

    Args:
        values: those values.
        runs: seed to run; a run that does not know its seed stands for itself.
        repeated: runs left out, because a later one has the same seed.
    """

    values: tuple[Level, ...]
    runs: Mapping[Any, Facts]
    repeated: Sequence[Facts]

    def metric(self, name: str) -> dict[Any, float]:
        """Seed to metric, of the runs that have it."""
        return {seed: run.metrics[name] for seed, run in self.runs.items() if name in run.metrics}


def flat_config(run: Facts) -> dict[str, Level]:
    """The values of a run's config by their full keys; none where it cannot be read."""
    try:
        content = Run(run.path).config()
    except (CheckpointError, OSError):
        return {}
    # an empty one is that of a run whose config is lost
    return {str(key): normalize(value) for key, value in flat(with_missing_nodes(content)).items()} if content else {}


def normalize(value: Any) -> Level:
    """A value, typed or from YAML, so that equal ones are equal: 1e-3 and 0.001, [64, 64] and [64,64]."""
    if is_number(value):
        return value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(str(normalize(entry)) for entry in value)}]"
    text = str(value).strip("'\"")
    for number in (int, float):
        try:
            found = number(text)
        except ValueError:
            continue
        return found if is_number(found) else text
    return text.replace(", ", ",") if text.startswith("[") else text


def parse_overrides(overrides: Sequence[str]) -> dict[str, Level]:
    """The keys and values of overrides."""
    return {
        key.lstrip("+"): normalize(value)
        for key, _, value in (override.partition("=") for override in overrides)
        if key
    }


def varied_parameters(runs: Sequence[Facts], configs: Mapping[Path, Mapping[str, Level]]) -> list[Parameter]:
    """What was varied between runs.

    The keys that were typed, where all runs have some and they differ, else those of the configs. Keys that are equal
    in each run are one parameter, and a class is one with its arguments; what equals the seed in each run follows it.

    Args:
        runs: also those that did not finish.
        configs: of each run, see :func:`flat_config`.
    """
    known = [run for run in runs if run.overrides or configs[run.path]]
    words = [parse_overrides(run.overrides) for run in known]
    by_words: dict[str, list[Level]] = {}
    if all(words):
        # the config has the last word: a run that was resumed with more epochs was typed with fewer
        for key in dict.fromkeys(key for own in words for key in own):
            nodes = [_node(configs[run.path], key) for run in known]
            chosen = {node: own[key] for node, own in zip(nodes, words, strict=True) if node and key in own}
            by_words[key] = [
                configs[run.path].get(key, own.get(key, chosen.get(node, DEFAULT)))
                for run, own, node in zip(known, words, nodes, strict=True)
            ]
    return _distinct(known, by_words) or _distinct(
        known,
        {
            key: [configs[run.path].get(key, NOT_SET) for run in known]
            for key in dict.fromkeys(key for run in known for key in configs[run.path])
        },
    )


def _node(values: Mapping[str, Level], group: str) -> frozenset[tuple[str, Level]]:
    """What a choice of a group has set: where a run did not type it, it may still be the one that another run typed."""
    return frozenset(
        (key, value)
        for key, value in values.items()
        if key.startswith(f"{group}.") and not key.startswith(NO_PARAMETER) and not key.endswith(".seed")
    )


def _distinct(runs: Sequence[Facts], columns: Mapping[str, list[Level]]) -> list[Parameter]:
    seeds = [run.seed for run in runs]
    alike: dict[tuple[int, ...], list[str]] = {}
    for key, column in columns.items():
        if not key.startswith(NO_PARAMETER) and len(set(column)) > 1 and column != seeds:
            first: dict[Level, int] = {}
            alike.setdefault(tuple(first.setdefault(value, len(first)) for value in column), []).append(key)
    found = []
    for keys in alike.values():
        keys.sort(key=lambda key: (NOT_SET in columns[key], key.count("."), not key.endswith(CLASS)))
        nodes = tuple(key.removesuffix(CLASS) + "." for key in keys if key.endswith(CLASS))
        heads: dict[str, list[str]] = {}
        for key in keys:
            same = [head for head in heads if columns[head] == columns[key]]
            # arguments come and go with their class
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
            found.append(Parameter(head.removesuffix(CLASS), tuple(also), values))
    return found


def make_groups(runs: Sequence[Facts], parameters: Sequence[Parameter], metric: str, higher: bool) -> list[Group]:
    """The runs that finished and have the metric, in groups, the best mean first.

    Args:
        runs: any.
        parameters: what makes groups.
        metric: what they are ordered by.
        higher: whether a higher one is better.
    """
    found: dict[tuple[Level, ...], dict[Any, list[Facts]]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        known = all(run.path in parameter.values for parameter in parameters)
        if run.status == "finished" and metric in run.metrics and known:
            values = tuple(parameter.values[run.path] for parameter in parameters)
            seed = run.id if run.seed is None else run.seed
            found.setdefault(values, {}).setdefault(seed, []).append(run)
    groups = [
        Group(
            values,
            {seed: same[-1] for seed, same in sorted(by_seed.items(), key=lambda item: str(item[0]).zfill(20))},
            [run for same in by_seed.values() for run in same[:-1]],
        )
        for values, by_seed in found.items()
    ]

    def mean(group: Group) -> float:
        values = group.metric(metric).values()
        return sum(values) / len(values)

    return sorted(groups, key=mean, reverse=higher)


def other_differences(groups: Sequence[Group], configs: Mapping[Path, Mapping[str, Level]]) -> list[str]:
    """Keys in which runs of one group differ besides the seed: they were not typed, so the group hides them."""
    found: dict[str, None] = {}
    for group in groups:
        runs = list(group.runs.values())
        for key in dict.fromkeys(key for run in runs for key in configs[run.path]):
            column = [configs[run.path].get(key, NOT_SET) for run in runs]
            if not key.startswith(NO_PARAMETER) and len(set(column)) > 1 and column != [run.seed for run in runs]:
                found[key] = None
    return list(found)


def default_metric(runs: Sequence[Facts]) -> str | None:
    """The metric that most finished runs would be judged by."""
    named = [main_metric(run.metrics) for run in runs if run.status == "finished"]
    names = [name for name in named if name is not None]
    return max(dict.fromkeys(names), key=names.count, default=None)

"""Search spaces in Hydra's override grammar."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from snnexp import config
from snnexp.config.keys import domain_in, domains_of
from snnexp.errors import ConfigError
from snnexp.spec.values import Number

Space = dict[str, BaseDistribution]
"""Distribution by key, including the key's prefix, such as ``+``."""


def space(
    overrides: Sequence[str],
    params: Mapping[str, Any],
    compose: Callable[[list[str]], Mapping[str, Any]] = lambda fixed: {},
) -> tuple[list[str], Space]:
    """Parse overrides into fixed overrides and a search space.

    Args:
        overrides: overrides from the command line; they take precedence over ``params``.
        params: key to values, in Hydra's grammar: ``interval(0.5,0.99)``, ``tag(log,interval(1e-4,1e-2))``,
            ``range(1,5)``, ``choice(a,b)``, ``a,b``, and casts of them. An interval has integer values if it is cast by
            ``int(..)``, or if its bounds are integers and its key accepts only integers.
        compose: returns the config of the fixed overrides.

    Returns:
        The fixed overrides, without those of the ``hydra`` node, and the distribution of each searched key. Categorical
        choices are strings.

    Raises:
        ConfigError: a value cannot be searched, or there is nothing to search.
    """
    texts = config.quoted([*config.params_to_overrides(params), *overrides])
    with config.explain_errors(texts):
        parsed = OverridesParser.create().parse_overrides(texts)
    by_key = {override.get_key_element().lstrip("+"): override for override in parsed}
    fixed: list[str] = []
    swept: dict[str, Override] = {}
    for key, override in by_key.items():
        if override.is_sweep_override():
            if override.is_hydra_override():
                raise ConfigError(f"{key}: settings of Hydra cannot be searched")
            swept[override.get_key_element()] = override
        elif not override.is_hydra_override():
            fixed.append(str(override.input_line))
    if not swept:
        raise ConfigError(
            "hydra.sweeper.params: nothing to search; give values such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )

    @cache
    def is_whole(key: str) -> bool:
        known = [*domains_of(key), domain_in(compose(fixed), key)]
        return any(isinstance(domain, Number) and domain.whole for domain in known)

    return fixed, {key: _distribution(key.lstrip("+"), override, is_whole) for key, override in swept.items()}


def _distribution(key: str, override: Override, is_whole: Callable[[str], bool]) -> BaseDistribution:
    given: Any = override.value()
    tags: set[str] = getattr(given, "tags", set())
    if tags - {"log"} or (tags and not isinstance(given, IntervalSweep)):
        raise ConfigError(f"{key}: got tag({', '.join(sorted(tags))}, ..), must be tag(log,interval(..)) or no tag")
    if isinstance(given, IntervalSweep):
        return _interval(key, given, is_whole)
    if not isinstance(given, (ChoiceSweep, RangeSweep)):
        raise ConfigError(f"{key}: glob(..) cannot be searched; list the values: {key}=a,b")
    # processes that share a study must parse the same space
    given.shuffle = False
    if isinstance(given, ChoiceSweep):
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    return _range(key, given)


def _range(key: str, given: RangeSweep) -> BaseDistribution:
    start, stop, step = given.start, given.stop, given.step
    assert start is not None
    assert stop is not None
    # sorted() of an infinite range would never return
    if not (step and 0 < (stop - start) / step <= config.MAX_POINTS):
        shown = f"range({start:g},{stop:g},{step:g})"
        raise ConfigError(f"{key}: got {shown}, must have at least one value and at most {config.MAX_POINTS}")
    values = sorted(given.range())
    if isinstance(values[0], int):
        return IntDistribution(values[0], values[-1], step=int(abs(step)))
    return FloatDistribution(_rounded(values[0]), _rounded(values[-1]), step=_rounded(abs(step)))


def _rounded(value: float) -> float:
    """Return ``value`` without accumulated rounding errors."""
    return float(f"{value:.12g}")


def _interval(key: str, given: IntervalSweep, is_whole: Callable[[str], bool]) -> BaseDistribution:
    low, high, log = given.start, given.end, "log" in given.tags
    assert low is not None
    assert high is not None
    shown = f"interval({low:g},{high:g})"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{key}: got {shown}, must have finite bounds, the first below the second")
    if log and low <= 0:
        raise ConfigError(f"{key}: got {shown}, must have a positive lower bound on a logarithmic scale")
    # Hydra parses all bounds without a cast as floats
    counts = low == int(low) and high == int(high) and is_whole(key)
    if counts or (isinstance(low, int) and isinstance(high, int)):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def grid_points(searched: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return all points of a grid, shuffled, so that any prefix covers the whole space."""
    values = {key: _values(key, distribution) for key, distribution in searched.items()}
    size = math.prod(map(len, values.values()))
    if size > config.MAX_POINTS:
        raise ConfigError(f"hydra.sweeper.params: got a grid of {size} points, must be at most {config.MAX_POINTS}")
    every = [dict(zip(values, cell, strict=True)) for cell in itertools.product(*values.values())]
    random.Random(0).shuffle(every)
    return every


def _values(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [distribution.low + index * distribution.step for index in range(count)]
    raise ConfigError(
        f"{key}: an interval has infinitely many values; use range(..) or choice(..) for a grid, or sampler=tpe"
    )


def bounds(distribution: BaseDistribution) -> list[str]:
    """Return all choices, or the lowest and the highest value, as override values."""
    if isinstance(distribution, CategoricalDistribution):
        return [str(choice) for choice in distribution.choices]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return [as_override(value, distribution) for value in (distribution.low, distribution.high)]


def as_override(value: Any, distribution: BaseDistribution) -> str:
    """Format a value of a distribution as an override value."""
    if isinstance(distribution, FloatDistribution):
        return repr(float(value) if distribution.step is None else _rounded(value))
    return str(value)


def suggest(trial: Trial, key: str, distribution: BaseDistribution) -> str:
    """Suggest the value of a key in a trial, as an override value."""
    if isinstance(distribution, CategoricalDistribution):
        return as_override(trial.suggest_categorical(key, distribution.choices), distribution)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    suggest: Any = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    bounds = (distribution.low, distribution.high)
    return as_override(suggest(key, *bounds, step=distribution.step, log=distribution.log), distribution)

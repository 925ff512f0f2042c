"""What each argument may be, by its name: one name, one meaning, one domain.

Constructors call :func:`check` on what they are given; ``config`` walks a composed config through the same table before
anything heavy is imported. A domain answers ``value in domain`` and its ``str`` says what would do.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from snnexp.errors import ConfigError
from snnexp.text import shown

FLOAT32_MAX = 3.4028234663852886e38
WHOLE_MAX = 2**31 - 1
"""What a whole number may be where its domain has no end: sizes and counts that are multiplied still fit 64 bits."""


class Domain(Protocol):
    """A set of values that can say what it contains."""

    def __contains__(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    """A number that is finite in 32 bits, in [low, high] less the ends that are open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        # NaN compares false, and an int may be too large for any float
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        largest = WHOLE_MAX if self.whole and math.isinf(self.high) else FLOAT32_MAX
        return abs(value) <= largest and above and below

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        above = f"greater than {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        high = str(int(self.high)) if self.whole and math.isfinite(self.high) else f"{self.high:g}"
        if math.isinf(self.low) and math.isinf(self.high):
            return kind
        if math.isinf(self.high):
            return f"{kind} {above}, below 2^31" if self.whole else f"{kind} {above}"
        if self.open_high:
            return f"{kind} {above} and less than {high}"
        if self.open_low:
            return f"{kind} {above} and at most {high}"
        return f"{kind} from {self.low:g} to {high}"


@dataclass(frozen=True)
class Parameter:
    """A neuron parameter: a number, or an initializer or tensor, whose drawn values the neuron checks."""

    number: Number

    def __contains__(self, value: object) -> bool:
        return value in self.number or _describes_an_object(value)

    def __str__(self) -> str:
        return f"{self.number}, or an initializer"


@dataclass(frozen=True)
class Part:
    """An object, or the config node that describes one."""

    example: str

    def __contains__(self, value: object) -> bool:
        return _describes_an_object(value)

    def __str__(self) -> str:
        return f"a mapping such as {self.example}"


class OneOf:
    """One of a few words."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Kind:
    """Any value of a Python type."""

    type: type
    name: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, self.type)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Text:
    """A text that can be part of a path and of a line: no control characters, no halves of characters."""

    pattern: str = ".*"
    name: str = "a text without control characters"

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            return False
        return len(value) <= 4096 and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MappingOf:
    """A mapping from texts to values that each lie in ``each``."""

    each: Domain
    name: str

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Mapping) or any(key not in TEXT for key in value):
            return False
        return all(element in self.each for element in value.values())

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ListOf:
    """A list whose every element lies in ``each``."""

    each: Domain
    length: int | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or self.length not in (None, len(value)):
            return False
        return all(element in self.each for element in value)

    def __str__(self) -> str:
        return (
            f"a list of {self.length} elements, each {self.each}"
            if self.length
            else f"a list, each element {self.each}"
        )


@dataclass(frozen=True)
class Either:
    """The union of two domains."""

    first: Domain
    second: Domain

    def __contains__(self, value: object) -> bool:
        return value in self.first or value in self.second

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


def _describes_an_object(value: object) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value
    return not isinstance(value, (bool, int, float, str, list, tuple, type(None)))


FINITE = Number()
POSITIVE = Number(low=0, open_low=True)
SCALE = Number(low=1e-30, high=1e30)
"""Of what is inverted and multiplied by others in 32 bits."""
NOT_NEGATIVE = Number(low=0)
COUNT = Number(low=1, whole=True)
INDEX = Number(low=0, whole=True)
SEED = Number(low=0, high=2**32 - 1, whole=True)
FRACTION = Number(low=0, high=1)
BELOW_ONE = Number(low=0, high=1, open_high=True)
FLAG = Kind(bool, "true or false")
TEXT = Text()
NAME = Text(r"(?!\.)[\w.-]{1,100}", "a text of letters, digits, '.', '_' and '-', at most 100, the first no '.'")
NULL = Kind(type(None), "null")

DOMAINS: dict[str, Domain] = {
    # the run
    "seed": SEED,
    "num_steps": Number(low=1, high=1_000_000, whole=True),
    "kernel": OneOf("auto", "reference", "fused", "triton"),
    "name": NAME,
    "published": MappingOf(FINITE, "a mapping of metric names to figures"),
    # data
    "root": TEXT,
    "download": FLAG,
    "batch_size": COUNT,
    "drop_last": FLAG,
    "val_size": INDEX,
    "num_samples": COUNT,
    "spikes": Either(FLAG, NULL),
    "sample_seed": Either(SEED, NULL),
    "num_workers": Number(low=0, high=1024, whole=True),
    "mode": OneOf("linear", "sqrt"),
    # neurons
    "beta": Parameter(FRACTION),
    "threshold": Parameter(NOT_NEGATIVE),
    "learn_beta": FLAG,
    "learn_threshold": FLAG,
    "reset": OneOf("subtract", "zero", "none"),
    "feedback": OneOf("linear", "one_to_one", "conv2d"),
    "V": Parameter(FINITE),
    "learn_recurrent": FLAG,
    "recurrent": FLAG,
    "tau_mem_inv": Parameter(POSITIVE),
    "tau_syn_inv": Parameter(POSITIVE),
    "v_th": Parameter(FINITE),
    "v_leak": Parameter(FINITE),
    "v_reset": Parameter(FINITE),
    "learn": ListOf(OneOf("tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset")),
    "log_tau": FLAG,
    "dt": SCALE,
    # initializers
    "value": FINITE,
    "low": FINITE,
    "high": FINITE,
    "mean": FINITE,
    "std": POSITIVE,
    # surrogates
    "alpha": SCALE,
    "slope": SCALE,
    "width": SCALE,
    "surrogate": Part("{_target_: snnexp.surrogates.ATan}"),
    # network
    "hidden": ListOf(COUNT),
    "channels": ListOf(COUNT),
    "kernel_size": Either(COUNT, NULL),
    "stride": COUNT,
    # losses
    "correct_rate": FRACTION,
    "incorrect_rate": FRACTION,
    "on_target": FINITE,
    "off_target": FINITE,
    # optimizer
    "lr": POSITIVE,
    "betas": ListOf(BELOW_ONE, length=2),
    "momentum": BELOW_ONE,
    "weight_decay": NOT_NEGATIVE,
    "schedule": OneOf("constant", "cosine"),
    # trainer and logger
    "accelerator": OneOf("auto", "cpu", "gpu", "cuda", "mps"),
    "devices": COUNT,
    "strategy": OneOf("auto", "ddp"),
    "precision": OneOf("32-true", "bf16-mixed"),
    "max_epochs": COUNT,
    "limit_batches": Either(COUNT, NULL),
    "limit_test_batches": Either(COUNT, NULL),
    "log_every_n_steps": COUNT,
    "save_every_n_epochs": COUNT,
    "save_every_s": NOT_NEGATIVE,
    "draw_every_n_epochs": INDEX,
    "draw_every_s": NOT_NEGATIVE,
    "tensorboard": FLAG,
    # sweeps
    "workers": Either(COUNT, NULL),
    "threads": Either(COUNT, NULL),
    "gpus": Either(INDEX, NULL),
    "members": COUNT,
    "timeout_s": Either(POSITIVE, NULL),
    "memory_gb": Either(POSITIVE, NULL),
    "kind": OneOf("processes", "stacked", "slurm"),
    "cluster": OneOf("slurm", "local"),
    "timeout_min": COUNT,
    **dict.fromkeys(("partition", "account", "qos", "constraint"), Either(NAME, NULL)),
}


def check(values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise :class:`ConfigError`, naming the keys, for values that lie outside the domains of their names."""
    refused = [
        f"{prefix}{name}: got {_kind(value)}{shown(value)}, must be {domain}"
        for name, value in values.items()
        if (domain := DOMAINS.get(name)) is not None and value not in domain
    ]
    if refused:
        raise ConfigError(*refused)


def _kind(value: object) -> str:
    """What has to be said of a text that reads like another value."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        float(value)
    except ValueError:
        return "the text " if value.lower() in ("true", "false", "null") else ""
    return "the text "

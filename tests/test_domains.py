"""Domains: accepted and refused values, and error messages."""

import math

import pytest
import torch

from snnexp.config import keys
from snnexp.errors import ConfigError
from snnexp.initializers import Initializer, Normal
from snnexp.spec import parts
from snnexp.spec.checked import check
from snnexp.spec.places import PLACES
from snnexp.spec.values import (
    Domain,
    Either,
    Kind,
    ListOf,
    MappingOf,
    Number,
    OneOf,
    Parameter,
    Part,
    Text,
    error_message,
)
from snnexp.text import format_value, one_line, suggest

GIVEN = {(place, name) for place, here in PLACES.items() for name in here.given}
ARGUMENTS = [
    (place, target, name)
    for place in PLACES
    for target, spec in parts.shipped(place).items()
    for name in spec.arguments
    if (place, name) not in GIVEN
]
DRAWN = Part(Initializer)
TARGET = {"_target_": "snnexp.initializers.Normal", "mean": 1, "std": 1}


@pytest.mark.parametrize(
    ("domain", "accepted", "refused"),
    [
        (Number(), [0, -3, 1.5, 1e38], [1e39, 10**400, math.nan, math.inf, -math.inf, True, False, "1", None, [1], 1j]),
        (Number(low=0), [0, 0.0, 7], [-1e-9, -1, True]),
        (Number(low=0, open_low=True), [1e-300, 1], [0, 0.0, -0.0, -1]),
        (Number(low=0, high=1), [0, 1, 0.5], [-0.001, 1.001, math.nan, True]),
        (Number(low=0, high=1, open_low=True), [1, 0.5], [0, 2]),
        (Number(low=1, whole=True), [1, 2**31 - 1], [0, 2**31, 10**40, 3e9, 1.0, 2.5, True, "3", math.inf]),
        (Number(low=0, high=2**32, whole=True), [2**32], [2**32 + 1]),
        (
            Parameter(Number(low=0, high=1), Part(Initializer)),
            [0.5, 1, torch.tensor(0.5), Normal(), TARGET],
            [2, math.nan, True, "0.5"],
        ),
        (Parameter(Number(), DRAWN), [-5.0], [None, [0.5], (0.5,), {}, {"mean": 1}]),
        (OneOf("a", "b"), ["a", "b"], ["A", "", "ab", None, 1, True, ["a"]]),
        (Kind(bool, "true or false"), [True, False], [0, 1, "true", None]),
        (Kind(type(None), "null"), [None], [0, False, ""]),
        (Text(), ["", "a", "/daten/größe mit raum"], [1, None, b"a", "a\nb", "\0", "\x1b[2J", "\udc80", "a" * 5000]),
        (MappingOf(Number(), "figures"), [{}, {"test/l1": 0.1}], [[], 1, {"a": "b"}, {1: 2}, {"a\n": 1}, {"a": {}}]),
        (ListOf(Number(low=1, whole=True)), [[], [1], (2, 3)], [[0], [1, True], 1, "12", None, {1: 2}]),
        (ListOf(Number(), length=2), [[1, 2], (0.5, 1)], [[], [1], [1, 2, 3], [1, math.nan]]),
        (Either(Number(low=1, whole=True), Kind(type(None), "null")), [1, None], [0, False, "null"]),
    ],
    ids=lambda value: str(value) if not isinstance(value, list) else "",
)
def test_accepts_and_refuses(domain: Domain, accepted: list[object], refused: list[object]) -> None:
    assert [value for value in accepted if value not in domain] == []
    assert [value for value in refused if value in domain] == []


@pytest.mark.parametrize(("place", "target", "name"), ARGUMENTS)
def test_no_argument_accepts_nan_or_infinity(place: str, target: str, name: str) -> None:
    domain = parts.shipped(place)[target].arguments[name].domain
    for value in (math.nan, math.inf, -math.inf):
        assert value not in domain
        assert error_message(name, value, domain).startswith(f"{name}: got {value}, must be ")


@pytest.mark.parametrize(("place", "target", "name"), ARGUMENTS)
def test_only_flags_accept_booleans(place: str, target: str, name: str) -> None:
    domain = parts.shipped(place)[target].arguments[name].domain
    assert {True in domain, False in domain} == {"true or false" in str(domain)}


@pytest.mark.parametrize(
    ("key", "accepted", "refused"),
    [
        ("data.seed", [0, 2**32 - 1], [-1, 2**32, 0.5, None]),
        ("data.batch_size", [1], [0]),
        ("data.num_workers", [0, 8, 1024], [-1, 1025]),
        ("neuron.beta", [0, 1, 0.9], [-0.1, 1.1, "0.9"]),
        ("neuron.threshold", [0, 2.5], [-1]),
        ("neuron.V", [-2, 0, 3.5], [math.nan]),
        ("neuron.reset", ["subtract", "zero", "none"], [None, "hard"]),
        ("neuron.feedback", ["linear", "one_to_one", "conv2d"], [None, "all"]),
        ("neuron.kernel_size", [1, 3, None], [0, -1, 3.0]),
        ("neuron.tau_mem_inv", [100.0], [0, -1]),
        ("neuron.learn", [[]], ["v_th", ["beta"], None]),
        ("neuron.dt", [1e-3], [0, -1e-3]),
        ("initializer.std", [0.1], [0, -1]),
        ("network.hidden", [[], [10, 20]], [10, [0], [1.5]]),
        ("loss.correct_rate", [0, 1, 0.8], [1.1, -0.1]),
        ("optimizer.lr", [1e-3], [0, -1]),
        ("optimizer.betas", [[0.9, 0.999]], [[0.9], [0.9, 1.1], 0.9]),
        ("trainer.limit_batches", [1, None], [0, 0.5]),
        ("trainer.limit_test_batches", [1, None], [0, 0.5]),
    ],
)
def test_keys(key: str, accepted: list[object], refused: list[object]) -> None:
    found = keys.domains_of(key)
    assert found
    for domain in found:
        assert [value for value in accepted if value not in domain] == []
        assert [value for value in refused if value in domain] == []


@pytest.mark.parametrize(
    ("node", "key", "accepted", "refused"),
    [
        (keys.Run, "seed", [0, 2**32 - 1], [-1, 2**32, 0.5, None]),
        (keys.Run, "num_steps", [1, 1000], [0, -1, 2.0]),
        (keys.Run, "name", ["a", "a-2.1", "größe", "x" * 100], ["", ".", "..", "a/b", "a b", "x" * 101, "a\n", None]),
        (keys.Run, "published", [{}, {"test/l1": 0.1}], [[], {"a": "b"}]),
        (keys.Logger, "save_every_s", [0, 0.5, 30], [-1, None]),
        (keys.Launcher, "workers", [1, None], [0, True]),
    ],
)
def test_keys_outside_parts(node: type, key: str, accepted: list[object], refused: list[object]) -> None:
    for value in accepted:
        check(node, {key: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            check(node, {key: value})


def test_refusal_messages() -> None:
    cases = {
        "beta: got 1.5, must be a finite number from 0 to 1, or an initializer": ("neuron.beta", 1.5),
        "dt: got -1, must be a finite number from 1e-30 to 1e+30": ("neuron.dt", -1),
        "num_steps: got 0, must be a whole number from 1 to 1000000": ("network.num_steps", 0),
        "reset: got null, must be one of subtract, zero, none": ("neuron.reset", None),
        "download: got yes, must be true or false": ("data.download", "yes"),
        "kernel_size: got '', must be a whole number of at least 1, below 2^31, or null": ("neuron.kernel_size", ""),
        "betas: got [0.9, 1], must be a list of 2 elements, each a finite number of at least 0 and less than 1": (
            "optimizer.betas",
            [0.9, 1],
        ),
    }
    for sentence, (key, value) in cases.items():
        assert error_message(key.partition(".")[2], value, keys.domains_of(key)[0]) == sentence


def test_check_prepends_the_prefix_and_ignores_unknown_keys() -> None:
    check(keys.Run, {"seed": 5, "somebody_elses": object()})
    with pytest.raises(ConfigError, match=r"^somewhere\.seed: got -2, "):
        check(keys.Run, {"num_steps": 1, "seed": -2}, prefix="somewhere.")


def test_refusal_is_a_value_error_with_exit_code_2() -> None:
    with pytest.raises(ValueError, match="seed") as caught:
        check(keys.Run, {"seed": -1})
    assert caught.value.exit_code == 2


def test_format_value() -> None:
    assert [format_value(value) for value in (None, True, False, "", 0.5)] == ["null", "true", "false", "''", "0.5"]
    assert len(format_value("x" * 1000)) == 40
    assert format_value("a\x1b[2Jb\0\udc80") == "a\\x1b[2Jb\\x00\\udc80"
    assert one_line("a\n b\t\rc") == "a b c"


def test_suggest() -> None:
    assert suggest("treshold", ["beta", "threshold"]) == "did you mean threshold?"
    assert suggest("xyzzy", ["b", "a"]) == "there are a, b"

"""Systematic and random invalid overrides: a one-line error that names the key, without heavy imports."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from fuzz import overrides as fuzzed
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from snnexp import config
from snnexp.cli.points import prepare_sweep
from snnexp.config import check, compose
from snnexp.errors import ConfigError

RECIPES = ("mnist_leaky", "mnist_rleaky_conv", "mnist_parametrized_lif", "regression_sqrt", "digits_leaky")
BAD = ("nan", "inf", "-inf", "-1", "0", "null", "'${nothing}'", "???")
VALID = {
    **dict.fromkeys(("seed", "val_size", "num_workers", "weight_decay", "save_every_s"), "0"),
    **dict.fromkeys(("draw_every_n_epochs", "draw_every_s"), "0"),
    **dict.fromkeys(("beta", "threshold", "correct_rate", "incorrect_rate", "high"), "0"),
    **dict.fromkeys(("mean", "V", "v_th", "v_leak", "v_reset", "low", "on_target", "off_target"), "-1 0"),
    **dict.fromkeys(("limit_batches", "limit_test_batches", "data.spikes", "threads"), "null"),
    **dict.fromkeys(
        ("early_stopping", "init_from.run", "gradient_clip", "neuron_lr", "norm", "pool", "bias", "init"), "null"
    ),
    **dict.fromkeys(("T_max", "length", "unlabeled"), "null"),
    **dict.fromkeys(("label_smoothing", "dropout", "padding", "eta_min"), "0"),
    **dict.fromkeys(("class_weights", "transform", "target_transform", "augment", "scale", "in_memory"), "null"),
    **dict.fromkeys(("val_fraction", "test_fraction", "fold", "sample_seed"), "0 null"),
    "split_seed": "0",
    # linear feedback has no kernel
    "readout.kernel_size": "null",
}
"""The values in BAD that are valid, by key or by the last component of a key."""


def leaves(node: Any, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        elif key not in ("_target_", "published", "decoder", "regularizer", "measure", "also"):
            # empty nodes are choices, not values
            yield f"{path}{key}"


@cache
def composed(recipe: str) -> DictConfig:
    return config.compose_unchecked([f"experiment={recipe}"])[0]


def bad() -> Iterator[tuple[str, str, str]]:
    """Yield a recipe, an invalid override, and the key that the error must name."""
    seen = set()
    for recipe in RECIPES:
        plain: Any = OmegaConf.to_container(composed(recipe), resolve=False)
        resolved = compose([f"experiment={recipe}"])
        del plain["published"]
        for key in leaves(plain):
            if key in seen:
                continue
            seen.add(key)
            fine = (VALID.get(key) or VALID.get(key.rpartition(".")[2], "")).split()
            wrong = "5" if isinstance(OmegaConf.select(resolved, key), (bool, str, list)) else "word"
            yield recipe, f"{key}{key[-1]}=1", f"{key}{key[-1]}"
            yield from ((recipe, f"{key}={value}", key) for value in (wrong, *BAD) if value not in fine)


def refusal(recipe: str, override: str) -> str:
    """The error of :func:`compose`, with the override applied by Hydra to a recipe that is composed once."""
    cfg = composed(recipe).copy()
    try:
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides([override]), cfg)
        check(cfg)
    except Exception as error:
        return str(error if isinstance(error, ConfigError) else config.explain(error, [override]))
    return "accepted"


@pytest.mark.slow
def test_invalid_values_of_every_key_are_refused_in_one_line_that_names_it() -> None:
    # a readout is a choice, not a value
    cases = [case for case in bad() if case[2] != "readout"]
    assert len(cases) >= 600
    messages = {(override, key): refusal(recipe, override) for recipe, override, key in cases}
    assert [override for (override, key), line in messages.items() if key not in line.partition(": ")[0]] == []
    assert [line for line in messages.values() if len(line) > 190 or not line.isprintable()] == []


@pytest.mark.slow
def test_the_shortcut_gives_the_error_of_compose() -> None:
    cases = [case for case in bad() if case[2] != "readout"]
    for recipe, override, _ in cases[::40]:
        with pytest.raises(ConfigError) as caught:
            compose([f"experiment={recipe}", override])
        assert str(caught.value) == refusal(recipe, override)


@pytest.mark.slow
def test_random_overrides_raise_config_errors_only() -> None:
    accepted = 0
    for overrides in fuzzed(100):
        try:
            compose(overrides)
            accepted += 1
        except ConfigError as error:
            for sentence in str(error).splitlines():
                assert sentence.isprintable()
                assert 0 < len(sentence) <= 190, overrides
    assert accepted < 50


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+" + "k" * 3000 + "=1", ["kkkkk", "unknown key"]),
        ("data.root=" + "x" * 5000, ["data.root", "4096"]),
        ("name=" + "x" * 4000, ["name: got xxx"]),
        ("name='a\nb'", ["name: got a b"]),
        ("name='\x1b[2J'", ["name: got \\x1b[2J"]),
        ("network.hidden=" + "[" * 900 + "]" * 900, ["network.hidden", "nested too deeply"]),
        ("+published=" + "{a:" * 100 + "1" + "}" * 100, ["published", "nested too deeply"]),
        ("+a=json_str(1)", ["a"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_long_deep_and_unprintable_strings(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == []
    assert sentence.isprintable()
    assert len(sentence) <= 190


FIVE = ["neuron.bta=1", "optimizer.larate=2", "data.size=3", "foo=4", "trainer.epoks=3"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (FIVE, FIVE),
        ([*FIVE, "loss=nothing", "encoder=other"], [*FIVE, "loss=nothing", "encoder=other"]),
        # keys of an invalid choice are not reported, nor those of any choice of an invalid recipe
        ([*FIVE, "data=nowhere", "data.path=there"], [*(word for word in FIVE if "data" not in word), "data=nowhere"]),
        ([*FIVE, "experiment=none"], ["foo=4", "experiment=none"]),
    ],
)
def test_all_unknown_keys_and_choices_are_reported_at_once(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    wrong = [word if word.partition("=")[0] in config.GROUPS else word.partition("=")[0] for word in named]
    assert sorted(sentence.partition(":")[0] for sentence in caught.value.args) == sorted(wrong)


def test_a_sweep_reports_all_of_them_too() -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_sweep([*FIVE, "loss=nothing", "optimizer=adam,none", "seed=0,1"])
    named = [sentence.partition(":")[0] for sentence in caught.value.args]
    assert sorted(named) == sorted([*(word.partition("=")[0] for word in FIVE), "loss=nothing"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.root=/daten/größe mit raum", "/daten/größe mit raum"),
        ("data.root=/tmp/a=b", "/tmp/a=b"),
        ("data.root=C:\\daten\\größe\\", "C:\\daten\\größe\\"),
        ("data.root=\\\\server\\größe", "\\\\server\\größe"),
        ("data.root=雪 (1)", "雪 (1)"),
        ("data.root=a b", "a b"),
        # these parse without quotes
        ("data.root=C:\\daten", "C:\\daten"),
        ("data.root='größe'", "größe"),
        ("data.root=a\\=b", "a=b"),
    ],
)
def test_values_are_quoted_automatically(override: str, value: str) -> None:
    assert compose([override]).data.root == value
    (quoted,) = config.quoted([override])
    assert config.quoted([quoted]) == [quoted], "idempotent"


@pytest.mark.parametrize(
    "override", ["data.root=[größe", "data.root=größe,b", "data.root=${größe", "größe=1", "data.root='ö"]
)
def test_ambiguous_values_are_not_quoted(override: str) -> None:
    assert config.quoted([override]) == [override]
    with pytest.raises(ConfigError):
        compose([override])


@pytest.mark.slow
def test_errors_need_no_heavy_imports() -> None:
    script = (
        "import sys\nfrom snnexp.config import compose\nfrom snnexp.errors import ConfigError\n"
        "for bad in ['seed=-1', 'sed=1'], ['experiment=regression_sqrt', 'loss=ce_membrane'], ['+neuron.foo=1']:\n"
        "    try:\n        compose(bad)\n    except ConfigError:\n        print('refused')\n"
        "print({'torch', 'lightning', 'torchvision', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 3 + ["set()"]

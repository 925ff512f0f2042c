"""The comparison of runs in any state: its numbers are those of their files."""

import csv
import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from snnexp.errors import CheckpointError, ConfigError
from snnexp.figures import comparison as figures
from snnexp.figures import style
from snnexp.record.run import Run
from snnexp.report import comparison, findings, pictures
from snnexp.report.groups import normalize
from snnexp.sweeps.ledger import write_summary

EPOCHS = 4


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *path, last = key.split(".")
        for word in path:
            node = node.setdefault(word, {})
        node[last] = value
    return tree


def make_run(parent: Path, score: float | None, seed: int = 0, typed: bool = True, **facts: Any) -> Path:
    """A run directory; ``facts`` may contain keys of the config, with two underscores for a dot."""
    keys = {key.replace("__", "."): value for key, value in facts.items() if key not in RECORD}
    record = {key: value for key, value in facts.items() if key in RECORD}
    config = {"seed": seed, "data.seed": seed, "optimizer.lr": 0.001, "logger.root": str(parent), **keys}
    overrides = [f"{key}={value}" for key, value in {"experiment": "mine", **keys, "seed": seed}.items()] * typed
    run = Run.prepare(parent, yaml.safe_dump(nested(config)), overrides).publish({"seed": seed, "experiment": "mine"})
    for epoch in range(EPOCHS):
        run.log_metrics({"step": epoch, "epoch": epoch, "train/epoch_loss": 1 / (epoch + 1 + seed)})
    if score is not None:
        measures = {"test/accuracy": score, "test/loss": 1 - score, "test/firing_rate/hidden1": 0.25}
        record = {"status": "finished", "metrics": measures, "wall_s": {"total": 12.5}} | record
    run.update(**record)
    run.close()
    return run.path


RECORD = ("status", "reason", "stopped_early", "metrics", "versions", "wall_s", "kernel", "decoder", "higher_is_better")


STOP = {"epoch": 3, "step": 12, "reason": "val/loss did not improve"}


def test_early_stopping_is_noted(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", 0.5, seed, **({"stopped_early": STOP} if seed else {})) for seed in (0, 1)]
    words = " ".join(report(runs, tmp_path).split())
    assert "A run stopped early; the mean of a group ends at its shortest run." in words
    rows = {row["seed"]: row["stopped early"] for row in table(tmp_path, "runs")}
    assert rows == {"0": "", "1": "after epoch 3, step 12: val/loss did not improve"}
    assert "stopped early" not in report(runs[:1], tmp_path / "one")


def report(paths: list[Path], folder: Path, **options: Any) -> str:
    return comparison.report(paths, folder / "report", "Mine", **options).read_text()


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "report" / "figures" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def page_text(page: str) -> str:
    """The text of a page, without its figures."""
    words = re.sub(r"<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(words).split())


def test_a_users_metric_determines_its_direction(tmp_path: Path) -> None:
    """As recorded in run.json, since its code may be missing."""
    for known, order in (({"mine": True}, "best first (higher is better)"), ({}, "lowest first")):
        folder = tmp_path / str(len(known))
        runs = [
            make_run(folder, score, seed, metrics={"test/mine": score}, higher_is_better=known)
            for seed, score in enumerate((0.5, 0.7))
        ]
        found = findings.compare(runs, "test/mine")
        assert found.order == order


def test_decoders_are_shown_with_accuracies(tmp_path: Path) -> None:
    names = {0: "spike_count", 1: "max_voltage"}
    runs = [make_run(tmp_path / "runs", 0.5, seed, decoder=name) for seed, name in names.items()]
    words = page_text(report(runs, tmp_path))
    assert "decoder max_membrane, spike_count" in words
    assert "The runs use different decoders: max_membrane, spike_count." in words


SCORES = {0.001: [0.80, 0.84, 0.85], 0.01: [0.90, 0.91, 0.95]}


@pytest.fixture
def two_groups(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "runs", score, seed, optimizer__lr=lr)
        for lr, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


@pytest.mark.slow
def test_groups_summarize_their_seeds(tmp_path: Path, two_groups: list[Path]) -> None:
    words = page_text(report(two_groups, tmp_path))
    rows = table(tmp_path, "groups")
    assert [float(row["optimizer.lr"]) for row in rows] == [0.01, 0.001], "the higher accuracy first"
    for row in rows:
        scores = SCORES[float(row["optimizer.lr"])]
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(scores), scipy.stats.sem(scores))
        expected = [3, np.mean(scores), np.std(scores, ddof=1), low, high]
        names = ("n", "mean", "std", "95 % from", "95 % to")
        assert [float(row[name]) for name in names] == pytest.approx(expected)
        for number in expected[1:]:
            assert f"{number:.4g}" in words
    assert "6: 6 finished" in words
    assert "test/accuracy over seeds, best first (higher is better)" in words
    further = table(tmp_path, "further_metrics")
    assert float(further[0]["test/loss"]) == pytest.approx(1 - np.mean(SCORES[0.01]))
    assert not any("firing_rate" in name for name in further[0]), "metrics of layers are not included"


@pytest.mark.slow
def test_two_groups_are_compared_seed_by_seed(tmp_path: Path, two_groups: list[Path]) -> None:
    words = page_text(report(two_groups, tmp_path))
    test = scipy.stats.ttest_rel(SCORES[0.01], SCORES[0.001])
    low, high = test.confidence_interval()
    assert "test/accuracy of lr=0.01 is higher by 0.09 on average than that of lr=0.001" in words
    assert f"{low:.4g} to {high:.4g}, p = {test.pvalue:.4g}, paired t-test over 3 common seeds" in words
    assert "its p-value is at least 0.25" in words
    assert table(tmp_path, "paired")[-1]["value"] == "0.25"


@pytest.mark.slow
def test_importance_includes_the_seed(tmp_path: Path, two_groups: list[Path]) -> None:
    report(two_groups, tmp_path)
    rows = {row["parameter"]: float(row["share"]) for row in table(tmp_path, "importance")}
    within = sum(np.var(scores) * 3 for scores in SCORES.values()) / 4
    total = np.var([score for scores in SCORES.values() for score in scores], ddof=1)
    assert rows.keys() == {"optimizer.lr", "seed"}
    assert rows["optimizer.lr"] == pytest.approx(1 - within / total)


@pytest.mark.slow
def test_curves_are_means_with_a_band_from_lowest_to_highest(tmp_path: Path, two_groups: list[Path]) -> None:
    report(two_groups, tmp_path)
    rows = [row for row in table(tmp_path, "curves_train_epoch_loss") if row["group"] == "0.01"]
    assert [float(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    for epoch, row in enumerate(rows):
        losses = [1 / (epoch + 1 + seed) for seed in range(3)]
        found = [float(row[name]) for name in ("mean", "lowest", "highest")]
        assert found == pytest.approx([np.mean(losses), min(losses), max(losses)])


def test_long_curves_are_averaged_in_bins(tmp_path: Path) -> None:
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0) / 500)
    place, mean, low, _ = pictures._band([(x, y), (x, y + 2)])
    assert len(place) == 200
    assert mean == pytest.approx(np.sin(place / 500) + 1, abs=0.01)
    assert low == pytest.approx(mean - 1)


@pytest.mark.slow
def test_failed_runs_and_points_are_listed_with_their_reason(tmp_path: Path, two_groups: list[Path]) -> None:
    sweep = tmp_path
    runs = tmp_path / "runs"
    failed = make_run(runs, None, 0, optimizer__lr=5.0, status="diverged", reason="loss is NaN in layer hidden1")
    killed = make_run(runs, None, 1, optimizer__lr=5.0)
    damaged = make_run(runs, 0.5, 2, optimizer__lr=5.0)
    (damaged / "run.json").write_text("{")
    stripped = make_run(runs, 0.99, 3, optimizer__lr=0.01)
    (stripped / "overrides.yaml").unlink()
    rows = [
        {"optimizer.lr": "5.0", "seed": "0", "status": "diverged", "run": "", "reason": "told with its directory"},
        {"optimizer.lr": "7.0", "seed": "0", "status": "failed", "run": "", "reason": "no memory for it"},
        {"optimizer.lr": "0.01", "seed": "0", "status": "finished", "run": "20200101-000000-abcd", "reason": ""},
        {"optimizer.lr": "0.01", "seed": "0", "status": "finished", "run": two_groups[3].name, "reason": ""},
    ]
    write_summary(sweep / "summary.csv", rows)
    paths = [*two_groups, failed, killed, damaged, stripped]
    words = page_text(report(paths, tmp_path, summaries=[sweep / "summary.csv"]))
    listed = table(tmp_path, "not_finished")
    assert [(row["run"], row["status"], row["reason"]) for row in listed] == [
        (failed.name, "diverged", "loss is NaN in layer hidden1"),
        (killed.name, "killed", "its process died"),
        (damaged.name, "damaged", "run.json: missing or damaged"),
        (stripped.name, "damaged", "overrides.yaml: missing or damaged"),
        ("", "failed", "no memory for it"),
        ("", "finished", "its directory contains no readable run"),
    ]
    assert listed[4]["overrides"] == "optimizer.lr=7.0 seed=0"
    for row in listed:
        assert row["reason"] in words
    assert sum(int(row["n"]) for row in table(tmp_path, "groups")) == 6, "only what finished is counted"


@pytest.mark.slow
def test_a_corrupt_summary_is_reported(tmp_path: Path, two_groups: list[Path]) -> None:
    (tmp_path / "summary.csv").write_bytes(b"\xff\xfe")
    words = page_text(report(two_groups, tmp_path, summaries=[tmp_path / "summary.csv"]))
    assert "summary.csv, which may list more points, cannot be read" in words
    assert len(table(tmp_path, "groups")) == 2


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "configs"])
def test_parameters_of_a_random_search_are_separate(tmp_path: Path, typed: bool) -> None:
    paths = [
        make_run(tmp_path / "runs", 0.5, seed, typed=typed, optimizer__lr=lr, neuron__beta=beta)
        for lr, beta in ((0.1, 0.5), (0.2, 0.9))
        for seed in (0, 1)
    ]
    assert {parameter.key for parameter in findings.compare(paths).parameters} == {"optimizer.lr", "neuron.beta"}


@pytest.mark.slow
def test_repeated_seeds_are_counted_once(tmp_path: Path, two_groups: list[Path]) -> None:
    ids = [make_run(tmp_path / "runs", score, 1, optimizer__lr=0.01) for score in (0.2, 0.3)]
    older = [path.rename(path.with_name(f"20200101-00000{index}-abcd")) for index, path in enumerate(ids)]
    words = page_text(report([*older, *two_groups, two_groups[0]], tmp_path))
    assert [row["n"] for row in table(tmp_path, "groups")] == ["3", "3"]
    assert float(table(tmp_path, "groups")[0]["mean"]) == pytest.approx(np.mean(SCORES[0.01])), "the latest counts"
    assert "2 runs have the same values and seed as a later run" in words
    assert "8: 8 finished" in words, "a path given twice is one run"


@pytest.mark.slow
def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("$x_{$")</script>&'
    paths = [make_run(tmp_path / "runs", 0.5 + seed / 10, seed, name=name) for seed in (0, 1) for name in (evil, "b")]
    paths += [make_run(tmp_path / "runs", None, 2, name=evil, status="failed", reason=evil)]
    text = report(paths, tmp_path)
    assert "<script" not in text
    assert evil in page_text(text)
    assert table(tmp_path, "not_finished")[0]["reason"] == evil


def test_notebook_runs_are_distinguished_by_their_configs(tmp_path: Path) -> None:
    paths = [
        make_run(
            tmp_path / "runs", beta + seed / 100, seed, typed=False, num_steps=10,
            neuron__beta=beta, readout__beta=beta, data__root=f"/{beta}/{seed}", network__hidden=[64, 64],
        )
        for beta in (0.5, 0.7)
        for seed in (3, 4)
    ]  # fmt: skip
    found = findings.compare(paths)
    assert [(parameter.key, parameter.also) for parameter in found.parameters] == [("neuron.beta", ("readout.beta",))]
    assert [(group.values, list(group.runs)) for group in found.groups] == [((0.7,), [3, 4]), ((0.5,), [3, 4])]


def test_a_class_and_its_arguments_are_one_parameter(tmp_path: Path) -> None:
    kinds = [("ATan", "alpha"), ("FastSigmoid", "slope")]
    surrogates = [{"_target_": f"snnexp.surrogates.{name}", argument: 25.0} for name, argument in kinds]
    paths = [
        # a copy, since YAML would write an alias for a repeated object, and aliases are rejected
        make_run(tmp_path / "runs", 0.5, seed, typed=False, surrogate=kind, neuron__surrogate=dict(kind))
        for kind in surrogates
        for seed in (0, 1)
    ]
    found = findings.compare(paths)
    assert [parameter.key for parameter in found.parameters] == ["surrogate"]
    assert {group.values for group in found.groups} == {("ATan",), ("FastSigmoid",)}


def test_a_value_without_an_override_is_that_of_the_config(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "runs", 0.5, 0), make_run(tmp_path / "runs", 0.6, 0, optimizer__lr=0.01)]
    paths += [make_run(tmp_path / "runs", 0.7, 0, surrogate="atan")]
    (paths[2] / "config.yaml").unlink()
    found = findings.compare(paths[:2])
    assert [group.values for group in found.groups] == [(0.01,), (0.001,)]
    both = findings.compare(paths)
    assert [parameter.key for parameter in both.parameters] == ["optimizer.lr", "surrogate"]
    assert both.groups[0].values == ("default", "atan")


@pytest.mark.slow
def test_other_differences_within_a_group_are_reported(tmp_path: Path, two_groups: list[Path]) -> None:
    config = two_groups[0] / "config.yaml"
    config.write_text(config.read_text() + "num_steps: 99\n")
    record = json.loads((two_groups[0] / "run.json").read_text())
    record["versions"]["torch"] = "0.1"
    (two_groups[0] / "run.json").write_text(json.dumps(record))
    words = page_text(report(two_groups, tmp_path))
    assert "Runs of a group differ in more than the seed: num_steps." in words
    assert "differs: torch 0.1, " in words


def test_exponentially_growing_yaml_is_not_read(tmp_path: Path, two_groups: list[Path]) -> None:
    layers = [f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in itertools.pairwise("abcdefgh")]
    bomb = "\n".join(["a: &a [x, x, x]", *layers])
    for path in two_groups:
        (path / "config.yaml").write_text(bomb)
    assert [group.values for group in findings.compare(two_groups).groups] == [(0.01,), (0.001,)], "as in the overrides"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-3", 0.001), ("3", 3), ("true", "true"), (True, "true"), (None, "null"), ("null", "null"), ("'a'", "a"),
        ([64, 64], "[64,64]"), ("[64, 64]", "[64,64]"), ("nan", "nan"), ("atan", "atan"), ("", ""),
    ],
)  # fmt: skip
def test_equal_values_are_equal_in_any_notation(value: Any, expected: Any) -> None:
    assert normalize(value) == expected


@pytest.mark.slow
def test_one_numeric_parameter_is_an_axis(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "runs", 0.5 + seed / 10 + step / 5, seed, optimizer__lr=lr)
        for step, lr in enumerate([1e-4, 1e-2])
        for seed in (0, 1)
    ]
    report(paths, tmp_path)
    rows = table(tmp_path, "response")
    found = [float(row[name]) for row in rows for name in ("optimizer.lr", "mean")]
    assert found == pytest.approx([1e-4, 0.55, 1e-2, 0.75])


@pytest.mark.slow
def test_two_parameters_are_a_heat_map(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "runs", 0.1 * row + 0.2 * column, seed, optimizer__lr=row, loss=name)
        for row in (1, 2)
        for column, name in enumerate("abc")
        for seed in range(2)
        if (row, name) != (2, "c")
    ]
    text = report(paths, tmp_path)
    cells = {(row["optimizer.lr"], row["loss"]): (row["n"], row["mean"]) for row in table(tmp_path, "heat_map")}
    assert len(cells) == 6
    assert cells["2", "c"] == ("0", "")
    assert float(cells["2", "b"][1]) == pytest.approx(0.4)
    assert "paired" not in text, "only two groups are compared in pairs"


@pytest.mark.slow
def test_three_parameters_are_parallel_coordinates(tmp_path: Path) -> None:
    paths = [
        make_run(
            tmp_path / "runs", 0.3 + 0.1 * i, i, optimizer__lr=i / 7, loss="ab"[i % 2], num_steps=5 + 5 * (i in (1, 2))
        )
        for i in range(4)
    ]
    report(paths, tmp_path)
    rows = table(tmp_path, "parallel")
    assert [float(row["test/accuracy"]) for row in rows] == pytest.approx([0.6, 0.5, 0.4, 0.3])
    assert [row["num_steps"] for row in rows] == ["5", "10", "10", "5"]


def test_a_report_without_a_finished_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "runs", None, status="interrupted", reason="stopped by SIGTERM")
    words = page_text(report([path, tmp_path / "nowhere"], tmp_path))
    assert "No run has finished" in words
    assert "optimized by the search" not in words
    assert "stopped by SIGTERM" in words
    assert "nowhere" in words


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "runs", score, 5, optimizer__lr=lr) for lr, score in ((1, 0.5), (2, 0.7))]
    words = page_text(report(paths, tmp_path))
    assert "only one seed, so there is no standard deviation and no confidence interval" in words
    assert "One common seed gives neither an interval nor a test." in words
    assert table(tmp_path, "groups")[0]["std"] == ""


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_the_caption_mentions_a_mean_only_if_it_is_drawn(tmp_path: Path, seeds: list[int]) -> None:
    runs = [
        make_run(tmp_path / "runs", 0.5 + seed / 10, seed, neuron__reset=reset)
        for reset in ("zero", "none")
        for seed in seeds
    ]
    assert ("the line is the mean" in page_text(report(runs, tmp_path))) == (len(seeds) > 1)


def test_one_group_has_no_comparison(tmp_path: Path) -> None:
    words = page_text(report([make_run(tmp_path / "runs", 0.5 + seed / 10, seed) for seed in range(3)], tmp_path))
    assert table(tmp_path, "groups")[0]["n"] == "3"
    assert "Parameter importance" not in words


@pytest.mark.slow
def test_the_metric_can_be_chosen(tmp_path: Path, two_groups: list[Path]) -> None:
    report(two_groups, tmp_path, metric="test/loss")
    assert float(table(tmp_path, "groups")[0]["mean"]) == pytest.approx(1 - np.mean(SCORES[0.01])), "the lower first"
    with pytest.raises(ConfigError, match=r"metric: no finished run has test/los, did you mean test/loss"):
        report(two_groups, tmp_path, metric="test/los")


@pytest.mark.slow
def test_a_run_without_the_metric_is_reported(tmp_path: Path, two_groups: list[Path]) -> None:
    other = make_run(tmp_path / "runs", 0.5, 9, optimizer__lr=0.01, metrics={"test/loss": 0.5})
    words = page_text(report([*two_groups, other], tmp_path))
    assert f"1 finished runs have no test/accuracy: {other.name}" in words


@pytest.mark.slow
def test_unreadable_curves_are_reported(tmp_path: Path, two_groups: list[Path]) -> None:
    (two_groups[0] / "metrics.jsonl").write_text("{\n")
    words = page_text(report(two_groups, tmp_path))
    assert "Not drawn:" in words
    assert "line 1 is damaged" in words


@pytest.mark.slow
def test_many_runs_stay_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    first = make_run(tmp_path / "runs", 0.5, optimizer__lr=0.1, num_steps=3, neuron__beta=0.3)
    record, rows = (first / "run.json").read_text(), (first / "metrics.jsonl").read_text()
    paths = [first]
    for index in range(199):
        path = tmp_path / "runs" / f"20260101-000000-{index:04x}"
        path.mkdir()
        lr, beta, steps = random.uniform(size=3).tolist()
        config = {"seed": index, "optimizer": {"lr": lr}, "neuron": {"beta": beta}, "num_steps": steps}
        typed = [f"seed={index}", f"optimizer.lr={lr}", f"neuron.beta={beta}", f"num_steps={steps}"]
        content = json.loads(record) | {"seed": index, "metrics": {"test/accuracy": 0.5 + beta / 4}}
        (path / "run.json").write_text(json.dumps(content))
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        (path / "overrides.yaml").write_text(yaml.safe_dump(typed))
        (path / "metrics.jsonl").write_text(rows)
        paths.append(path)
    report(paths, tmp_path)
    assert sum(file.stat().st_size for file in (tmp_path / "report").rglob("*")) < 10e6
    assert len(table(tmp_path, "groups")) == 200
    shares = {row["parameter"]: float(row["share"]) for row in table(tmp_path, "importance") if row["share"]}
    assert shares["neuron.beta"] > 0.9
    assert abs(shares["optimizer.lr"]) < 0.1


def drawn(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_heat_map_shows_means_and_differing_counts() -> None:
    means, counts = np.array([[0.25, np.nan], [0.5, 0.75]]), np.array([[3, 0], [3, 3]])
    names = ("optimizer.lr", "neuron.tau_mem_inv")
    figure = figures.heat_map(means, counts, ["a", "b"], [1, 2], names, "test/accuracy")
    assert drawn(figure) == ["0.25", "–", "0.5", "0.75"]  # noqa: RUF001
    assert figure.axes[0].get_xlabel() == "neuron.tau_mem_inv [1/s]"
    assert figure.axes[1].get_ylabel() == "test/accuracy [fraction]"
    counts[0, 0] = 2
    assert drawn(figures.heat_map(means, counts, ["a", "b"], [1, 2], ("x", "y"), "z"))[0] == "0.25\nn=2"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("test/synops/readout", "test/synops/readout [additions per sample]"),
        ("test/dead/accuracy", "test/dead/accuracy"),
        ("accuracy", "accuracy [fraction]"),
    ],
)
def test_a_unit_is_that_of_the_metric_and_not_of_a_layer(name: str, label: str) -> None:
    assert style.with_unit(name) == label


def test_strips_draw_each_run_and_clip_wide_intervals() -> None:
    figure = figures.strips({"a": [1.0, 2.0], "b": [1.5]}, [(-50.0, 60.0), None], "lr", "test/l1")
    axes = figure.axes[0]
    dots = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[1.0, 2.0], [1.5]]
    low, high = axes.get_xlim()
    assert 0 < low < 1 < 2 < high < 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_response_has_a_logarithmic_axis_for_decades() -> None:
    wide = figures.response([1e-4, 1e-3, 1e-2], [[0.1], [0.2], [0.3]], [None] * 3, "optimizer.lr", "test/l1").axes[0]
    near = figures.response([1.0, 2.0, 3.0], [[0.1], [0.2], [0.3]], [None] * 3, "optimizer.lr", "test/l1").axes[0]
    assert (wide.get_xscale(), near.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in wide.get_xticklabels()] == ["0.0001", "0.001", "0.01"]


def test_parallel_lines_end_at_their_metric_and_the_best_is_widest() -> None:
    values = {"lr": [1.0, 2.0, 4.0], "surrogate": ["atan", "flat", "atan"]}
    axes = figures.parallel(values, [0.0, 0.5, 1.0], "test/l1", "min").axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert {tuple(np.round(line.get_ydata(), 4).tolist()) for line in lines} == {(0, 0, 0), (0.3333, 1, 0.5), (1, 0, 1)}
    widest = max(lines, key=lambda line: line.get_linewidth())
    assert list(widest.get_ydata()) == [0, 0, 0]
    assert widest is lines[-1], "the best line is on top"


def test_negative_shares_are_drawn() -> None:
    axes = figures.shares({"lr": 0.5, "seed": -0.2}, ("seed",)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, -0.2]
    assert axes.get_xlim()[0] < -0.2
    assert drawn(axes.figure) == ["0.50", "-0.20"]


def test_bands_and_pairs_draw_their_values() -> None:
    x = np.arange(3.0)
    axes = figures.bands({"1": (x, x + 1, x, x + 2)}, "lr", "train/loss", "step").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [1, 2, 3]
    assert axes.collections[0].get_datalim(axes.transData).bounds == (0, 0, 2, 4)
    axes = figures.pairs([1.0, 2.0], [2.0, 4.0], ("a", "b"), "test/l1").axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 2.0], [2.0, 4.0], [1.5, 3.0]]


def test_labels_are_not_math_and_are_shortened() -> None:
    assert len(style.shorten("x" * 200)) == style.MAX_LABEL_LENGTH
    assert "$a_{$" in style.svg(figures.shares({"$a_{$": 0.5}))


def test_a_logarithmic_axis_needs_decades() -> None:
    assert style.needs_log_scale([1e-4, 1e-2])
    assert style.needs_log_scale(np.geomspace(1e-5, 1e-1, 50))
    assert not style.needs_log_scale(np.linspace(1e-4, 1.0, 50)), "one value near 0 does not change the axis"
    assert not style.needs_log_scale([0.0, 1e-4, 1.0])
    assert not style.needs_log_scale([])


@pytest.mark.slow
def test_a_run_without_a_config_is_in_no_group_and_reported(tmp_path: Path, two_groups: list[Path]) -> None:
    stripped = two_groups[0]
    (stripped / "config.yaml").write_text("{}\n")
    (stripped / "overrides.yaml").write_text("[]\n")
    words = page_text(report(two_groups, tmp_path / "page"))
    assert f"The config of 1 runs is unknown, so they are in no group: {stripped.name}." in words


@pytest.mark.slow
def test_a_metric_without_a_direction_is_sorted_ascending(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, 0.5, seed, optimizer__lr=lr, metrics={"test/firing_rate/h": lr * seed, "test/loss": 1.0})
        for seed in (1, 2)
        for lr in (0.1, 0.2)
    ]
    words = page_text(report(runs, tmp_path / "page", metric="test/firing_rate/h"))
    assert "test/firing_rate/h over seeds, lowest first" in words
    assert "best" not in words


def test_figures_are_not_written_through_a_link(tmp_path: Path, two_groups: list[Path]) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "figures").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match="a link"):
        report(two_groups, tmp_path)
    assert not list((tmp_path / "victim").iterdir())


class TestSeveralExperiments:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[Path]:
        one = [
            make_run(tmp_path / "runs", 0.5 + lr + seed / 10, seed, optimizer__lr=lr)
            for lr in (0.1, 0.2)
            for seed in (0, 1)
        ]
        other = [
            make_run(tmp_path / "runs", None, seed, metrics={"test/l1": 0.25}, status="finished") for seed in (0, 1)
        ]
        for path in other:
            Run(path).update(experiment="../other")
        return [*one, *other]

    @pytest.mark.slow
    def test_each_has_a_row_and_a_section(self, tmp_path: Path, runs: list[Path]) -> None:
        page = report(runs, tmp_path)
        rows = {row["experiment"]: row for row in table(tmp_path, "experiments")}
        assert [rows["mine"][name] for name in ("runs", "metric", "n")] == ["4", "test/accuracy", "2"]
        assert float(rows["mine"]["best mean"]) == pytest.approx(0.75)
        assert rows["mine"]["what was typed for it"] == "experiment=mine optimizer.lr=0.2"
        assert [rows["../other"][name] for name in ("metric", "best mean", "n")] == ["test/l1", "0.25", "2"]
        links = re.findall(r'href="#([^"]*)">(?:mine|../other)<', page)
        assert len(set(links)) == 2
        assert all(f'<h2 id="{link}">' in page for link in links)

    @pytest.mark.slow
    def test_experiments_are_not_compared_with_each_other(self, tmp_path: Path, runs: list[Path]) -> None:
        page = report(runs, tmp_path)
        files = {path.name for path in (tmp_path / "report").rglob("*.csv")}
        assert {"mine_groups.csv", "_other_groups.csv", "mine_importance.csv", "mine_paired.csv"} <= files
        assert not any(name.startswith(("groups", "importance", "parallel", "_other_importance")) for name in files)
        assert [*table(tmp_path, "mine_groups")[0]] == ["optimizer.lr", "n", "mean", "std", "95 % from", "95 % to"]
        assert [*table(tmp_path, "_other_groups")[0]] == ["n", "mean", "std", "95 % from", "95 % to"]
        assert len(names := re.findall(r'\bid="([^"]*)"', page)) == len(set(names))

    def test_a_metric_of_one_experiment_is_accepted(self, tmp_path: Path, runs: list[Path]) -> None:
        assert "The finished runs have no test metric to compare." in page_text(
            report(runs, tmp_path, metric="test/l1")
        )
        with pytest.raises(ConfigError, match="--metric: no finished run has test/l2, did you mean test/l1"):
            report(runs, tmp_path, metric="test/l2")

    @pytest.mark.slow
    def test_a_point_without_a_run_counts_for_its_experiment(self, tmp_path: Path, runs: list[Path]) -> None:
        # the name of the other recipe differs from that of its file
        for path in runs[-2:]:
            (path / "overrides.yaml").write_text("[experiment=file]")
        points = [("mine", 1), ("file", 2), ("gone", 3)]
        rows = [
            {"experiment": name, "seed": str(seed), "status": "failed", "run": "", "reason": "no memory"}
            for name, count in points
            for seed in range(10, 10 + count)
        ]
        write_summary(tmp_path / "summary.csv", rows)
        report(runs, tmp_path, summaries=[tmp_path / "summary.csv"])
        counts = {row["experiment"]: row["runs"] for row in table(tmp_path, "experiments")}
        assert counts == {"../other": "4", "gone": "3", "mine": "5"}

    @pytest.mark.slow
    def test_no_group_is_best_without_a_direction(self, tmp_path: Path, runs: list[Path]) -> None:
        report(runs, tmp_path, metric="test/firing_rate/hidden1")
        (mine,) = [row for row in table(tmp_path, "experiments") if row["experiment"] == "mine"]
        assert (mine["metric"], mine["best mean"], mine["n"]) == ("test/firing_rate/hidden1", "", "")

    @pytest.mark.slow
    def test_a_damaged_run_is_not_another_experiment(self, tmp_path: Path, two_groups: list[Path]) -> None:
        (two_groups[0] / "run.json").write_text("{")
        report(two_groups, tmp_path)
        assert len(table(tmp_path, "groups")) == 2


class TestASearch:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[Path]:
        """Six points of a search by a metric that is not the main one."""
        found = []
        for index in range(6):
            lr, beta = 10.0 ** -(index / 2), 0.5 + index / 20
            metrics = {"test/accuracy": index / 10, "val/score": (index - 2.0) ** 2}
            found.append(
                make_run(
                    tmp_path / "runs", None, 0, optimizer__lr=lr, neuron__beta=beta, metrics=metrics, status="finished"
                )
            )
        settings = {"metric": "val/score", "direction": "minimize"}
        (tmp_path / "sweep.json").write_text(json.dumps({"search": {"settings": settings}}))
        return found

    @pytest.mark.slow
    def test_is_compared_by_its_metric(self, tmp_path: Path, runs: list[Path]) -> None:
        words = page_text(report(runs, tmp_path))
        assert "val/score, optimized by the search" in words
        assert "val/score over seeds, best first (lower is better)" in words
        assert float(table(tmp_path, "groups")[0]["mean"]) == 0
        words = page_text(report(runs, tmp_path, metric="test/accuracy"))
        assert "The search optimized val/score, not test/accuracy." in words

    @pytest.mark.slow
    def test_has_dots_and_no_grid(self, tmp_path: Path, runs: list[Path]) -> None:
        report(runs, tmp_path)
        rows = table(tmp_path, "scatter")
        assert float(rows[0]["optimizer.lr"]) == pytest.approx(0.1), "the best first"
        files = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
        assert files.isdisjoint({"heat_map", "seeds"})

    def test_an_unreadable_record_is_ignored(self, tmp_path: Path, runs: list[Path]) -> None:
        for content in ("{", "[]", '{"search": 3}', '{"search": {"settings": {"metric": []}}}'):
            (tmp_path / "sweep.json").write_text(content)
            assert findings.compare(runs).metric == "test/accuracy"


def test_sparse_values_are_no_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PANELS", 1)
    paths = [make_run(tmp_path / "runs", 0.1 * i, 0, optimizer__lr=i / 7, num_steps=5 + i) for i in range(5)]
    words = page_text(report(paths, tmp_path))
    assert len(table(tmp_path, "scatter")) == 5
    assert "against the first 1 of 2 parameters: dots are runs" in words
    assert not (tmp_path / "report" / "figures" / "heat_map.csv").exists()


@pytest.mark.slow
def test_equal_means_are_called_equal(tmp_path: Path) -> None:
    scores = {1: (0.5, 0.75), 2: (0.75, 0.5)}
    paths = [
        make_run(tmp_path / "runs", score, seed, optimizer__lr=lr)
        for lr in scores
        for seed, score in enumerate(scores[lr])
    ]
    words = page_text(report(paths, tmp_path))
    assert "test/accuracy of lr=2 is on average equal to that of lr=1 (95 % confidence interval" in words


@pytest.mark.slow
def test_runs_link_to_their_pages(tmp_path: Path, two_groups: list[Path]) -> None:
    folder = two_groups[0].rename(two_groups[0].parent / "with a blank")
    (folder / "report.html").touch()
    page = report([folder, *two_groups[1:]], tmp_path)
    assert re.findall(r'<a href="([^"]*)">([^<]*)<', page) == [("../runs/with%20a%20blank/report.html", "with a blank")]
    assert {row["run"] for row in table(tmp_path, "runs")} == {folder.name, *(path.name for path in two_groups[1:])}


def test_unknown_values_have_no_column(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "runs", score, 5, optimizer__lr=lr) for lr, score in ((1, 0.5), (2, 0.7))]
    page = report(paths, tmp_path)
    assert "<th" in page
    assert not re.search(r"<th[^>]*>(std|95 % from|95 % to|std of [^<]*)<", page)
    assert "std" in table(tmp_path, "groups")[0]


@pytest.mark.slow
def test_long_labels_have_the_number_of_their_group(tmp_path: Path) -> None:
    long = [f"snnexp_of_somebody_else_{'x' * 30}_{name}" for name in "ab"]
    paths = [make_run(tmp_path / "runs", 0.5, seed, loss=name) for name in long for seed in (0, 1)]
    report(paths, tmp_path)
    labels = {style.shorten(row["group"]) for row in table(tmp_path, "seeds")}
    assert {label[:3] for label in labels} == {"1: ", "2: "}
    assert [row["group"] for row in table(tmp_path, "groups")] == ["1", "2"]


def test_axis_limits_include_intervals_that_are_not_too_wide() -> None:
    axes = figures.strips({"a": [1.0, 2.0]}, [(0.5, 2.5)], "lr", "test/l1").axes[0]
    low, high = axes.get_xlim()
    assert low < 0.5 < 2.5 < high


def test_ticks_do_not_overlap() -> None:
    assert [label for _, label in figures._without_overlap([(0.0, 1), (0.5, 2), (0.52, 3), (1.0, 4)])] == [1, 2, 4]
    axes = figures.response([0.0001247, 0.0002474, 0.01], [[1], [2], [3]], [None] * 3, "lr", "test/l1").axes[0]
    assert "0.0002474" not in [label.get_text() for label in axes.get_xticklabels()]


def test_a_default_choice_may_equal_an_override(tmp_path: Path) -> None:
    kinds = {"atan": "ATan", "default": "ATan", "flat": "StraightThrough"}
    paths = [
        make_run(tmp_path / "runs", 0.5, seed, surrogate={"_target_": f"snnexp.surrogates.{kind}"}, data__seed=seed)
        for kind in kinds.values()
        for seed in (0, 1)
    ]
    for path, word in zip(paths, [name for name in kinds for _ in range(2)], strict=True):
        words = ["experiment=mine", *([] if word == "default" else [f"surrogate={word}"])]
        (path / "overrides.yaml").write_text(yaml.safe_dump(words))
    (parameter,) = findings.compare(paths).parameters
    assert parameter.levels() == ["atan", "flat"]

"""The page of a run with schedules, metrics, penalties, populations and labels for each step."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_single import table, text

from snnexp.experiment import build, compose, run
from snnexp.figures import network, snapshots, style
from snnexp.figures.picture import Picture
from snnexp.record.run import Run
from snnexp.report import curves, report
from snnexp.report.page import Table
from snnexp.training import probe

ROWS: list[dict[str, Any]] = [
    {
        "step": 1,
        "train/lr": 0.5,
        "train/lr/neuron": 0.25,
        "train/r2": -2.0,
        "train/penalty/l1": 3.0,
        "train/dead/b": 0.0,
    },
    {
        "step": 3,
        "train/lr": 0.1,
        "train/lr/neuron": 0.05,
        "train/r2": 0.5,
        "train/penalty/l1": 2.0,
        "train/dead/a": 0.5,
    },
    {"step": 3, "epoch": 0, "val/r2": 0.25, "val/penalty/l1": 4.0},
]
CFG = {"measure": {"r2": {"_target_": "snnexp.metrics.R2"}}}
STEPS = 12


def drawn(rows: list[dict[str, Any]], cfg: dict[str, Any]) -> dict[str, Picture]:
    return {block.name: block for block in curves.training(rows, cfg, "") if isinstance(block, Picture)}


def sizes(figure: Figure) -> Any:
    """A renderer to measure the text of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


class TestCurves:
    def test_rates_metrics_and_penalties_are_those_of_the_rows(self) -> None:
        found = drawn(ROWS, CFG)
        rates, measures, penalties = (found[name].data for name in ("learning_rate", "measures", "penalties"))
        assert rates["iteration (learning rate, weights)"].tolist() == [1, 3]
        assert rates["learning rate, weights"].tolist() == [0.5, 0.1]
        assert rates["learning rate, neuron"].tolist() == [0.25, 0.05]
        assert [measures[f"r2, {split}"].tolist() for split in ("train", "val")] == [[-2.0, 0.5], [0.25]]
        assert [penalties[f"l1, {split}"].tolist() for split in ("train", "val")] == [[3.0, 2.0], [4.0]]

    def test_no_picture_without_data(self) -> None:
        assert drawn([{"step": 1, "train/r2": 0.5}], {}).keys() == set()

    def test_a_negative_metric_is_not_clipped(self) -> None:
        (axes,) = drawn(ROWS, CFG)["measures"].figure.axes
        assert axes.get_ylim()[0] < -2
        (axes,) = drawn(ROWS, CFG)["penalties"].figure.axes
        assert axes.get_ylim()[0] == 0

    def test_panels_are_in_rows_of_two_with_one_legend(self) -> None:
        values = np.arange(3), np.arange(3) / 3
        figure = network.activity({"a": {"x": values}, "b": {"y": values}, "c": {"x": values}})
        visible = [axes for axes in figure.axes if axes.axison]
        assert [axes.get_ylabel() for axes in visible] == ["a", "b", "c"]
        assert [axes.get_xlabel() for axes in visible] == ["", "iteration", "iteration"], "the lowest of each column"
        assert [label.get_text() for label in figure.legends[0].get_texts()] == ["x", "y"]

    def test_a_point_between_gaps_is_a_dot(self) -> None:
        """As for a loss of the last step, and a metric that needs all classes in a batch."""
        gaps = np.array([1.0, np.nan, 2.0, np.nan, 3.0, 4.0])
        last = np.array([0.0, 0.0, 5.0])
        (measured,) = network.activity({"roc_auc": {"train": (np.arange(6), gaps)}}).axes[0].lines
        (gradient,) = network.gradient_norms({"now": {"readout": last}}).axes[0].lines
        assert (measured.get_marker(), measured.get_markevery()) == ("o", [0, 2])
        assert (gradient.get_marker(), gradient.get_markevery()) == ("o", [2])
        (whole,) = network.activity({"accuracy": {"train": (np.arange(6), np.ones(6))}}).axes[0].lines
        assert whole.get_marker() == "None"


class TestSpace:
    @pytest.mark.parametrize("side", [8, 28])
    def test_labels_of_images_do_not_overlap(self, side: int) -> None:
        figure = network.predictions(np.ones((18, side, side)), np.arange(18) % 10, np.arange(18) % 7)
        renderer, axes = sizes(figure), figure.axes[0]
        below = [word.get_window_extent(renderer).transformed(axes.transData.inverted()) for word in axes.texts[9:]]
        mosaic = axes.images[0].get_array()
        rows = np.flatnonzero(~np.ma.getmaskarray(mosaic).all(1) & np.isfinite(mosaic.filled(np.nan)).any(1))
        first, second = rows[:side], rows[side:]
        for box in below:
            # rows are counted from the top
            assert first[-1] + 0.5 <= min(box.y0, box.y1)
            assert max(box.y0, box.y1) <= second[0] - 0.5

    def test_labels_of_narrow_panels_do_not_overlap(self) -> None:
        figure = network.trajectory({"now": np.zeros((9, 4))}, np.ones((9, 4)), "time step (0.5 ms)")
        renderer = sizes(figure)
        boxes = [axes.xaxis.label.get_window_extent(renderer) for axes in figure.axes]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert all(box.y0 > figure.legends[0].get_texts()[0].get_window_extent(renderer).y1 for box in boxes)

    def test_a_table_with_long_names_has_full_width(self) -> None:
        names = ["neuron.tau_adp._target_", "snnexp.neurons.Leaky", "snnexp.initializers.LogNormal"]
        assert Table(["key", "recipe", "run"], [names]).wide
        assert not Table(["key", "recipe", "run"], [[*names[:2], "of words that can be broken into lines"]]).wide


class TestParts:
    def test_a_population_is_shown_as_one_class(self) -> None:
        words = ["experiment=digits_leaky", "decoder=population", "decoder.size=3", "network.hidden=[4]", "num_steps=4"]
        parts = build(compose(words))
        where = int(np.flatnonzero(parts.data.test[list(range(20))][1] == 2)[0])
        found = probe.snapshot(parts.task, parts.data.test[[where]], parts.decoder)
        assert (found["population"], found["size/readout"]) == (3, 30)
        (membrane,) = (each for each in snapshots.live_pictures({"now": found}, {}) if each.name == "output_membrane")
        front = [
            line
            for line in membrane.figure.axes[0].lines
            if line.get_color() == style.BLUE and len(line.get_xdata()) == 4
        ]
        chosen = [line.get_ydata() for line in front if line.get_linestyle() == "-"]
        assert np.array_equal(chosen, found["membrane"][:, 6:9].T), "class k has the neurons 3 k to 3 k + 2"
        (confusion,) = (each for each in snapshots.live_pictures({"now": found}, {}) if each.name == "confusion")
        assert len(confusion.data) == 1 + 10, "a column for each class"

    @pytest.mark.parametrize(("neuron", "dt"), [("alif", 1e-3), ("lif", 1e-3)])
    def test_a_step_has_its_time_in_seconds(self, neuron: str, dt: float) -> None:
        """dt is 1 ms in both, given in ms by one and in s by the other."""
        parts = build(compose(["experiment=digits_leaky", f"neuron={neuron}", "network.hidden=[4]", "num_steps=4"]))
        assert probe.snapshot(parts.task, parts.data.test[[0]], parts.decoder)["dt"] == pytest.approx(dt)

    def test_a_page_shows_everything(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Labels for each step, a learning rate schedule, a penalty and a metric."""
        monkeypatch.setattr(style, "png", lambda figure, dpi=0: b"\x89PNG")
        monkeypatch.setattr(style, "svg", lambda figure: "<svg>\n <defs></defs></svg>")
        random = np.random.default_rng(0)
        arrays = {"x": random.random((40, STEPS, 3)).astype("float32"), "y": random.integers(0, 2, (40, STEPS))}
        np.savez(tmp_path / "steps.npz", **arrays)
        words = ["data=arrays", f"data.path={tmp_path / 'steps.npz'}", "data.x=x", "data.y=y", "encoder=sequence"]
        words += ["data.test_fraction=0.25", "data.batch_size=5", f"num_steps={STEPS}", "network.hidden=[4]"]
        words += ["loss=ce_each_step", "readout=linear", "neuron=alif", "schedule=cosine", "measure=macro_f1"]
        words += ["regularizer=l1", "trainer=cpu", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
        folder = run(compose([*words, f"logger.root={tmp_path}"]), words).path
        read = text(report([folder]))
        assert "all labels of the test split (120 of 10 samples)" in read
        assert "fraction of correctly classified steps of samples (decoder each_step)" in read
        assert "[tau_m, tau_adp]" in {row["this run"] for row in table(folder, "differences")}
        meanings = {row["measure"]: row["meaning"] for row in table(folder, "result")}
        assert meanings["test/penalty/l1"] == "mean penalty added to the loss"
        rates = [float(row["learning rate, all parameters"]) for row in table(folder, "learning_rate")]
        total = len(rates)
        wanted = [1e-3 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
        assert rates == pytest.approx(wanted, rel=1e-5)
        logged = [row["train/penalty/l1"] for row in Run(folder).metrics() if "train/penalty/l1" in row]
        assert [float(row["l1, train"]) for row in table(folder, "penalties")] == pytest.approx(logged)

"""Terminal output: the loss curve, the tables, the progress line."""

import io
import itertools
import math
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from snnexp.terminal import _character, config_tree, console, curve, format_duration, loss_curve, result_table
from snnexp.text import format_number
from snnexp.training.progress import ProgressDisplay, fit_line

ROWS: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0, "train/loss": 4.0},
    {"step": 1, "epoch": 0, "train/loss": None},
    {"step": 2, "epoch": 0, "train/loss": 1.0},
    {"step": 2, "epoch": 0, "train/epoch_loss": 9.0},
    {"step": 3, "epoch": 1, "test/loss": 7.0},
]
MEASURED = {
    "test/loss": 0.5,
    "test/firing_rate/hidden1": 0.25,
    "test/accuracy": 0.875,
    "test/synops": 61_664.8,
    "test/firing_rate/readout": 0.125,
    "test/dead/hidden1": 0.0625,
    "test/saturated/hidden1": 0.0,
    "test/synops/readout": 61_664.8,
}
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def terminal(width: int = 80, encoding: str = "utf-8", is_terminal: bool = True) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    return Console(file=file, force_terminal=is_terminal, width=width, highlight=False, soft_wrap=not is_terminal)


def rendered(what: Any, width: int = 80) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(what)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def rows_of(lines: list[str], mark: str = "*") -> list[int]:
    """For each column of an ASCII plot, the row of its first mark."""
    start = lines[0].index("+") + 1
    plot = [line[start:].ljust(80) for line in lines[:-1]]
    columns = [[row for row, line in enumerate(plot) if line[x] == mark] for x in range(80)]
    return [found[0] for found in columns if found]


class TestCurve:
    def test_a_decreasing_curve_runs_from_its_maximum_to_its_minimum(self) -> None:
        lines = curve(range(0, 60), [60.0 - step for step in range(60)], "train/loss", braille=False)
        assert len(lines) == 7
        assert lines[0].startswith("60 +*")
        assert lines[5].startswith(" 1 + ")
        assert rows_of(lines) == sorted(rows_of(lines))
        assert set(rows_of(lines)) == set(range(6))
        assert len(rows_of(lines)) == 58, "each column is drawn"
        assert lines[6].split() == ["0", "train/loss", "by", "step", "59"]

    def test_braille_has_the_same_numbers(self) -> None:
        values = [60.0 - step for step in range(60)]
        plain, dotted = (curve(range(60), values, "train/loss", braille) for braille in (False, True))
        assert dotted[-1] == plain[-1]
        assert [line.split()[0] for line in (dotted[0], dotted[5])] == ["60", "1"]
        assert dotted[0][:4] == "60 ┤"
        assert dotted[1][3] == "│"
        assert set("".join(line[4:] for line in dotted[:-1])) <= {" ", *map(chr, range(0x2801, 0x2900))}

    def test_braille_dots_are_at_their_positions(self) -> None:
        # dots 1 and 8 of the character: upper left and lower right
        assert _character({(0, 0), (1, 3)}, 0, 0, braille=True) == "\u2881"
        assert _character({(2, 4)}, 1, 1, braille=True) == "\u2801"
        assert _character(set(), 0, 0, braille=True) == " "

    @pytest.mark.parametrize(
        ("values", "logarithmic"),
        [([1e-3, 1.0], True), ([1e-2, 1.0], False), ([0.0, 1.0], False), ([-1.0, 1000.0], False), ([1.0, 101.0], True)],
    )
    def test_two_decades_of_positive_values_give_a_labeled_logarithmic_axis(
        self, values: list[float], logarithmic: bool
    ) -> None:
        lines = curve([0, 10], values, "train/loss", braille=False)
        assert ("train/loss, logarithmic, by step" in lines[-1]) == logarithmic
        assert ("train/loss by step" in lines[-1]) != logarithmic

    def test_an_exponential_is_a_straight_line_on_a_logarithmic_axis(self) -> None:
        rows = rows_of(curve(range(60), [10 ** (-step / 10) for step in range(60)], "x", braille=False))
        lengths = [len(list(group)) for _, group in itertools.groupby(rows)]
        assert len(lengths) == 6
        assert max(lengths[1:-1]) - min(lengths[1:-1]) <= 1

    def test_one_value_is_one_dot(self) -> None:
        lines = curve([7], [2.5], "train/loss", braille=False)
        assert "".join(lines).count("*") == 1
        assert [line for line in lines if "*" in line] == ["2.5 +*"]
        assert lines[-1].split() == ["7", "train/loss", "by", "step"]

    def test_equal_values_are_a_line_with_one_label(self) -> None:
        lines = curve([0, 5, 9], [0.0, 0.0, 0.0], "train/loss", braille=False)
        (line,) = [line for line in lines if "*" in line]
        assert line.split() == ["0", "+" + "*" * 58]

    def test_nan_is_skipped(self) -> None:
        assert curve([], [], "x", braille=False) == curve([1, 2], [None, None], "x", braille=True) == []
        with_gap = curve([0, 10, 20, 30], [3.0, None, 1.0, None], "x", braille=False)
        assert with_gap == curve([0, 20], [3.0, 1.0], "x", braille=False)

    def test_the_horizontal_axis_is_proportional_to_steps(self) -> None:
        rows = rows_of(curve([0, 90, 100], [1.0, 1.0, 0.0], "x", braille=False))
        assert 50 <= rows.count(0) <= 56

    def test_many_values_are_averaged(self) -> None:
        values = [1.0 + (-1) ** step for step in range(10**5)]
        values[-50:] = [2.0] * 50
        lines = curve(range(10**5), values, "x", braille=False)
        assert float(lines[0].split()[0]) < 1.1, "single values of 2 are not drawn"
        assert float(lines[5].split()[0]) > 0.9

    @given(values=st.lists(st.none() | FINITE, min_size=1, max_size=200), braille=st.booleans(), data=st.data())
    @example(values=[0.0, -999_999_999.0], braille=False, data=None)
    def test_any_values_give_a_plot_of_the_requested_size(
        self, values: list[float | None], braille: bool, data: st.DataObject | None
    ) -> None:
        sizes = st.lists(st.integers(1, 10**6), min_size=len(values), max_size=len(values))
        gaps = data.draw(sizes) if data else [1] * len(values)
        lines = curve([*itertools.accumulate(gaps)], values, "train/epoch_loss", braille)
        assert len(lines) == (7 if any(value is not None for value in values) else 0)
        assert all(len(line) <= 72 for line in lines)
        assert braille or all(line.isascii() for line in lines)


class TestLossCurve:
    def test_by_logged_steps(self) -> None:
        lines = loss_curve(terminal(), ROWS).splitlines()
        assert lines[-1].split() == ["1", "train/loss", "by", "step", "3"]
        assert "⠉" in lines[0]

    def test_by_epochs_if_fewer_than_two_steps_were_logged(self) -> None:
        rows = [*ROWS[1:], {"step": 5, "epoch": 1, "train/epoch_loss": 8.0}]
        assert loss_curve(terminal(), rows).splitlines()[-1].split() == ["3", "train/epoch_loss", "by", "step", "6"]

    def test_fewer_than_two_values_give_no_curve(self) -> None:
        assert loss_curve(terminal(), ROWS[1:]) == loss_curve(terminal(), []) == ""

    @pytest.mark.parametrize(("encoding", "is_terminal"), [("ascii", True), ("latin-1", True), ("utf-8", False)])
    def test_no_braille_without_a_unicode_terminal(self, encoding: str, is_terminal: bool) -> None:
        assert loss_curve(terminal(encoding=encoding, is_terminal=is_terminal), ROWS).isascii()


class TestConfigTree:
    CHOICES: ClassVar = {"neuron": "leaky", "optimizer": "adam", "trainer": "cpu"}
    VALUES: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"seed": 0, "num_steps": 10},
        "neuron": {"beta": {"_target_": "snnexp.initializers.Normal", "mean": 0.9}, "reset": "zero"},
        "trainer": {"max_epochs": 100},
    }

    def test_a_line_for_each_group_marks_overrides(self) -> None:
        overridden = {"seed", "trainer", "neuron.beta.mean", "neuron.beta", "experiment"}
        assert [line.lstrip("├└─ ") for line in rendered(config_tree(self.CHOICES, self.VALUES, overridden, "x"))] == [
            "x*  seed=0*  num_steps=10",
            "neuron leaky  beta=Normal(mean=0.9)*  reset=zero",
            "optimizer adam",
            "trainer cpu*  max_epochs=100",
            "* command-line override; config.yaml has all values",
        ]


class TestResultTable:
    def test_metrics_first_then_a_row_per_layer(self) -> None:
        lines = [line.split() for line in rendered(result_table(MEASURED, {"test/accuracy": 0.9387}))]
        assert lines == [
            ["metric", "value", "published"],
            ["test/loss", "0.5"],
            ["test/accuracy", "0.875", "0.9387"],
            ["test/synops", "61,665"],
            ["layer", "firing", "rate", "dead", "saturated", "synops"],
            ["hidden1", "0.25", "0.0625", "0"],
            ["readout", "0.125", "61,665"],
            lines[-1],
        ]
        assert lines[-1][0] == "published:", "the source of the published values"

    def test_the_decoder_is_shown_with_an_accuracy(self) -> None:
        lines = [line.split() for line in rendered(result_table(MEASURED, {}, "spike_count"))]
        assert lines[1:3] == [["test/loss", "0.5"], ["test/accuracy", "(spike_count)", "0.875"]]
        assert not any("spike_count" in line for line in rendered(result_table({"test/l1": 0.5}, {}, "spike_count")))

    def test_values_are_below_their_column_titles(self) -> None:
        lines = rendered(result_table(MEASURED, {}))
        head, hidden, readout = lines[-3:]
        assert len(head) == len(readout)
        for name, value in (("firing rate", "0.25"), ("dead", "0.0625")):
            assert hidden[: head.index(name) + len(name)].endswith(value)

    @pytest.mark.parametrize("split", ["test", "val", "train"])
    def test_empty_columns_are_omitted(self, split: str) -> None:
        lines = rendered(result_table({f"{split}/loss": 0.5, f"{split}/firing_rate/hidden1": 0.25}, {}))
        assert [line.split() for line in lines] == [
            ["metric", "value"],
            [f"{split}/loss", "0.5"],
            ["layer", "firing", "rate"],
            ["hidden1", "0.25"],
        ]

    def test_no_table_of_layers_without_layers(self) -> None:
        assert rendered(result_table({"test/loss": 0.5}, {})) == ["metric     value", "test/loss    0.5"]

    def test_a_published_value_of_a_layer_keeps_its_row(self) -> None:
        lines = rendered(result_table(MEASURED, {"test/firing_rate/hidden1": 0.5}))
        assert ["test/firing_rate/hidden1", "0.25", "0.5"] in [line.split() for line in lines]

    def test_it_fits_into_80_columns(self) -> None:
        layers = [f"a_layer_with_a_name_{number}" for number in range(3)]
        measures = ("firing_rate", "dead", "saturated", "synops")
        measured = {f"test/{measure}/{layer}": 123_456_789.0 for measure in measures for layer in layers}
        lines = rendered(result_table({"test/relative_error": 1e-30, **measured}, {"test/accuracy": 0.5}))
        assert len(lines) == 6
        assert max(map(len, lines)) <= 80


class TestProgress:
    @given(width=st.integers(20, 120))
    def test_a_narrow_line_keeps_loss_and_time(self, width: int) -> None:
        parts = {
            "loss": "loss 0.1234",
            "acc": "acc 0.984",
            "val acc": "val acc 0.9",
            "firing": "firing 0.2",
            "samples": "2506 samples/s",
            "left": "0:05 left",
        }
        line = fit_line(parts, width)
        assert line.startswith("loss 0.1234")
        assert line.endswith("0:05 left")
        assert len(line) <= max(width, len("loss 0.1234  0:05 left"))
        assert fit_line(parts, None) == "  ".join(parts.values())
        assert [part for part in parts.values() if part in line] == line.split("  ")

    @pytest.mark.parametrize(
        ("seconds", "expected"), [(0.2, "0:00"), (5, "0:05"), (59.9, "1:00"), (754, "12:34"), (3723, "1:02:03")]
    )
    def test_durations_are_formatted_as_a_clock(self, seconds: float, expected: str) -> None:
        assert format_duration(seconds) == expected

    @pytest.fixture
    def trainer(self) -> SimpleNamespace:
        """The used part of Lightning's trainer, in epoch 2 of 3."""
        logged = {
            "train/accuracy": torch.tensor(0.875),
            "train/firing_rate/hidden1": torch.tensor(0.25),
            "train/firing_rate/readout": torch.tensor(0.75),
            "train/epoch_loss": torch.tensor(2.5),
        }
        return SimpleNamespace(
            global_step=50, current_epoch=1, max_epochs=3, estimated_stepping_batches=150, world_size=2,
            callback_metrics=logged,
        )  # fmt: skip

    def test_lines_in_a_pipe_have_all_values_at_intervals(
        self, trainer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        display = ProgressDisplay(console())
        display.on_train_start(trainer, None)  # type: ignore[arg-type]
        for second in range(1, 31):
            now, trainer.global_step = 1000.0 + second, 50 + second
            display.on_train_batch_end(trainer, None, {"unregularized_loss": torch.tensor(1.5), "samples": 64}, None, 0)  # type: ignore[arg-type]
        (line,) = capsys.readouterr().out.splitlines()
        # 20 steps in 20 s, 80 more to go; two processes have 64 samples each
        assert line == "epoch 2/3  step 70/150  loss 1.5  acc 0.875  firing 0.500  128 samples/s  1:20 left"
        trainer.current_epoch = 2
        display.on_train_end(trainer, None)  # type: ignore[arg-type]
        line = capsys.readouterr().out.strip()
        assert line == "epoch 2/3  step 80/150  mean loss 2.5  acc 0.875  firing 0.500  128 samples/s  30 s"

    def test_the_bar_uses_no_thread_that_could_hold_a_lock_during_a_fork(self, trainer: Any) -> None:
        display = ProgressDisplay(terminal())
        before = threading.active_count()
        display.on_train_start(trainer, None)  # type: ignore[arg-type]
        assert display.bar is not None
        assert threading.active_count() == before
        display.on_train_end(trainer, None)  # type: ignore[arg-type]

    @pytest.mark.parametrize("width", [40, 60, 80, 120])
    def test_the_bar_never_takes_a_second_line(self, trainer: Any, width: int) -> None:
        screen = terminal(width)
        display = ProgressDisplay(screen)
        display.live_every_s = 0.0
        trainer.max_epochs = 2500
        trainer.callback_metrics |= {"val/loss": torch.tensor(1.0), "val/accuracy": torch.tensor(0.5)}
        display.on_train_start(trainer, None)  # type: ignore[arg-type]
        assert display.bar is not None
        for step in (51, 100, 149):
            trainer.global_step, trainer.current_epoch = step, step * 16
            display.on_train_batch_end(
                trainer, None, {"unregularized_loss": torch.tensor(1.234e-05), "samples": 99999}, None, 0
            )  # type: ignore[arg-type]
            text = io.StringIO()
            Console(file=text, width=width).print(display.bar.get_renderable())
            (line,) = text.getvalue().splitlines()
            assert len(line) <= width
            assert line.startswith(f"epoch {step * 16 + 1}/2500")
            assert width == 40 or "loss 1.234e-05" in line
        display.on_train_end(trainer, None)  # type: ignore[arg-type]
        assert display.bar is None


def test_a_stream_without_unicode_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    console().print("größe 😀")
    stream.flush()
    assert stream.buffer.getvalue() == rb"gr\xf6\xdfe \U0001f600" + b"\n"  # type: ignore[attr-defined]


def test_numbers_have_four_digits() -> None:
    assert [format_number(value) for value in (0.123456, 12345.6, 1e9, 0.0, math.pi * 1e-9)] == [
        *("0.1235", "12,346", "1e+09", "0", "3.142e-09")
    ]

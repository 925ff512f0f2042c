"""Figures: what is drawn where, and colors that are distinguishable with color blindness."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from snnexp.figures import network, style

RANDOM = np.random.default_rng(0)
SPIKES = RANDOM.random((20, 12)) < 0.3
MEMBRANE = RANDOM.normal(size=(20, 4))
# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: simulated dichromacy, in linear RGB
CONES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3).tolist(),
}


def linear(color: object) -> np.ndarray:
    rgb = np.array(to_rgb(color))  # type: ignore[arg-type]
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear sRGB, with white point D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(np.array(to_xyz) @ rgb, 1e-4, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


class TestColors:
    @pytest.mark.parametrize("eyes", CONES)
    def test_lines_of_one_figure_are_distinguishable(self, eyes: str) -> None:
        seen = [lab(np.array(CONES[eyes]) @ linear(color)) for color in (*style.COLORS, style.GRAY)]
        for (i, one), (j, other) in itertools.combinations(enumerate(seen), 2):
            assert np.linalg.norm(one - other) > 15, (i, j)

    @pytest.mark.parametrize("eyes", CONES)
    def test_shades_darken_monotonically_for_all_color_vision(self, eyes: str) -> None:
        lightness = [lab(np.array(CONES[eyes]) @ linear(style.SHADES(x)))[0] for x in np.linspace(0, 1, 30)]
        assert np.all(np.diff(lightness) < 0)


class TestOneRun:
    def test_raster_has_a_mark_for_each_spike(self) -> None:
        neurons = np.arange(12) * 3
        figure = network.spike_raster({"before": {"hidden": (SPIKES, neurons, 36)}})
        (axes,) = figure.axes
        (marks,) = axes.lines
        drawn = set(zip(marks.get_xdata(), marks.get_ydata(), strict=True))
        assert drawn == {(t, 3 * n) for t, n in zip(*np.nonzero(SPIKES), strict=True)}
        assert axes.get_xlim() == (-0.5, 19.5)
        assert axes.get_ylim() == (-0.5, 35.5)
        assert not marks.get_rasterized()

    def test_many_spikes_are_rasterized(self) -> None:
        many = np.ones((100, 50), bool)
        (axes,) = network.spike_raster({"": {"hidden": (many, np.arange(50), 50)}}).axes
        assert axes.lines[0].get_rasterized()

    def test_a_silent_layer_is_drawn_empty(self) -> None:
        silent = {
            "hidden": (np.zeros((5, 4), bool), np.arange(4), 4),
            "readout": (np.zeros((5, 1), bool), np.arange(1), 1),
        }
        figure = network.spike_raster({"before": silent, "after": silent})
        assert len(figure.axes) == 4
        assert style.png(figure).startswith(b"\x89PNG")

    def test_membrane_of_the_class_is_highlighted(self) -> None:
        threshold = np.array([1.0, 2.0, 3.0, 4.0])
        figure = network.output_membrane({"now": (MEMBRANE, SPIKES[:, :4], threshold)}, [2], "class 2")
        lines = [line for line in figure.axes[0].lines if len(line.get_ydata()) == 20]
        chosen = [line for line in lines if line.get_color() == style.BLUE and line.get_linestyle() == "-"]
        assert np.array_equal(chosen[0].get_ydata(), MEMBRANE[:, 2])
        (dashed,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
        assert list(dashed.get_ydata()) == [3.0, 3.0], "the threshold of that output"
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["class 2", "other outputs", "threshold", "spike"]

    def test_a_readout_without_spikes_has_no_threshold(self) -> None:
        figure = network.output_membrane({"now": (MEMBRANE, None, None)})
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["output"]

    def test_trajectories_are_drawn_with_their_targets(self) -> None:
        target = RANDOM.random((20, 2))
        figure = network.trajectory({"before": MEMBRANE[:, :2], "after": MEMBRANE[:, 2:]}, target)
        for sample, axes in enumerate(figure.axes):
            expected = [MEMBRANE[:, sample], MEMBRANE[:, 2 + sample], target[:, sample]]
            assert all(np.array_equal(line.get_ydata(), y) for line, y in zip(axes.lines, expected, strict=True))
            assert [line.get_label() for line in axes.lines] == ["before", "after", "target"]

    def test_predictions_mark_errors(self) -> None:
        images = RANDOM.random((11, 8, 8))
        predicted, label = np.arange(11) % 10, np.arange(11) % 10
        predicted[3] = 8
        figure = network.predictions(images, predicted, label)
        labels = texts(figure)
        assert labels[:3] == ["0", "1", "2"]
        assert labels[3] == "8, is 3"
        assert len(labels) == 11

    @pytest.mark.parametrize("value", [0.0, 3.0])
    def test_images_of_one_shade_are_drawn(self, value: float) -> None:
        style.png(network.predictions(np.full((2, 4, 4), value), np.array([0, 1]), np.array([0, 1])))

    def test_confusion_shades_rows_and_writes_counts(self) -> None:
        counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
        figure = network.confusion(counts)
        share = figure.axes[0].images[0].get_array()
        np.testing.assert_allclose(share, [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
        assert sorted(texts(figure)) == sorted(["8", "2", "1", "1", "2"])

    def test_a_single_step_is_a_dot(self) -> None:
        drawn = [
            network.output_membrane({"now": (MEMBRANE[:1], None, None)}),
            network.trajectory({"now": MEMBRANE[:1]}, MEMBRANE[:1]),
            network.gradient_norms({"now": {"hidden": np.ones(1)}}),
            network.loss_curves((np.array([0]), np.array([0.5])), {}),
            network.activity({"rate": {"hidden": (np.array([0]), np.array([0.5]))}}),
        ]
        for figure in drawn:
            assert all(line.get_marker() == "o" for line in figure.axes[0].lines)

    def test_distributions_count_all_neurons_before_and_after(self) -> None:
        before, after = RANDOM.normal(100, 20, 50), RANDOM.normal(120, 20, 50)
        columns = {"before": {"h tau_mem_inv": before, "h beta": np.full(7, 0.9)}}
        columns["after"] = {"h tau_mem_inv": after, "h beta": np.full(7, 0.8)}
        figure = network.distributions(columns)
        varied, constant = figure.axes
        heights = [patch.get_xy()[:, 1] for patch in varied.patches]
        assert [sum(height[1:-1:2]) for height in heights] == [50, 50]
        assert varied.get_xlabel() == "h tau_mem_inv (1/s)"
        assert [line.get_xdata()[0] for line in constant.lines] == [0.9, 0.8]

    def test_gradients_of_zero_are_gaps(self) -> None:
        figure = network.gradient_norms({"now": {"hidden": np.array([1.0, 0.0, 1e-6])}})
        (line,) = figure.axes[0].lines
        assert np.isnan(line.get_ydata()).tolist() == [False, True, False]
        assert figure.axes[0].get_yscale() == "log"
        style.png(network.gradient_norms({"now": {"hidden": np.zeros(3)}}))

    @pytest.mark.parametrize(("low", "scale"), [(0.5, "linear"), (1e-4, "log"), (-1.0, "linear"), (np.nan, "linear")])
    def test_losses_over_decades_have_a_logarithmic_axis(self, low: float, scale: str) -> None:
        loss = np.array([1.0, low])
        figure = network.loss_curves((np.array([1, 2]), loss), {"training": (np.array([1, 2]), loss)})
        assert [axes.get_yscale() for axes in figure.axes] == [scale, scale]

    def test_long_curves_get_a_running_mean(self) -> None:
        loss = RANDOM.random(400)
        figure = network.loss_curves((np.arange(400), loss), {})
        raw, mean = figure.axes[0].lines
        assert np.array_equal(raw.get_ydata(), loss)
        assert mean.get_xdata()[0] == 9
        assert mean.get_ydata()[0] == pytest.approx(loss[:10].mean())
        assert mean.get_ydata()[-1] == pytest.approx(loss[-10:].mean())

    def test_bars_have_labels(self) -> None:
        assert [text.strip() for text in texts(network.bars({"fit": 12.345, "all": 123456.0}, "s"))] == [
            "12.3",
            "123,456",
        ]


DRAWN = {
    "raster": lambda: network.spike_raster({"now": {"hidden": (SPIKES, np.arange(12), 12)}}),
    "membrane": lambda: network.output_membrane({"now": (MEMBRANE, SPIKES[:, :4], np.ones(4))}, [0], "class 0"),
    "trajectory": lambda: network.trajectory({"now": MEMBRANE}, MEMBRANE),
    "confusion": lambda: network.confusion(np.eye(3, dtype=int)),
    "distributions": lambda: network.distributions({"now": {"h beta": MEMBRANE[:, 0]}}),
    "gradients": lambda: network.gradient_norms({"now": {"hidden": np.abs(MEMBRANE[:, 0])}}),
    "loss": lambda: network.loss_curves((np.arange(20), MEMBRANE[:, 0]), {}),
    "activity": lambda: network.activity({"rate": {"hidden": (np.arange(20), MEMBRANE[:, 0])}}),
    "rates": lambda: network.rate_distribution({"hidden": np.abs(MEMBRANE[:, 0])}, "step"),
    "bars": lambda: network.bars({"fit": 1.0}, "seconds"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawing_has_no_side_effects(name: str) -> None:
    before, arrays = dict(matplotlib.rcParams), (SPIKES.copy(), MEMBRANE.copy())
    first, second = (DRAWN[name]() for _ in range(2))
    assert style.png(first).startswith(b"\x89PNG")
    assert style.svg(first) == style.svg(second), "the same arrays give the same file"
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert np.array_equal(SPIKES, arrays[0])
    assert np.array_equal(MEMBRANE, arrays[1])


@pytest.mark.parametrize("name", DRAWN)
def test_axes_have_labels(name: str) -> None:
    for axes in DRAWN[name]().axes:
        assert axes.get_xlabel() or axes.get_ylabel(), "both, except for bars, whose names are the axis"


@pytest.mark.parametrize("name", ["a\x07b", "a\x1b[31mb", "a\u200eb", "a\ud800b"])
def test_non_printable_characters_are_escaped_in_all_text(name: str) -> None:
    figure = Figure(figsize=(3, 3))
    axes = figure.add_subplot()
    axes.plot([0, 1], label=name)
    axes.legend()
    axes.set_title(f"{name}\nmore")
    axes.set(xlabel=name, xticks=[0, 1], xticklabels=[name, "plain"])
    text = style.svg(figure)
    assert style.png(figure)
    assert name not in text
    assert text.count(name.encode("unicode_escape").decode()) >= 4

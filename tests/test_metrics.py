"""Metrics: values computed by hand, torchmetrics, sums over processes, and synaptic operations counted one by one."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional import mean_squared_error, r2_score
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from snnexp import metrics
from snnexp.data.batches import OrderedBatches
from snnexp.decoders import Population, Readout
from snnexp.neurons import Trace
from snnexp.record.measures import higher_is_better


def mean(pair: metrics.Sum) -> float:
    total, count = pair
    return (total / count).item()


def test_accuracy() -> None:
    assert mean(metrics.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0]))) == 0.75


def test_l1() -> None:
    target = torch.tensor([1.0, -2.0, 0.0, 4.0]).view(4, 1, 1)
    assert mean(metrics.l1(torch.zeros(4, 1, 1), target)) == 7 / 4


def test_relative_error_ignores_the_first_step() -> None:
    """Errors of 1/2 and 1/4 of the target; at t = 0 the target is zero."""
    target = torch.tensor([0.0, 2.0, -4.0]).view(3, 1, 1)
    membrane = torch.tensor([9.0, 1.0, -5.0]).view(3, 1, 1)
    assert mean(metrics.relative_error(membrane, target)) == (1 / 2 + 1 / 4) / 2


def test_relative_error_is_scale_free_and_takes_norms_over_neurons() -> None:
    target = torch.tensor([[[1.0, 1.0]], [[0.0, 10.0]]])
    membrane = target + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(mean(metrics.relative_error(membrane, target)), 0.5)
    torch.testing.assert_close(mean(metrics.relative_error(7 * membrane, 7 * target)), 0.5)


def test_relative_error_ignores_zero_targets() -> None:
    """The target is zero at t = 2, where the relative error is undefined."""
    target = torch.tensor([1.0, 2.0, 0.0, -4.0]).view(4, 1, 1)
    membrane = torch.tensor([9.0, 1.0, 5.0, -5.0]).view(4, 1, 1)
    assert mean(metrics.relative_error(membrane, target)) == (1 / 2 + 1 / 4) / 2
    total, count = metrics.relative_error(membrane, torch.zeros(4, 1, 1))
    assert (total, count) == (0, 0)


def reduce_all(shares: list[metrics.Totals]) -> dict[str, Tensor]:
    """Return the values of the first of several processes, whose collectives are simulated."""
    others: list[list[Tensor]] = []
    for totals in shares[1:]:
        sent: list[Tensor] = []
        record = lambda tensor, sent=sent: sent.append(tensor) or tensor  # noqa: E731
        totals.take(record, lambda tensor, record=record: [record(tensor)])  # type: ignore[misc]
        others.append(sent)
    calls = iter(range(1000))

    def gather(tensor: Tensor) -> list[Tensor]:
        call = next(calls)
        return [tensor, *(sent[call] for sent in others)]

    return shares[0].take(lambda tensor: torch.stack(gather(tensor)).sum(0), gather)


class TestTotals:
    @pytest.mark.parametrize("processes", [1, 2, 3])
    @pytest.mark.parametrize("length", [1, 5, 129, 1000])
    def test_do_not_depend_on_batches_and_processes(self, length: int, processes: int) -> None:
        """Batches of 16 samples, distributed over processes."""
        random = torch.Generator().manual_seed(length)
        membrane, target = torch.randn((2, 7, length, 3), generator=random).unbind(0)
        shares = []
        for rank in range(processes):
            means = metrics.Totals({})
            for batch in OrderedBatches(length, 16, rank, processes):
                means.add({"l1": metrics.l1(membrane[:, batch], target[:, batch])})
                means.add({"error": metrics.relative_error(membrane[:, batch], target[:, batch])})
                means.add({"hit": metrics.accuracy(membrane[0, batch].argmax(-1), target[0, batch].argmax(-1))})
            shares.append(means)
        actual = reduce_all(shares)
        whole = (membrane - target).abs().double().mean()
        ratio = torch.linalg.vector_norm(membrane - target, dim=-1) / torch.linalg.vector_norm(target, dim=-1)
        hits = (membrane[0].argmax(-1) == target[0].argmax(-1)).double().mean()
        expected = torch.stack([whole, ratio[1:].double().mean(), hits])
        torch.testing.assert_close(torch.stack([*actual.values()]).double(), expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("batch_size", [3, 6, 18])
    def test_equal_losses_do_not_accumulate_rounding_errors(self, batch_size: int) -> None:
        """Equal batches are rounded in the same direction, 334 of them by 3e-6 in float32."""
        means = metrics.Totals({})
        for batch in OrderedBatches(1000, batch_size):
            means.add({"loss": metrics.counted(torch.tensor(1.9) * len(batch), len(batch))})
        assert means.take()["loss"].item() == pytest.approx(1.9, rel=1e-7)

    def test_take_resets_the_states(self) -> None:
        means = metrics.Totals({})
        means.add({"a": metrics.counted(torch.tensor(6.0), 4)})
        assert means.take() == {"a": 1.5}
        assert means.take() == {}

    def test_a_count_of_zero_gives_nan(self) -> None:
        means = metrics.Totals({})
        means.add({"a": metrics.counted(torch.tensor(0.0), 0)})
        assert means.take()["a"].isnan()


@dataclass(frozen=True)
class Largest(metrics.Measure):
    """The largest count of a class, merged by maximum."""

    def update(self, readout: Any, target: Tensor) -> metrics.State:
        return (torch.bincount(target, minlength=3).amax(),)

    def merge(self, state: metrics.State, other: metrics.State) -> metrics.State:
        return (torch.maximum(state[0], other[0]),)

    def compute(self, state: metrics.State) -> Tensor:
        return state[0].double()


def test_custom_merge() -> None:
    """Over batches, over processes, and for members of a stack."""
    batches = [torch.tensor(labels) for labels in ([0, 0, 1], [2, 2, 2, 2], [1, 0])]
    shares = [metrics.Totals({"largest": Largest()}) for _ in range(2)]
    for share, own in zip(shares, (batches[:1], batches[1:]), strict=True):
        for batch in own:
            share.add({"test/largest": Largest().update(None, batch), "test/loss": metrics.counted(batch.sum(), 1)})
    actual = reduce_all(shares)
    assert (actual["test/largest"], actual["test/loss"]) == (4, pytest.approx(10 / 3))
    stacked = metrics.Totals({"largest": Largest()}, stacked=True)
    for values in ([1, 5], [3, 2]):
        stacked.add({"test/largest": (torch.tensor(values),)})
    assert stacked.take()["test/largest"].tolist() == [3, 5]


def in_batches(measure: metrics.Measure, scores: Tensor, target: Tensor) -> Tensor:
    """Return the value for all samples, in batches of 7."""
    totals = metrics.Totals({"own": measure})
    for batch in torch.arange(len(target)).split(7):
        readout = SimpleNamespace(predicted=scores[batch].argmax(-1), scores=scores[batch])
        totals.add({"val/own": measure.update(readout, target[batch])})
    return totals.take()["val/own"]


@pytest.mark.parametrize("classes", [2, 3, 30])
@pytest.mark.parametrize(
    ("measure", "peer"),
    [
        (metrics.MacroF1(), multiclass_f1_score),
        (metrics.MacroPrecision(), multiclass_precision),
        (metrics.MacroRecall(), multiclass_recall),
    ],
)
def test_classification_metrics_equal_torchmetrics(measure: metrics.Measure, peer: Any, classes: int) -> None:
    """With 30 classes, many do not occur."""
    random = torch.Generator().manual_seed(classes)
    target, scores = torch.randint(classes, (50,), generator=random), torch.rand((50, classes), generator=random)
    expected = peer(scores.argmax(-1), target, classes, average="macro")
    torch.testing.assert_close(in_batches(measure, scores, target), expected)
    assert in_batches(measure, scores, target).dtype == torch.float32


def test_balanced_accuracy_ignores_classes_without_labels() -> None:
    """Recall is 2/3 for class 0 and 1 for class 1; class 2 is predicted once and has no labels."""
    scores = torch.eye(3)[torch.tensor([0, 0, 2, 1])]
    actual = in_batches(metrics.BalancedAccuracy(), scores, torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(actual, torch.tensor((2 / 3 + 1) / 2))


class TestRocAuc:
    @pytest.mark.parametrize("classes", [2, 4])
    def test_equals_torchmetrics(self, classes: int) -> None:
        random = torch.Generator().manual_seed(classes)
        target = torch.arange(50) % classes
        # integers, so that many are equal
        scores = torch.randint(4, (50, classes), generator=random).float()
        # round probabilities that differ in the last digit due to the order of summation
        equal = scores.double().softmax(-1).round(decimals=9)
        expected = multiclass_auroc(equal, target, classes, average="macro", thresholds=None)
        torch.testing.assert_close(in_batches(metrics.RocAuc(), scores, target), expected)

    def test_by_hand(self) -> None:
        """Two samples per class: 3 of 4 pairs are in the correct order."""
        scores = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [0.0, 4.0]])
        assert in_batches(metrics.RocAuc(), scores, torch.tensor([0, 0, 1, 1])) == 0.75

    @pytest.mark.parametrize("scale", [2**-10, 2**10])
    def test_two_classes_do_not_depend_on_the_scale_of_scores(self, scale: float) -> None:
        """Also if a probability rounds to 1."""
        random = torch.Generator().manual_seed(0)
        scores, target = torch.randint(9, (50, 2), generator=random).float(), torch.arange(50) % 2
        expected = in_batches(metrics.RocAuc(), scores, target)
        assert in_batches(metrics.RocAuc(), scale * scores, target) == expected

    def test_scores_of_minus_infinity(self) -> None:
        """``SpikeCount(ties="membrane")`` scores all classes without the highest count -inf."""
        scores = torch.tensor([[1.0, -torch.inf, -torch.inf], [-torch.inf, 2, -torch.inf], [0, -torch.inf, 1]])
        assert in_batches(metrics.RocAuc(), scores, torch.tensor([0, 1, 2])) == 1

    def test_a_class_without_samples_gives_nan(self) -> None:
        assert in_batches(metrics.RocAuc(), torch.rand(4, 3), torch.tensor([0, 0, 1, 1])).isnan()

    def test_processes_can_have_different_numbers_of_samples(self) -> None:
        random = torch.Generator().manual_seed(0)
        scores, target = torch.rand((20, 3), generator=random), torch.arange(20) % 3
        shares = [metrics.Totals({"own": metrics.RocAuc()}) for _ in range(2)]
        for share, part in zip(shares, (slice(0, 13), slice(13, 20)), strict=True):
            share.add({"val/own": metrics.RocAuc().update(SimpleNamespace(scores=scores[part]), target[part])})
        torch.testing.assert_close(reduce_all(shares)["val/own"], in_batches(metrics.RocAuc(), scores, target))


def test_latency_of_a_population_is_the_first_spike_of_any_neuron() -> None:
    """Two neurons per class: one fires in step 1, the others later or never."""
    spikes = torch.zeros(5, 1, 4)
    spikes[1, 0, 3] = spikes[4, 0, 0] = 1
    readout = Readout(Trace(spikes, spikes, None), Population(size=2), None)
    assert mean(metrics.Latency().update(readout, torch.zeros(1))) == 1  # type: ignore[arg-type]


def test_latency_is_the_first_spike_of_any_neuron() -> None:
    """The first sample fires at step 2, the second at 0, the third never."""
    first = torch.tensor([[5.0, 2.0], [0.0, 4.0], [5.0, 5.0]])
    total, count = metrics.Latency().update(SimpleNamespace(first_spike=first, num_steps=5), torch.zeros(3))
    assert (total, count) == (2, 2)


class TestValues:
    @pytest.mark.parametrize("shape", [(50, 1), (50, 3), (4, 50, 2)])
    def test_equal_torchmetrics(self, shape: tuple[int, ...]) -> None:
        random = torch.Generator().manual_seed(0)
        target = 1000 + torch.rand(shape, generator=random)
        output = target + 0.1 * torch.randn(shape, generator=random)
        for measure, expected in (
            # in float32, the R2 of torchmetrics has an error of 0.1
            (metrics.R2(), r2_score(output.double().flatten(0, -2), target.double().flatten(0, -2))),
            (metrics.RMSE(), mean_squared_error(output, target, squared=False)),
        ):
            totals = metrics.Totals({"own": measure})
            for batch in torch.arange(50).split(7):
                pair = output[..., batch, :], target[..., batch, :]
                readout = SimpleNamespace(compared=lambda target, pair=pair: pair)
                totals.add({"test/own": measure.update(readout, pair[1])})
            torch.testing.assert_close(totals.take()["test/own"], expected.float())

    def test_r2_of_constant_targets_is_nan(self) -> None:
        output, target = torch.rand(9, 1), torch.full((9, 1), 0.3)
        readout = SimpleNamespace(compared=lambda target: (output, target))
        assert metrics.R2().compute(metrics.R2().update(readout, target)).isnan()

    def test_r2_of_targets_far_from_zero(self) -> None:
        """Targets alternate between 1e6 - .5 and 1e6 + .5, all errors are .1."""
        target = 1e6 + (torch.arange(1000) % 2 - 0.5).unsqueeze(1)
        readout = SimpleNamespace(compared=lambda target: (target.double() + 0.1, target))
        actual = metrics.R2().compute(metrics.R2().update(readout, target))
        assert actual.item() == pytest.approx(1 - 0.1**2 / 0.5**2)


def test_firing_rate() -> None:
    spikes = torch.zeros(10, 2, 3)
    spikes[:6, 0, 1] = 1
    torch.testing.assert_close(metrics.firing_rate(spikes).item(), 6 / 60)


def test_synaptic_operations_of_a_linear_layer() -> None:
    """Each of 5 spikes reaches all 7 outputs; the result is per sample, of 2 samples."""
    spikes = torch.zeros(4, 2, 3)
    spikes[0, :, 1] = spikes[2, 1, :] = 1
    assert metrics.synaptic_operations(spikes, nn.Linear(3, 7)) == 5 * 7 / 2


def count_one_by_one(spikes: Tensor, conv: nn.Conv2d) -> int:
    """Count one addition per spike, output channel, and output position whose window contains the spike."""
    (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
    height, width = conv(spikes[:1, 0]).shape[-2:]
    count = 0
    for *_, y, x in spikes.nonzero().tolist():
        for top, left in product(range(height), range(width)):
            count += 0 <= y + ph - sh * top < kh and 0 <= x + pw - sw * left < kw
    return count * conv.out_channels


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(3, 1, 0), (3, 1, 1), (5, 1, 2), (3, 2, 1), (2, 2, 0), (1, 1, 0), (2, 3, 1), ((3, 1), (1, 2), (1, 0))],
)
def test_synaptic_operations_of_a_convolution(kernel_size: int, stride: int, padding: int) -> None:
    spikes = (torch.rand(3, 2, 4, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    conv = nn.Conv2d(4, 5, kernel_size, stride, padding)
    assert metrics.synaptic_operations(spikes, conv) == count_one_by_one(spikes, conv) / 2


@pytest.mark.parametrize("synapse", [nn.Linear(3, 7), nn.Conv2d(2, 4, 3, padding=1), 1])
def test_negative_spikes_are_counted_alike(synapse: nn.Linear | nn.Conv2d | int) -> None:
    """Delta modulation emits negative spikes."""
    spikes = torch.ones(2, 1, 2, 3, 3)
    signed = spikes.clone()
    signed[1] = -1
    assert metrics.synaptic_operations(signed, synapse) == metrics.synaptic_operations(spikes, synapse) > 0


@pytest.mark.parametrize("synapse", [nn.Linear(7, 5), nn.Conv2d(4, 5, 3)], ids=["linear", "conv2d"])
def test_no_spikes_no_operations(synapse: nn.Linear | nn.Conv2d) -> None:
    assert metrics.synaptic_operations(torch.zeros(3, 2, 4, 6, 7), synapse) == 0


def test_penalties_are_minimized_whatever_their_name() -> None:
    assert higher_is_better("val/penalty/accuracy", {"accuracy": True}) is False
    assert higher_is_better("val/penalty/target_rate") is False
    assert higher_is_better("val/accuracy") is True

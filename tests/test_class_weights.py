"""Class weights of losses: PyTorch's definition, the balanced rule, and weights in a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from snnexp.errors import ConfigError
from snnexp.experiment import build, compose, evaluate, run
from snnexp.losses import CEMembrane, CrossEntropy, NLLMaxVoltage
from snnexp.neurons import Trace
from snnexp.record.checkpoint import decode, read_checkpoint
from snnexp.training.stacked import Point
from snnexp.training.stacked import train as train_stacked

OUTSIDE = Path(__file__).parent / "outside"
WEIGHTS = [0.5, 2.0, 0.0, 3.0]
TARGET = torch.tensor([0, 1, 1, 3, 2])
BUMPS = [
    *["data=dataset", "data.dataset._target_=adaptpkg.bumps.Bumps", "+data.dataset.count=40", "data.batch_size=8"],
    *["network.hidden=[4]", "num_steps=4", "trainer=cpu", "trainer.max_epochs=2", "logger=jsonl"],
]
BALANCED = [*BUMPS, "loss=ce_membrane", "loss.class_weights=balanced"]


@pytest.fixture
def _bumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "adaptpkg")


def trace_of(membrane: Tensor) -> Trace:
    return Trace(torch.zeros_like(membrane), membrane, ())


def ce(membrane: Tensor, weights: Tensor | None) -> Tensor:
    return torch.stack([F.cross_entropy(step, TARGET, weights) for step in membrane]).sum()


def nll(membrane: Tensor, weights: Tensor | None) -> Tensor:
    return F.nll_loss(membrane.amax(0).log_softmax(1), TARGET, weights)


KINDS = pytest.mark.parametrize(("kind", "wanted"), [(CEMembrane, ce), (NLLMaxVoltage, nll)])
Kind = type[CEMembrane] | type[NLLMaxVoltage]
Wanted = Callable[[Tensor, Tensor | None], Tensor]


@KINDS
@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_matches_the_weighted_mean_of_pytorch(kind: Kind, wanted: Wanted, weights: list[float] | None) -> None:
    torch.manual_seed(0)
    membrane = torch.randn(6, 5, 4, dtype=torch.float64, requires_grad=True)
    loss = kind(weights)(trace_of(membrane), TARGET)
    expected = wanted(membrane, None if weights is None else torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, membrane)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda values: kind(weights)(trace_of(values), TARGET), membrane)


@KINDS
def test_members_have_their_own_weights(kind: Kind, wanted: Wanted) -> None:
    membrane = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    weights = torch.rand(3, 4, dtype=torch.float64)
    found = vmap(lambda values, own: kind().compare(trace_of(values), TARGET, own))(membrane, weights)
    torch.testing.assert_close(found, torch.stack([*map(wanted, membrane, weights)]))


def test_balanced_is_n_over_k_times_n_c() -> None:
    loss = CEMembrane("balanced").balanced([10, 20, 70])
    assert loss.class_weights == pytest.approx([100 / 30, 100 / 60, 100 / 210])


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: CEMembrane("balanced").balanced([3, 0, 1]), "class 1 has no training samples"),
        (lambda: CEMembrane([1.0, -1.0]), "at least 0"),
        (lambda: CEMembrane("balanced").numbers(3), "class counts are not known yet"),
    ],
)
def test_invalid_weights_are_refused(refused: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"class_weights.*{message}"):
        refused()


@pytest.mark.usefixtures("_bumps")
class TestRun:
    def test_the_weights_are_those_of_the_training_split(self) -> None:
        parts = build(compose(BALANCED))
        counts = parts.data.class_counts()
        assert counts is not None
        assert len({*counts}) > 1, "otherwise all weights would be 1"
        assert isinstance(parts.loss, CrossEntropy)
        assert parts.loss.class_weights == [32 / (3 * count) for count in counts]

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ("[1,2]", "got 2 weights, must be 3, one for each class"),
            ("[0,0,0]", "got 0 for all classes, at least one must be positive"),
        ],
    )
    def test_invalid_lists_are_refused(self, weights: str, message: str) -> None:
        with pytest.raises(ConfigError, match=rf"^loss\.class_weights: {message}$"):
            build(compose([*BUMPS, "loss=ce_membrane", f"loss.class_weights={weights}"]))

    def test_evaluation_on_other_samples_uses_the_weights_of_the_run(self, tmp_path: Path) -> None:
        done = run(compose(BALANCED), [*BALANCED], tmp_path)
        weights = build(compose(BALANCED)).loss.class_weights  # type: ignore[attr-defined]
        other = ["data.dataset.count=70"]
        found = evaluate(done.path, overrides=other)["test/loss"]
        assert build(compose([*BALANCED, *other])).loss.class_weights != weights  # type: ignore[attr-defined]
        typed = [*other, f"loss.class_weights={weights}"]
        assert found == evaluate(done.path, overrides=typed)["test/loss"]
        assert found != evaluate(done.path, overrides=[*other, "loss.class_weights=null"])["test/loss"]

    def test_a_checkpoint_without_weights_has_no_additional_key(self, tmp_path: Path) -> None:
        typed = [*BUMPS, "loss=ce_membrane"]
        last = run(compose(typed), typed, tmp_path).path / "checkpoints" / "last.ckpt"
        assert "class_weights" not in decode(read_checkpoint(last), last)["callbacks"]

    def test_a_stack_matches_its_members(self, tmp_path: Path) -> None:
        typed = [[*BALANCED, f"seed={seed}"] for seed in (0, 1)]
        ends: dict[int, Any] = {}
        points = [Point(compose(words), words) for words in typed]
        train_stacked(points, tmp_path / "stack", lambda *_: None, ends.__setitem__)
        for index, words in enumerate(typed):
            wanted = run(compose(words), words, tmp_path / str(index)).metrics["test/loss"]
            assert ends[index].metrics["test/loss"] == pytest.approx(wanted, rel=1e-4)

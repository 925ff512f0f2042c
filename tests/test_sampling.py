"""Weighted and balanced sampling: frequencies of samples, and reproducible order."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snnexp.data import DataModule, from_dataset
from snnexp.data.batches import Batch, ShuffledBatches
from snnexp.data.check import check
from snnexp.data.reading import InMemorySamples
from snnexp.data.splits import split
from snnexp.errors import ConfigError

LABELS = torch.tensor([0] * 80 + [2] * 15 + [1] * 5)


def stored(targets: Tensor = LABELS) -> InMemorySamples:
    return InMemorySamples(torch.arange(float(len(targets)))[:, None], targets, (0, 0))


def module(sampling: Any = "balanced", train: Any = None, seed: int = 0, **arguments: Any) -> DataModule:
    train = stored() if train is None else train
    return DataModule(train, stored(), (1,), 4, batch_size=10, seed=seed, sampling=sampling, **arguments)


def order(data: DataModule, epoch: int = 0) -> list[int]:
    sampler: Any = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return [*chain.from_iterable(sampler)]


class TestWeights:
    def test_frequencies_are_proportional_to_weights(self) -> None:
        weights = torch.tensor([1.0, 0.0, 3.0, 4.0, 0.0]).repeat_interleave(4000)
        batches = ShuffledBatches(20_000, 64, False, 3, weights=weights)
        drawn = torch.tensor([*chain.from_iterable(batches)])
        assert len(drawn) == 20_000
        found = torch.bincount(drawn // 4000, minlength=5) / 20_000
        # four standard deviations of a frequency are .014
        torch.testing.assert_close(found, torch.tensor([0.125, 0, 0.375, 0.5, 0]), rtol=0, atol=0.014)
        assert found[1] == found[4] == 0

    def test_the_order_continues_on_resume(self) -> None:
        weights = [1.0, 2.0, 3.0] * 10
        whole = ShuffledBatches(30, 4, False, 1, weights=weights)
        rest = ShuffledBatches(30, 4, False, 1, begin=(2, 3), weights=weights)
        whole.set_epoch(2)
        rest.set_epoch(2)
        assert [*rest] == [*whole][3:]
        assert all(isinstance(batch, Batch) and batch.epoch == 2 for batch in rest)

    def test_processes_share_each_batch(self) -> None:
        weights = [1.0, 2.0, 3.0] * 8
        whole, *ranks = (
            ShuffledBatches(24, 6, False, 1, rank, world, weights=weights) for rank, world in ((0, 1), (0, 2), (1, 2))
        )
        for batch, *shares in zip(whole, *ranks, strict=True):
            assert sorted(chain(*shares)) == sorted(batch)


class TestBalanced:
    def test_each_class_is_drawn_equally_often(self) -> None:
        data = module()
        drawn = LABELS[[index for epoch in range(60) for index in order(data, epoch)]]
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]), rtol=0, atol=0.025)

    def test_the_order_depends_only_on_seed_and_epoch(self) -> None:
        assert order(module(), 1) == order(module(), 1)
        assert order(module(), 1) != order(module(), 2)
        assert order(module(), 1) != order(module(seed=1), 1)

    @pytest.mark.parametrize("target", ["values", "step_labels"])
    def test_requires_labels(self, target: Any) -> None:
        with pytest.raises(ConfigError, match=f"^sampling: got balanced, but the targets are {target}, not labels$"):
            module(target=target)

    def test_shuffled_has_all_samples(self) -> None:
        assert sorted(order(module("shuffled"))) == [*range(100)]


class Pairs(Dataset[Any]):
    """A dataset that counts its reads."""

    def __init__(self, **attributes: Any) -> None:
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.zeros(2), int(LABELS[index])


class TestEvaluationCounts:
    def test_counts_of_the_training_samples(self) -> None:
        assert module().class_counts() == [80, 5, 15, 0]
        assert module(target="step_labels", sampling="shuffled").class_counts() == [80, 5, 15, 0]
        assert module(target="values", sampling="shuffled").class_counts() is None

    def test_other_dtypes_are_counted(self) -> None:
        data = module(train=stored(LABELS.int()))
        check(data, 5)
        assert data.class_counts() == [80, 5, 15, 0]

    @pytest.mark.parametrize(
        ("attributes", "arguments", "is_read"),
        [
            ({}, {}, True),
            ({"targets": LABELS.tolist(), "target_transform": None}, {}, False),
            ({"targets": LABELS, "target_transform": None}, {}, False),
            ({"targets": LABELS, "target_transform": abs}, {}, True),
            ({"targets": LABELS, "target_transform": None}, {"target_transform": lambda label: 2 - label}, True),
            ({"targets": LABELS}, {}, True),
        ],
    )
    def test_a_dataset_without_known_labels_is_read(
        self, attributes: dict[str, Any], arguments: dict[str, Any], is_read: bool
    ) -> None:
        dataset = Pairs(**attributes)
        data = from_dataset(dataset, test=Pairs(), outputs=3, **arguments)
        before = dataset.reads
        assert data.class_counts() == ([15, 5, 80] if arguments else [80, 5, 15])
        assert dataset.reads - before == (100 if is_read else 0)
        data.class_counts()
        assert dataset.reads - before == (100 if is_read else 0), "once"

    def test_labels_of_a_dataset_are_those_of_its_training_split(self) -> None:
        data = from_dataset(Pairs(targets=LABELS, target_transform=None), outputs=3)
        trained = split(100, {"test": 0.2}, 0)["train"]
        assert data.class_counts() == torch.bincount(LABELS[trained]).tolist()

    def test_other_samples_are_read(self) -> None:
        whole = stored()
        samples: Any = type("Own", (), {"__len__": lambda _: 100, "__getitem__": lambda _, indices: whole[indices]})()
        assert module(train=samples).class_counts() == [80, 5, 15, 0]

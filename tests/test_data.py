"""Data modules: trajectories of the tutorial, MNIST, and batch samplers."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor

from snnexp.data import MNIST, DataModule, RegressionDataset, mnist, mnist_data, regression_data
from snnexp.data.batches import OrderedBatches, ShuffledBatches
from snnexp.data.check import check
from snnexp.errors import ConfigError, DataError, InterruptedRunError
from snnexp.experiment import build, compose


def tutorial(num_steps: int, num_samples: int, mode: str, seed: int) -> tuple[Tensor, Tensor]:
    """Draw trajectories as in snnTorch's tutorial, one number at a time."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(num_samples):
        end = float(torch.rand(1, generator=generator))
        rows.append(torch.linspace(0.0, end, num_steps).view(num_steps, 1))
    features = torch.stack(rows, dim=1)
    if mode == "linear":
        return features, features * 1
    slope = float(torch.rand(1, generator=generator))
    return features, torch.sqrt(features * slope)


class TestRegression:
    @pytest.mark.parametrize("mode", ["linear", "sqrt"])
    @pytest.mark.parametrize(
        ("num_steps", "num_samples", "seed"), [(50, 1, 0), (50, 3, 1), (7, 16, 2), (2, 257, 2**32 - 1)]
    )
    def test_equals_the_tutorial(self, mode: str, num_steps: int, num_samples: int, seed: int) -> None:
        dataset = RegressionDataset(num_steps, num_samples, mode, seed)
        features, labels = dataset[list(range(num_samples))]
        wanted_features, wanted_labels = tutorial(num_steps, num_samples, mode, seed)
        assert features.shape == labels.shape == (num_steps, num_samples, 1)
        assert features.dtype == labels.dtype == torch.float32
        assert torch.equal(features, wanted_features)
        assert torch.equal(labels, wanted_labels)
        assert len(dataset) == num_samples

    def test_inputs_increase_linearly_to_an_end_below_one(self) -> None:
        features, labels = RegressionDataset(11, 20, "linear", seed=4)[list(range(20))]
        assert torch.equal(labels, features)
        assert features[0].eq(0).all()
        assert 0 < features[-1].min() < features[-1].max() < 1
        torch.testing.assert_close(features.diff(dim=0), (features[-1] / 10).expand(10, -1, -1))

    def test_square_roots_share_one_slope(self) -> None:
        features, labels = RegressionDataset(30, 12, "sqrt", seed=5)[list(range(12))]
        slope = labels[1:].square() / features[1:]
        assert 0 < slope[0, 0, 0] < 1
        torch.testing.assert_close(slope, slope[0, 0, 0].expand_as(slope))

    def test_depends_only_on_its_seed(self) -> None:
        torch.manual_seed(1)
        first = RegressionDataset(num_steps=5, num_samples=4, seed=9)
        torch.manual_seed(2)
        again, other = (RegressionDataset(num_steps=5, num_samples=4, seed=seed) for seed in (9, 10))
        assert torch.equal(first.features, again.features)
        assert torch.equal(first.labels, again.labels)
        assert not torch.equal(first.features, other.features)

    def test_an_index_gives_a_sample_and_a_list_a_batch(self) -> None:
        dataset = RegressionDataset(num_steps=5, num_samples=4)
        assert dataset[2][0].shape == (5, 1)
        assert torch.equal(dataset[[3, 1]][1], torch.stack([dataset[3][1], dataset[1][1]], dim=1))

    @pytest.mark.parametrize("wrong", [{"mode": "cubic"}, {"num_samples": 0}, {"num_steps": 0}, {"seed": -1}])
    def test_refuses(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RegressionDataset(**wrong)

    def test_data_module_serves_sequences(self) -> None:
        data = regression_data("sqrt", num_steps=6, num_samples=5, batch_size=2)
        assert [features.shape for features, _ in data.train_dataloader()] == [(6, 2, 1), (6, 2, 1), (6, 1, 1)]
        assert (data.inputs, data.outputs, data.target, data.sequences) == ((1,), 1, "trace", True)


def epoch(number: int, *arguments: Any) -> list[list[int]]:
    batches = ShuffledBatches(*arguments)
    batches.set_epoch(number)
    assert len(batches) == len(list(batches))
    return list(batches)


class TestShuffledBatches:
    @pytest.mark.parametrize(("length", "batch_size"), [(10, 3), (9, 3), (5, 8), (1, 1), (100, 1)])
    def test_an_epoch_is_a_permutation_in_batches(self, length: int, batch_size: int) -> None:
        batches = epoch(0, length, batch_size, False, 7)
        assert sorted(chain(*batches)) == list(range(length))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)

    def test_drop_last(self) -> None:
        dropped, kept = epoch(2, 11, 4, True, 7), epoch(2, 11, 4, False, 7)
        assert dropped == kept[:2]
        assert [len(batch) for batch in kept] == [4, 4, 3]
        assert epoch(2, 12, 4, True, 7) == epoch(2, 12, 4, False, 7)

    def test_order_is_a_function_of_seed_and_epoch(self) -> None:
        batches = ShuffledBatches(30, 4, False, seed=3)
        orders = []
        for number in range(3):
            torch.manual_seed(number)
            batches.set_epoch(number)
            orders.append(list(batches))
            assert list(batches) == orders[-1], "iterating twice gives the same order"
        assert orders == [epoch(number, 30, 4, False, 3) for number in range(3)]
        distinct = {str(epoch(number, 30, 4, False, seed)) for number in range(5) for seed in (0, 1, 3, 2**32 - 1)}
        assert len(distinct) == 20

    @pytest.mark.parametrize("length", [12, 15])
    @pytest.mark.parametrize("world", [2, 4])
    def test_processes_share_every_batch(self, length: int, world: int) -> None:
        alone = epoch(1, length, 4, False, 0)
        ranks = [epoch(1, length, 4, False, 0, rank, world) for rank in range(world)]
        assert len({tuple(len(share) for share in shares) for shares in ranks}) == 1, "all have the same size"
        for index, shares in enumerate(zip(*ranks, strict=True)):
            together = list(chain(*shares))
            assert len(together) == len(set(together)) == len(alone[index]) // world * world
            assert set(together) <= set(alone[index])

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
    @pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
    @pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
    def test_training_uses_the_order_of_each_epoch(self) -> None:
        class Recorded(RegressionDataset):
            seen: list[list[int]] = []  # noqa: RUF012

            def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
                self.seen.append(indices)
                return super().__getitem__(indices)

        tiny = ["data.num_samples=5", "data.batch_size=2", "num_steps=3", "network.hidden=[]", "trainer.max_epochs=3"]
        parts = build(compose(["experiment=regression_linear", "trainer=cpu", "seed=6", *tiny]))
        parts.data.train = Recorded(num_steps=3, num_samples=5)
        parts.trainer.fit(parts.task, datamodule=parts.data)
        assert Recorded.seen == [batch for number in range(3) for batch in epoch(number, 5, 2, False, 6)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_are_moved_to_the_device(num_workers: int) -> None:
    """Except with data workers, which do not use the device."""
    module = regression_data("sqrt", num_steps=4, num_samples=3, num_workers=num_workers)
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))  # type: ignore[assignment]
    module.setup("fit")
    for samples in (module.train, module.test):
        kinds = {part.device.type for part in samples[[0, 1]]}
        assert kinds == {"cpu" if num_workers else "meta"}


class TestOrderedBatches:
    @pytest.mark.parametrize(("length", "batch_size"), [(10, 3), (9, 3), (5, 8), (1, 1), (17, 16)])
    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_all_samples_once_over_all_processes(self, length: int, batch_size: int, world: int) -> None:
        ranks = [OrderedBatches(length, batch_size, rank, world) for rank in range(world)]
        if min(length, batch_size) < world:
            # too few samples to share: each process gets all, so that the mean over processes is correct
            assert all(list(chain(*batches)) == list(range(length)) for batches in ranks)
        else:
            assert sorted(index for batches in ranks for index in chain(*batches)) == list(range(length))
        for batches in ranks:
            assert len(batches) == len(list(batches))
            assert all(1 <= len(batch) <= batch_size for batch in batches)

    def test_one_process_reads_in_order(self) -> None:
        assert list(OrderedBatches(5, 2)) == [[0, 1], [2, 3], [4]]


class TestDataModule:
    def test_drop_last_without_a_full_batch_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^batch_size: got 4, must be at most the 3 "):
            regression_data("sqrt", num_steps=2, num_samples=3, batch_size=4, drop_last=True)

    def test_a_batch_that_cannot_be_divided_equally_is_refused(self) -> None:
        data = regression_data("sqrt", num_steps=2, num_samples=6, batch_size=3)
        data.require_shareable(3)
        with pytest.raises(ConfigError, match="batch_size"):
            data.require_shareable(2)

    def test_batches_do_not_depend_on_workers(self, tiny_mnist: Path) -> None:
        def images(num_workers: int) -> Tensor:
            data = mnist_data(str(tiny_mnist), batch_size=16, num_workers=num_workers, seed=2)
            return torch.cat([images for images, _ in data.train_dataloader()])

        assert torch.equal(images(0), images(1))

    def test_an_interrupted_wait_kills_the_workers_in_any_thread(self, tiny_mnist: Path) -> None:
        def give_up() -> tuple[set[BaseProcess], set[BaseProcess]]:
            data = mnist_data(str(tiny_mnist), batch_size=16, num_workers=1)
            batches = iter(data.train_dataloader())
            next(batches)
            forked = {*data.workers}
            with pytest.raises(InterruptedRunError), data.wait():
                raise InterruptedRunError(signal.SIGTERM)
            return forked, data.workers

        for forked, left in (give_up(), ThreadPoolExecutor(1).submit(give_up).result()):
            assert [worker.exitcode for worker in forked] == [-signal.SIGKILL]
            assert not left


class TestMNIST:
    def test_matches_torchvision(self, tiny_mnist: Path) -> None:
        for train in (True, False):
            ours, theirs = MNIST(tiny_mnist, train=train), torchvision.datasets.MNIST(str(tiny_mnist), train=train)
            assert ours.images.dtype == torch.uint8
            assert torch.equal(ours.images.squeeze(1), theirs.data)
            assert torch.equal(ours.labels, theirs.targets)
            assert ours.labels.dtype == torch.int64

    def test_pixels_are_from_0_to_1_or_normalized(self, tiny_mnist: Path) -> None:
        plain, normal = MNIST(tiny_mnist), MNIST(tiny_mnist, mean=0.1307, std=0.3081)
        images, labels = plain[[3, 0, 5]]
        assert images.shape == (3, 1, 28, 28)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert torch.equal(images, plain.images[[3, 0, 5]] / 255)
        assert torch.equal(labels, plain.labels[[3, 0, 5]])
        torch.testing.assert_close(normal[[3, 0, 5]][0], (images - 0.1307) / 0.3081)
        assert torch.equal(plain[[3, 0, 5]][0], images), "reading does not modify the stored images"

    def test_writes_do_not_affect_other_instances(self, tiny_mnist: Path) -> None:
        first = MNIST(tiny_mnist)
        images, labels = first.images.clone(), first.labels.clone()
        first.images[:].numpy()[:] = 0
        first.labels.zero_()
        again = MNIST(tiny_mnist)
        assert torch.equal(again.images, images)
        assert torch.equal(again.labels, labels)

    def test_instances_share_memory(self, tiny_mnist: Path) -> None:
        data = build(compose(["experiment=mnist_leaky", "data.batch_size=8", "network.hidden=[3]"])).data
        for images, _ in data.train_dataloader():
            assert images.any()
        assert torch._C._is_cow_tensor(data.train.images)

    def test_validation_split(self, tiny_mnist: Path) -> None:
        def rows(samples: Any) -> set[bytes]:
            return {image.numpy().tobytes() for image in samples.images}

        def split(seed: int) -> DataModule:
            return mnist_data(str(tiny_mnist), val_size=10, batch_size=8, seed=seed)

        data, again, other = split(1), split(1), split(2)
        assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 20)
        assert not rows(data.train) & rows(data.val)
        assert rows(data.train) | rows(data.val) == rows(MNIST(tiny_mnist))
        assert torch.equal(data.val.images, again.val.images)
        assert rows(data.val) != rows(other.val)
        assert torch.equal(torch.cat([labels for _, labels in data.val_dataloader()]), data.val.labels)
        assert mnist_data(str(tiny_mnist), batch_size=8).val_dataloader() == []

    @pytest.mark.parametrize("size", [40, 60_000])
    def test_a_validation_split_of_all_samples_is_refused(self, tiny_mnist: Path, size: int) -> None:
        with pytest.raises(ConfigError, match=f"^val_size: got {size}, .*40"):
            mnist_data(str(tiny_mnist), val_size=size)

    @pytest.mark.parametrize("name", list(mnist.SHA256))
    @pytest.mark.parametrize(
        "damage",
        [lambda content: content[:-1], lambda content: b"", lambda content: content[:-1] + bytes([content[-1] ^ 1])],
        ids=["truncated", "empty", "one bit"],
    )
    def test_damaged_files_are_detected(self, tiny_mnist: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
        path = tiny_mnist / "MNIST" / "raw" / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match="damaged") as caught:
            mnist_data(str(tiny_mnist), batch_size=8)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 4

    def test_other_files_with_the_published_names_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "MNIST" / "raw").mkdir(parents=True)
        for name in mnist.SHA256:
            (tmp_path / "MNIST" / "raw" / name).write_bytes(bytes(1000))
        with pytest.raises(DataError, match=r"damaged.*1000 bytes"):
            MNIST(tmp_path)

    @pytest.mark.parametrize("name", list(mnist.SHA256))
    def test_a_missing_file_is_reported(self, tiny_mnist: Path, name: str) -> None:
        folder = tiny_mnist / "MNIST" / "raw"
        (folder / name).unlink()
        with pytest.raises(DataError) as caught:
            MNIST(tiny_mnist)
        for word in (name, str(folder), "SNNEXP_DATA_DIR", "data.root", "data.download=true"):
            assert word in str(caught.value)
        assert caught.value.exit_code == 4

    @pytest.mark.parametrize(
        "error", [URLError("no route to host"), RuntimeError("Error downloading\nno route to host"), OSError()]
    )
    def test_download_without_a_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
        with pytest.raises(DataError, match="could not be downloaded") as caught:
            mnist_data(str(tmp_path), download=True)
        assert str(tmp_path) in str(caught.value)
        assert "no route to host" in str(caught.value) or isinstance(error, OSError)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)

    def test_downloads_only_missing_files_and_only_on_request(
        self, tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *_, **__: pytest.fail("downloads"))
        assert len(MNIST(tiny_mnist, download=True)) == 40
        with pytest.raises(DataError, match="missing"):
            MNIST(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def real_root() -> Path:
    root = os.environ.get("SNNEXP_DATA_DIR")
    if root is None:
        pytest.skip("the MNIST files are needed: SNNEXP_DATA_DIR is not set")
    missing = [name for name in mnist.SHA256 if not (Path(root) / "MNIST" / "raw" / name).is_file()]
    if missing:
        pytest.skip(f"the MNIST files are needed: SNNEXP_DATA_DIR lacks MNIST/raw/{missing[0]}")
    return Path(root)


class TestPublishedMNIST:
    def test_sizes_labels_and_storage(self, real_root: Path) -> None:
        train, test = MNIST(real_root), MNIST(real_root, train=False)
        assert (len(train), len(test)) == (60_000, 10_000)
        assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
        assert train.images.dtype == torch.uint8
        assert train.images.shape == (60_000, 1, 28, 28)
        images, _ = train[list(range(1000))]
        assert (images.min(), images.max()) == (0, 1)
        # the mean and standard deviation used by MNIST examples
        pixels = train.images.double() / 255
        assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)

    def test_equals_torchvision(self, real_root: Path) -> None:
        steps = [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize((0.1307,), (0.3081,))]
        for train, indices in ((True, [0, 1, 31_415, 59_999]), (False, [0, 9_999])):
            transform = torchvision.transforms.Compose(steps)
            theirs = torchvision.datasets.MNIST(str(real_root), train=train, transform=transform)
            images, labels = MNIST(real_root, train=train, mean=0.1307, std=0.3081)[indices]
            torch.testing.assert_close(images, torch.stack([theirs[index][0] for index in indices]))
            assert labels.tolist() == [theirs[index][1] for index in indices]

    def test_validation_sizes(self, real_root: Path) -> None:
        data = mnist_data(str(real_root), val_size=5000)
        assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
        with pytest.raises(ConfigError, match=r"^val_size: got 60000"):
            mnist_data(str(real_root), val_size=60_000)


class TestLengths:
    """Sequences of different lengths, padded to the longest of a batch."""

    class Padded:
        def __init__(self, lengths: list[int]) -> None:
            self.lengths = lengths

        def __len__(self) -> int:
            return len(self.lengths)

        def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            lengths = [self.lengths[index] for index in indices]
            return torch.ones(max(lengths), len(indices), 3), torch.zeros(len(indices), dtype=torch.int64)

    def module(self, lengths: list[int]) -> DataModule:
        samples = self.Padded(lengths)
        return DataModule(samples, samples, (3,), 2, "labels", sequences=True, batch_size=2)

    @pytest.mark.parametrize("lengths", [[4, 3, 2, 7], [7, 4, 4, 5], [1, 2, 3, 4]])
    def test_different_lengths_need_not_equal_num_steps(self, lengths: list[int]) -> None:
        check(self.module(lengths), num_steps=50)

    @pytest.mark.parametrize("lengths", [[4, 4, 4, 4], [4, 1, 3, 4, 2, 4]])
    def test_a_common_length_must_equal_num_steps(self, lengths: list[int]) -> None:
        check(self.module(lengths), num_steps=4)
        with pytest.raises(ConfigError, match="num_steps=4"):
            check(self.module(lengths), num_steps=50)

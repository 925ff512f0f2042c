"""Datasets of torchvision from generated files, and transforms in configs."""

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from snnexp.config import compose
from snnexp.data import torchvision_data
from snnexp.data.vision import SETS
from snnexp.errors import ConfigError, DataError
from snnexp.experiment import build
from snnexp.training.stacked_data import StackedData

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)


def idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    header = [0, 0, 8, values.ndim, *(byte for size in values.shape for byte in size.to_bytes(4, "big"))]
    path.write_bytes(bytes(header) + values.tobytes())


def mnist_like(root: Path, name: str) -> dict[str, tuple[Any, Any]]:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    found = {}
    for split, prefix, count in (("train", "train", 40), ("test", "t10k", 20)):
        images, labels = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        idx(folder / f"{prefix}-images-idx3-ubyte", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
        found[split] = images, labels
    return found


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """CIFAR-10 with 4 images per file, and patched checksums."""
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    images = RANDOM.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    lists: dict[str, list[Any]] = {"train_list": [], "test_list": []}
    names = [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]
    for index, name in enumerate(names):
        part = slice(4 * index, 4 * index + 4)
        content = pickle.dumps({"data": images[part].reshape(4, -1), "labels": [*range(4)]})
        (folder / name).write_bytes(content)
        entry = [name, hashlib.md5(content).hexdigest()]
        lists["test_list" if name == "test_batch" else "train_list"].append(entry)
    content = pickle.dumps({"label_names": [f"class{index}" for index in range(10)]})
    (folder / "batches.meta").write_bytes(content)
    for name, entries in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, name, entries)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return images


class TestSets:
    def test_arguments_exist_in_torchvision(self) -> None:
        for name, splits in SETS.items():
            code = getattr(datasets, name).__init__.__code__
            known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            for arguments in splits.values():
                # EMNIST and QMNIST pass train to their base class
                assert {*arguments} <= {*known, *(["train"] if name in ("EMNIST", "QMNIST") else [])}

    @pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
    def test_have_images_from_0_to_1(self, tmp_path: Path, name: str) -> None:
        known = mnist_like(tmp_path, name)
        data = torchvision_data(str(tmp_path), name)
        assert (data.inputs, data.outputs, data.target) == ((1, 28, 28), 10, "labels")
        assert data.description.classes == getattr(datasets, name).classes
        for split, samples in (("train", data.train), ("test", data.test)):
            images, labels = known[split]
            x, y = samples[[*range(len(labels))]]
            assert torch.equal(x, torch.tensor(images)[:, None] / 255)
            assert y.tolist() == labels.tolist()

    def test_changed_files_are_read_again(self, tmp_path: Path) -> None:
        mnist_like(tmp_path, "KMNIST")
        before = torchvision_data(str(tmp_path), "KMNIST").test[[0]][0]
        shutil.rmtree(tmp_path / "KMNIST")
        mnist_like(tmp_path, "KMNIST")
        assert not torch.equal(torchvision_data(str(tmp_path), "KMNIST").test[[0]][0], before)

    def test_support_single_images(self, tmp_path: Path) -> None:
        mnist_like(tmp_path, "KMNIST")
        steps = [{"_target_": "torchvision.transforms.ToTensor"}]
        overrides = ["data=torchvision", "data.name=KMNIST", f"data.root={tmp_path}", "data.val_fraction=0.25"]
        whole = build(compose([*overrides, "data.in_memory=true"])).data
        alone = build(compose([*overrides, "data.in_memory=false", f"data.transform={steps}".replace("'", "")])).data
        for one, other in zip(whole.train_dataloader(), alone.train_dataloader(), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])

    def test_color_images(self, tmp_path: Path, cifar: np.ndarray[Any, Any]) -> None:
        data = torchvision_data(str(tmp_path), "CIFAR10")
        assert data.inputs == (3, 32, 32)
        assert torch.equal(data.test[[0, 1, 2, 3]][0], torch.tensor(cifar[20:]) / 255)

    def test_damaged_and_missing_files_are_reported(self, tmp_path: Path, cifar: np.ndarray[Any, Any]) -> None:
        file = tmp_path / datasets.CIFAR10.base_folder / "data_batch_1"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        for name in ("CIFAR10", "FashionMNIST"):
            with pytest.raises(DataError, match=rf"^data: {name} cannot be read below /.*data.download=true$"):
                torchvision_data(str(tmp_path), name)

    def test_files_with_another_format_are_reported(self, tmp_path: Path) -> None:
        mnist_like(tmp_path, "KMNIST")
        file = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(b"x" * file.stat().st_size)
        with pytest.raises(DataError, match=r"^data: KMNIST cannot be read below "):
            torchvision_data(str(tmp_path), "KMNIST")

    def test_each_image_needs_a_label(self, tmp_path: Path) -> None:
        mnist_like(tmp_path, "KMNIST")
        idx(tmp_path / "KMNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(30, dtype=np.uint8))
        with pytest.raises(DataError, match=r"^data: KMNIST below .* has 40 images and 30 labels"):
            torchvision_data(str(tmp_path), "KMNIST")

    def test_downloads_are_suggested_only_if_available(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"; set data.root to the folder above it$"):
            torchvision_data(str(tmp_path), "StanfordCars")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "FashonMNIST"}, r"^name: got FashonMNIST, did you mean FashionMNIST"),
            ({}, r"^name: got null, "),
            ({"name": "EMNIST"}, r"^variant: got null, must be one of byclass"),
            ({"name": "StanfordCars", "download": True}, r"^download: got true, but torchvision"),
            ({"name": "KMNIST", "variant": "letters"}, r"^variant: got letters, must be null"),
        ],
    )
    def test_unknown_datasets_are_refused(self, tmp_path: Path, settings: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            torchvision_data(str(tmp_path), **settings)


class TestTransforms:
    OVERRIDES = ("data=digits", "num_steps=3", "data.batch_size=8")

    def test_transforms_of_torchvision_are_allowed(self) -> None:
        crop = "data.transform=[{_target_: torchvision.transforms.v2.CenterCrop, size: 6}]"
        assert build(compose([*self.OVERRIDES, crop])).data.inputs == (1, 6, 6)
        pad = "{_target_: torchvision.transforms.Pad, padding: 1}"
        several = f"data.transform={{_target_: torchvision.transforms.Compose, transforms: [{pad}, {pad}]}}"
        assert build(compose([*self.OVERRIDES, several])).data.inputs == (1, 12, 12)

    @pytest.mark.parametrize(
        "target",
        [
            "torchvision.transforms.Lambda",
            "torchvision.transforms.v2.Lambda",
            "torchvision.transforms.functional.crop",
            "torchvision.transforms.transforms.torch",
            "torchvision.datasets.MNIST",
            "torchvision.io.read_file",
            "torchvision.transforms.InterpolationMode",
        ],
    )
    def test_nothing_else_of_torchvision_is_allowed(self, target: str) -> None:
        with pytest.raises(ConfigError, match=r"^data.transform._target_: "):
            build(compose([*self.OVERRIDES, f"data.transform={{_target_: {target}}}"]))

    def test_mistakes_are_reported(self) -> None:
        with pytest.raises(ConfigError, match=r"^data.transform.sice: .*CenterCrop has no such argument"):
            build(compose([*self.OVERRIDES, "data.transform={_target_: torchvision.transforms.CenterCrop, sice: 3}"]))
        with pytest.raises(ConfigError, match=r"^data.transform: ToTensor does not support these inputs: "):
            build(compose([*self.OVERRIDES, "data.transform={_target_: torchvision.transforms.ToTensor}"]))


class TestAugment:
    SHIFT = "data.augment={_target_: torchvision.transforms.v2.RandomAffine, degrees: 20, translate: [0.1, 0.1]}"
    OVERRIDES = (
        "data=digits",
        "num_steps=3",
        "data.batch_size=64",
        "data.val_fraction=0.1",
        "data.scale=standard",
        SHIFT,
    )

    def batches(self, *overrides: str, epoch: int = 0, skip: int = 0) -> list[torch.Tensor]:
        data = build(compose([*self.OVERRIDES, *overrides])).data
        data.begin = (epoch, skip)
        loader: Any = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        try:
            return [x for x, _ in loader]
        finally:
            data.end_workers()

    def test_depends_on_epoch_and_seed(self) -> None:
        first = self.batches()
        plain = self.batches("data.augment=null")
        assert all(map(torch.equal, first, self.batches()))
        for other in (plain, self.batches(epoch=1), self.batches("data.seed=1")):
            assert not any(map(torch.equal, first, other))
        data, still = (build(compose([*self.OVERRIDES, *overrides])).data for overrides in ([], ["data.augment=null"]))
        for one, other in ((data.val, still.val), (data.test, still.test), (data.train, still.train)):
            assert one is not None
            assert other is not None
            assert torch.equal(one[[0, 1, 2]][0], other[[0, 1, 2]][0])

    def test_does_not_depend_on_how_samples_are_read(self) -> None:
        wanted = self.batches("data.in_memory=true", epoch=2)
        assert all(map(torch.equal, wanted, self.batches("data.in_memory=false", epoch=2)))
        assert all(map(torch.equal, wanted, self.batches("data.num_workers=2", epoch=2)))
        resumed = self.batches(epoch=2, skip=5)
        assert len(resumed) == len(wanted) - 5
        assert all(map(torch.equal, wanted[5:], resumed))

    def test_a_sample_drawn_twice_is_augmented_independently(self) -> None:
        overrides = ["data.sampling=balanced", "data.scale=null"]
        changed = [tuple(x.flatten().tolist()) for batch in self.batches(*overrides) for x in batch]
        plain = [tuple(x.flatten().tolist()) for batch in self.batches(*overrides, "data.augment=null") for x in batch]
        assert len({*plain}) < 0.8 * len(plain)
        assert len({*changed}) > 0.95 * len(changed)

    def test_members_of_a_stack_match_single_runs(self) -> None:
        alone = [self.batches(f"data.seed={seed}")[0] for seed in (0, 1)]
        members = [build(compose([*self.OVERRIDES, f"data.seed={seed}"])).data for seed in (0, 1)]
        loader: Any = StackedData(members, torch.device("cpu")).train_dataloader()
        loader.sampler.set_epoch(0)
        batch = next(iter(loader))[0]
        assert torch.equal(batch, torch.stack(alone, 1))

    def test_keeps_the_shape(self) -> None:
        crop = "data.augment={_target_: torchvision.transforms.v2.RandomCrop, size: 6}"
        with pytest.raises(ConfigError, match=r"^data.augment: returned \[1, 6, 6\] for inputs of shape \[1, 8, 8\]"):
            build(compose([*self.OVERRIDES, crop]))

"""Data from files of arrays: inference of targets, splits, and errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import whole

from snnexp import limits
from snnexp.config import compose
from snnexp.data import arrays_data
from snnexp.data.reading import InMemorySamples, LazySamples
from snnexp.errors import ConfigError, DataError
from snnexp.experiment import build

RANDOM = np.random.default_rng(0)


def saved(folder: Path, name: str = "all.npz", **arrays: Any) -> str:
    path = folder / name
    np.savez(path, **arrays)
    return str(path)


class TestKinds:
    @pytest.mark.parametrize(
        ("x", "y", "inputs", "steps", "target", "outputs"),
        [
            ((4,), np.arange(20) % 3, (4,), None, "labels", 3),
            ((), np.arange(20) % 3, (1,), None, "labels", 3),
            ((5, 4), np.arange(20) % 3, (4,), 5, "labels", 3),
            ((1, 6, 7), np.arange(20) % 3, (1, 6, 7), None, "labels", 3),
            ((5, 1, 6, 7), np.arange(20) % 3, (1, 6, 7), 5, "labels", 3),
            ((4,), np.eye(3)[np.arange(20) % 3], (4,), None, "labels", 3),
            ((4,), np.eye(3, dtype=np.uint8)[np.arange(20) % 3], (4,), None, "labels", 3),
            ((4,), np.arange(20) % 2 == 0, (4,), None, "labels", 2),
            ((4,), np.array(["b", "a"] * 10), (4,), None, "labels", 2),
            ((4,), np.array([b"b", b"a"] * 10), (4,), None, "labels", 2),
            ((4,), RANDOM.normal(size=20), (4,), None, "values", 1),
            ((4,), RANDOM.normal(size=(20, 2)), (4,), None, "values", 2),
            ((5, 4), RANDOM.normal(size=(20, 5, 2)), (4,), 5, "trace", 2),
            ((5, 4), RANDOM.integers(0, 3, (20, 5)), (4,), 5, "step_labels", 3),
            ((5, 4), np.eye(6)[np.arange(100).reshape(20, 5) % 6], (4,), 5, "step_labels", 6),
            ((5, 4), np.arange(100).reshape(20, 5) % 7 // 6, (4,), 5, "step_labels", 2),
        ],
    )
    def test_are_inferred_from_axes_and_dtypes(
        self, tmp_path: Path, x: Any, y: Any, inputs: Any, steps: Any, target: str, outputs: int
    ) -> None:
        data = arrays_data(saved(tmp_path, inputs=RANDOM.normal(size=(20, *x)), labels=y))
        found = (data.inputs, data.num_steps, data.target, data.outputs, data.sequences)
        assert found == (inputs, steps, target, outputs, steps is not None)

    def test_values_are_those_of_the_file(self, tmp_path: Path) -> None:
        x, y = RANDOM.normal(size=(20, 5, 4)), np.arange(20) % 3
        data = arrays_data(saved(tmp_path, signals=x, classes=np.eye(3)[y]), x="signals", y="classes")
        order = torch.cat([whole(data, split)[0][0, :, 0] for split in ("train", "test")])
        assert sorted(order.tolist()) == sorted(x[:, 0, 0].astype(np.float32).tolist())
        for split in ("train", "test"):
            values, labels = whole(data, split)
            for sample, label in zip(values.unbind(1), labels.tolist(), strict=True):
                index = int(np.abs(x[:, 0, 0] - sample[0, 0].item()).argmin())
                assert torch.equal(sample, torch.tensor(x[index], dtype=torch.float32))
                assert label == y[index]

    def test_class_names_are_sorted_over_all_files(self, tmp_path: Path) -> None:
        train = saved(tmp_path, "train.npz", inputs=RANDOM.normal(size=(4, 2)), labels=["cat", "ant", "cat", "ant"])
        test = saved(tmp_path, "test.npz", inputs=RANDOM.normal(size=(2, 2)), labels=["bee", "cat"])
        data = arrays_data(train=train, test=test)
        assert data.description.classes == ["ant", "bee", "cat"]
        assert whole(data, "train")[1].tolist() == [2, 0, 2, 0]
        assert whole(data, "test")[1].tolist() == [1, 2]

    def test_mapped_and_in_memory_are_equal(self, tmp_path: Path) -> None:
        file = saved(tmp_path, inputs=RANDOM.integers(0, 255, (50, 3, 4), dtype=np.uint8), labels=np.arange(50) % 5)
        held, read = (arrays_data(file, in_memory=each, scale="standard", batch_size=8) for each in (True, False))
        for a, b in zip(held.train_dataloader(), read.train_dataloader(), strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])

    def test_large_arrays_are_memory_mapped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = saved(tmp_path, inputs=RANDOM.normal(size=(50, 3)), labels=np.arange(50) % 5)
        for memory, kind in ((50 * 16 * 2 + 1, InMemorySamples), (50 * 16 * 2, LazySamples)):
            monkeypatch.setattr(limits, "memory", lambda memory=memory: memory)
            assert type(arrays_data(file).train) is kind


class TestRefusals:
    @pytest.mark.parametrize(
        ("arrays", "settings", "message"),
        [
            ({"labels": np.arange(20.0)}, {}, r"^target: got null, .* whole numbers from 0 to 19 stored as float64"),
            ({"labels": np.arange(20) * 100}, {}, r"^target: labels go up to 1900 for 20 samples; use data.target=val"),
            (
                {"labels": np.arange(20) % 3},
                {"outputs": 2},
                r"sample 2 of all.npz has the label 2, .* 0 to 1",
            ),
            ({"labels": np.arange(20) % 3 - 1}, {}, r"sample 0 of all.npz has the label -1, must be 0 or more"),
            ({"labels": np.full(20, 3)}, {}, r"all 16 training samples have the label 3"),
            ({"labels": np.arange(20) % 2, "lengths": np.arange(20)}, {}, r"sequences of different lengths"),
            ({"labels": np.arange(19)}, {}, r"inputs \[20, 4\] and 19 labels"),
            ({"labels": np.arange(20) % 3, "groups": np.arange(4)}, {}, r"inputs \[20, 4\] and 4 groups"),
        ],
    )
    def test_contradictions_are_refused(self, tmp_path: Path, arrays: Any, settings: Any, message: str) -> None:
        with pytest.raises((ConfigError, DataError), match=message):
            arrays_data(saved(tmp_path, inputs=np.zeros((20, 4)), **arrays), **settings)

    def test_unlabeled_is_the_class_of_zero_vectors(self, tmp_path: Path) -> None:
        labels = np.arange(20 * 6).reshape(20, 6) % 3
        vectors = np.eye(3, dtype=np.uint8)[labels]
        vectors[:, 4] = 0
        file = saved(tmp_path, inputs=np.zeros((20, 6, 2)), labels=vectors)
        with pytest.raises(DataError, match=r"20 of 120 one-hot vectors .* are all 0; .*data\.unlabeled=CLASS"):
            arrays_data(file)
        data = arrays_data(file, unlabeled=3)
        assert (data.target, data.outputs) == ("step_labels", 4)
        labels[:, 4] = 3
        found = torch.cat([whole(data, split)[1] for split in ("train", "test")], 1)
        assert sorted(found.T.tolist()) == sorted(labels.tolist())

    def test_as_many_classes_as_steps_is_ambiguous(self, tmp_path: Path) -> None:
        classes = np.eye(5, dtype=int)[np.arange(20) % 5]
        file = saved(tmp_path, inputs=np.zeros((20, 5, 4)), labels=classes)
        with pytest.raises(ConfigError, match=r"^target: got null, .* use data.target=labels or step_labels"):
            arrays_data(file)
        found = [arrays_data(file, target="labels"), arrays_data(file, target="step_labels")]
        assert [(data.target, data.outputs) for data in found] == [("labels", 5), ("step_labels", 2)]

    def test_splits_of_the_file_exclude_other_splits(self, tmp_path: Path) -> None:
        arrays: dict[str, Any] = {"inputs": np.arange(20.0), "labels": np.arange(20) // 2 % 2}
        file = saved(tmp_path, **arrays, split=["train", "Valid", "train", "test"] * 5)
        data = arrays_data(file)
        found = {split: sorted(whole(data, split)[0].flatten().tolist()) for split in ("train", "val", "test")}
        assert found == {"train": [*range(0, 20, 2)], "val": [*range(1, 20, 4)], "test": [*range(3, 20, 4)]}
        for settings in ({"test_fraction": 0.5}, {"fold": 0}, {"stratify": True}, {"test": file}):
            with pytest.raises(ConfigError, match=r"^\w+: got .*, but all.npz defines the split"):
                arrays_data(file, **settings)
        with pytest.raises(ConfigError, match=r"^split: got dev, must be train, val or test"):
            arrays_data(saved(tmp_path, **arrays, split=["train", "dev", "test", "test"] * 5))
        with pytest.raises(ConfigError, match=r"^split: got 0, 1, must be train, val or test"):
            arrays_data(saved(tmp_path, **arrays, split=np.arange(20) % 2))
        data = arrays_data(saved(tmp_path, **arrays, split=np.array(["train", "test"] * 10, dtype="S")))
        assert (len(data.train), len(data.test)) == (10, 10)

    def test_files_with_other_shapes_are_refused(self, tmp_path: Path) -> None:
        labels = np.arange(20) % 2
        train = saved(tmp_path, "train.npz", inputs=np.zeros((20, 10, 3)), labels=labels)
        for shape in ((20, 6, 3), (20, 10, 4), (20, 30)):
            test = saved(tmp_path, "test.npz", inputs=np.zeros(shape), labels=labels)
            with pytest.raises(DataError, match=r"test.npz has inputs of shape \[.*\], must be \[10, 3\]"):
                arrays_data(train=train, test=test)
        one = saved(tmp_path, "train.npz", inputs=np.zeros((20, 3)), labels=labels / 4)
        other = saved(tmp_path, "test.npz", inputs=np.zeros((20, 3)), labels=RANDOM.normal(size=(20, 2)))
        with pytest.raises(DataError, match=r"test.npz has targets of shape \[2\], must be \[1\]"):
            arrays_data(train=one, test=other)

    def test_runs_with_other_splits_share_no_samples(self, tmp_path: Path) -> None:
        ids = {"by_four": np.arange(20) // 4, "by_five": np.arange(20) % 5}
        file = saved(tmp_path, inputs=np.arange(20.0), labels=np.arange(20) // 2 % 2, **ids)
        for name, groups in ids.items():
            data = arrays_data(file, groups=name)
            found = [{*groups[whole(data, split)[0].flatten().long()].tolist()} for split in ("train", "test")]
            assert not found[0] & found[1], name

    def test_a_validation_split_may_be_in_the_file(self, tmp_path: Path) -> None:
        arrays: dict[str, Any] = {"inputs": np.zeros((8, 3)), "labels": np.arange(8) // 4}
        overrides = [
            "data=arrays",
            f"data.path={saved(tmp_path, **arrays, split=['train', 'val', 'train', 'test'] * 2)}",
        ]
        assert build(compose([*overrides, "trainer.early_stopping=2"])).data.val is not None
        plain = ["data=arrays", f"data.path={saved(tmp_path, 'plain.npz', **arrays)}", "trainer.early_stopping=2"]
        with pytest.raises(ConfigError, match=r"^trainer.early_stopping: .* set data.val_fraction"):
            build(compose(plain))
        with pytest.raises(ConfigError, match=r"^trainer.early_stopping: .* set data.val_fraction"):
            compose(["data=digits", "trainer.early_stopping=2"])

    def test_one_file_or_several(self) -> None:
        with pytest.raises(ConfigError, match=r"^path: .*neither is set"):
            arrays_data()
        with pytest.raises(ConfigError, match=r"^path: .*both are set"):
            arrays_data("a.npz", train="b.npz")

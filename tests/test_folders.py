"""Data in folders: one subfolder of images per class, or one npz file per sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import whole

from snnexp.config import compose
from snnexp.data import folder_data
from snnexp.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)


def picture(path: Path, shape: tuple[int, ...] = (6, 5, 3), mode: str | None = None) -> np.ndarray[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return pixels


def images(root: Path, count: int = 5, classes: tuple[str, ...] = ("cat", "ant")) -> dict[str, Any]:
    return {f"{name}/{i}": picture(root / name / f"{i}.png") for name in classes for i in range(count)}


def sample(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


class TestImages:
    def test_images_are_scaled_to_0_1_with_the_class_of_their_folder(self, tmp_path: Path) -> None:
        pixels = images(tmp_path / "all")
        (tmp_path / "all" / "cat" / "._0.png").write_text("metadata of macOS")
        picture(tmp_path / "all" / "cat" / ".thumbnails" / "0.png")
        data = folder_data(str(tmp_path / "all"), stratify=True)
        assert (data.inputs, data.outputs, data.description.classes) == ((3, 6, 5), 2, ["ant", "cat"])
        known = {tuple((each / np.float32(255)).flatten()[:4]): name for name, each in pixels.items()}
        for split, count in (("train", 8), ("test", 2)):
            x, y = whole(data, split)
            assert len(x) == count
            for image, label in zip(x, y.tolist(), strict=True):
                name = known[tuple(image.permute(1, 2, 0).flatten()[:4].numpy())]
                assert name.startswith(["ant", "cat"][label])

    def test_splits_may_be_folders(self, tmp_path: Path) -> None:
        images(tmp_path / "train")
        images(tmp_path / "val", 1)
        # without one of the classes
        images(tmp_path / "test", 2, ("cat",))
        data = folder_data(str(tmp_path))
        assert [len(each) for each in (data.train, data.val or [], data.test)] == [10, 2, 2]
        assert whole(data, "test")[1].tolist() == [1, 1]
        assert len(folder_data(train=str(tmp_path / "train"), test=str(tmp_path / "test")).test) == 2

    def test_grey_and_resized_images(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            for index in range(4):
                picture(tmp_path / name / f"{index}.png", (4 + index, 6))
        with pytest.raises(DataError, match=r"has \d x 6 pixels, the first image has 4 x 6; use data.size"):
            folder_data(str(tmp_path))
        assert folder_data(str(tmp_path), size=8).inputs == (1, 8, 8)
        assert folder_data(str(tmp_path), size=[3, 2], grey=False).inputs == (3, 3, 2)


class TestArrays:
    def test_arrays_by_class_are_sequences_with_the_length_of_the_first(self, tmp_path: Path) -> None:
        for name in ("up", "down"):
            for index in range(5):
                sample(tmp_path / name / f"{index}.npz", inputs=np.full((7, 2), index))
        data = folder_data(str(tmp_path))
        assert (data.sequences, data.num_steps, data.inputs, data.outputs) == (True, 7, (2,), 2)
        assert compose(["data=folder", f"data.path={tmp_path}"]).num_steps == 7

    def test_arrays_in_one_folder_contain_their_targets(self, tmp_path: Path) -> None:
        for index in range(10):
            sample(tmp_path / f"{index}.npz", inputs=np.full(3, index), labels=index / 2)
        data = folder_data(str(tmp_path))
        assert (data.target, data.inputs) == ("values", (3,))
        x, y = whole(data, "train")
        assert torch.equal(y, x[:, :1] / 2)


class TestRefusals:
    def test_missing_and_empty_folders(self, tmp_path: Path) -> None:
        images(tmp_path / "pictures")
        with pytest.raises(DataError, match=r"/picture does not exist; did you mean pictures"):
            folder_data(str(tmp_path / "picture"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"/empty has no images by class and no npz files"):
            folder_data(str(tmp_path / "empty"))
        (tmp_path / "pictures" / "bee").mkdir()
        with pytest.raises(DataError, match=r"pictures/bee has no images and no npz files"):
            folder_data(str(tmp_path / "pictures"))

    def test_images_that_are_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images(tmp_path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(DataError, match=r"ant/0.png cannot be read as an image: .*30 pixels"):
            folder_data(str(tmp_path))

    def test_files_that_are_not_images(self, tmp_path: Path) -> None:
        images(tmp_path)
        (tmp_path / "cat" / "3.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"cat/3.png cannot be read as an image"):
            folder_data(str(tmp_path))
        Image.fromarray(RANDOM.integers(0, 60000, (6, 5)).astype(np.uint16)).save(tmp_path / "cat" / "3.png")
        with pytest.raises(DataError, match=r"cat/3.png has more than 8 bits per pixel"):
            folder_data(str(tmp_path))
        sample(tmp_path / "cat" / "3.npz", inputs=np.zeros(3))
        with pytest.raises(DataError, match=r"has images and npz files"):
            folder_data(str(tmp_path))

    def test_images_that_would_lose_information(self, tmp_path: Path) -> None:
        for index in range(5):
            picture(tmp_path / "a" / f"{index}.png", (6, 5))
            picture(tmp_path / "b" / f"{index}.png")
        with pytest.raises(DataError, match=r"b/\d.png is a color image, but the first image is grayscale"):
            folder_data(str(tmp_path))
        assert [folder_data(str(tmp_path), grey=grey).inputs[0] for grey in (True, False)] == [1, 3]
        link = tmp_path / "b" / "9.png"
        link.symlink_to(tmp_path / "nowhere.png")
        with pytest.raises(DataError, match=r"b/9.png cannot be read: No such file"):
            folder_data(str(tmp_path), grey=True)
        link.unlink()
        picture(tmp_path / "0.png")
        with pytest.raises(DataError, match=r"/0.png is not in a class folder"):
            folder_data(str(tmp_path), grey=True)

    def test_inconsistent_classes_and_sizes(self, tmp_path: Path) -> None:
        images(tmp_path / "train")
        images(tmp_path / "test", 1, ("bee",))
        with pytest.raises(DataError, match=r"test has a class bee that the training split"):
            folder_data(str(tmp_path))
        with pytest.raises(ConfigError, match=r"^size: got 3 numbers"):
            folder_data(str(tmp_path / "train"), size=[1, 2, 3])
        picture(tmp_path / "loose" / "0.png")
        with pytest.raises(DataError, match=r"must be in a folder for each class"):
            folder_data(str(tmp_path / "loose"))

"""Arrays in files: equal to what was written, read in parts, and never unpickled."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import io

from snnexp.data import arrays_data
from snnexp.errors import ConfigError, DataError
from snnexp.files import get_array, open_arrays

X = np.arange(60.0).reshape(10, 3, 2)
Y = np.arange(10, dtype=np.int32) % 3


def matlab73(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["x"], file["y"] = X.T, Y[None]
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(128))


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = X, Y


def folder(path: Path) -> None:
    path.mkdir()
    np.save(path / "x.npy", X)
    np.save(path / "y.npy", Y)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.npz": lambda path: np.savez(path, x=X, y=Y),
    "packed.npz": lambda path: np.savez_compressed(path, x=X, y=Y),
    "fortran.npz": lambda path: np.savez(path, x=np.asfortranarray(X), y=Y),
    "other_bytes.npz": lambda path: np.savez(path, x=X.astype(">f8"), y=Y.astype(">i4")),
    "a.pt": lambda path: torch.save({"x": torch.tensor(X), "y": torch.tensor(Y)}, path),
    "old.pt": lambda path: torch.save(
        {"x": torch.tensor(X), "y": torch.tensor(Y)}, path, _use_new_zipfile_serialization=False
    ),
    "a.mat": lambda path: io.savemat(path, {"x": X, "y": Y}),
    "new.mat": matlab73,
    "a.h5": hdf5,
    "folder": folder,
}


class TestArrays:
    @pytest.mark.parametrize("name", WRITERS)
    def test_are_equal_to_what_was_written(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        WRITERS[name](path)
        found = open_arrays(path)
        x, y = get_array(found, path, "x", "x"), get_array(found, path, "y", "y")
        assert x.shape == X.shape
        assert np.array_equal(x.load(), X)
        assert np.array_equal(y.load().ravel(), Y)
        if x.mapped:
            order = [7, 0, 7, 3]
            assert np.array_equal(x[order], X[order])

    def test_large_arrays_are_read_in_parts(self, tmp_path: Path) -> None:
        for name in ("a.npz", "fortran.npz", "a.pt", "a.h5", "folder"):
            WRITERS[name](tmp_path / name)
            assert all(array.mapped for array in open_arrays(tmp_path / name).values())

    @pytest.mark.parametrize("kind", ["u2", "u4", "u8", ">i8", ">u2", "i1"])
    def test_labels_may_have_any_integer_dtype(self, tmp_path: Path, kind: str) -> None:
        np.savez(tmp_path / "a.npz", inputs=X.astype(">f4"), labels=Y.astype(kind))
        data = arrays_data(str(tmp_path / "a.npz"))
        labels = torch.cat([samples[[*range(len(samples))]][1] for samples in (data.train, data.test)])
        assert sorted(labels.tolist()) == sorted(Y.tolist())

    def test_text_and_groups_of_hdf5(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["deep/names"] = ["b", "a", "b"]
        array = open_arrays(tmp_path / "a.h5")["deep/names"]
        assert array.load().tolist() == ["b", "a", "b"]
        assert array[[2, 1]].tolist() == ["b", "a"]


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestRefusals:
    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        harm = tmp_path / "harm"
        np.savez(tmp_path / "a.npz", x=np.array([Harmful(harm)], dtype=object))
        torch.save({"x": Harmful(harm)}, tmp_path / "a.pt")
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Harmful(harm)))
        with pytest.raises(DataError, match="has Python objects in x"):
            get_array(open_arrays(tmp_path / "a.npz"), tmp_path / "a.npz", "x", "x")
        with pytest.raises(DataError, match="contains objects other than tensors"):
            open_arrays(tmp_path / "a.pt")
        with pytest.raises(ConfigError, match=r"^path: got a.pkl, .* a pickle may run code"):
            open_arrays(tmp_path / "a.pkl")
        assert not harm.exists()

    @pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.mat", "a.h5"])
    @pytest.mark.parametrize("share", [0, 0.02, 0.5])
    def test_corrupt_files_are_reported(self, tmp_path: Path, name: str, share: float) -> None:
        path = tmp_path / name
        WRITERS[name](path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=r"^data: .*" + name) as error:
            get_array(open_arrays(path), path, "y", "y").load()
        assert "\n" not in str(error.value)

    def test_missing_files_and_arrays_are_reported(self, tmp_path: Path) -> None:
        path = tmp_path / "train.npz"
        np.savez(path, x=X, y=Y)
        with pytest.raises(DataError, match=r"^data: there is no file /.*/trian.npz; did you mean train.npz"):
            open_arrays(tmp_path / "trian.npz")
        with pytest.raises(
            DataError, match=r"no array inputs; set data.x to one of its arrays: x \[10, 3, 2\] float64, y"
        ):
            get_array(open_arrays(path), path, "x", "inputs")
        with pytest.raises(ConfigError, match=r"^train: got a.txt, must end in .npz, .pt"):
            open_arrays(tmp_path / "a.txt", "train")
        with pytest.raises(DataError, match="has no npy files; for a folder of images use data=folder"):
            open_arrays(tmp_path)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (X + 1j, "has complex128 in x, must be numbers or text"),
            (X.astype(np.longdouble), "has float128 in x"),
            (np.array(3), "has a single value in x, must be one for each sample"),
        ],
    )
    def test_unsupported_arrays_are_reported(self, tmp_path: Path, values: Any, words: str) -> None:
        np.savez(tmp_path / "a.npz", x=values)
        io.savemat(tmp_path / "a.mat", {"x": X + 1j})
        with pytest.raises(DataError, match=words):
            get_array(open_arrays(tmp_path / "a.npz"), tmp_path / "a.npz", "x", "x")
        with pytest.raises(DataError, match="has complex128 in x, must be numbers or text"):
            get_array(open_arrays(tmp_path / "a.mat"), tmp_path / "a.mat", "x", "x").load()

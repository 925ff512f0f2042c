"""What several test files share."""

import hashlib
import os
import signal
import subprocess
import warnings
from pathlib import Path

import pytest

# two threads of one process and another process on two cores slow each other down
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# the processes that tests start compile each module once together, not each of them all
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# read when Triton is imported: its kernels then run on the CPU
os.environ["TRITON_INTERPRET"] = "1"

import commands  # noqa: E402

# no test cuts the power
os.fsync = commands.no_sync
# for the workers of sweeps
subprocess.Popen = commands.Popen  # type: ignore[misc]
# a shell lets what it starts with & ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        # its workers run the tests
        return
    with warnings.catch_warnings():
        # scienceplots, which torchmetrics imports where it is installed, calls what matplotlib deprecates
        warnings.filterwarnings("ignore", "The (read_style_directory|update_nested_dict) function was deprecated")
        import lightning.pytorch  # noqa: F401
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with 40 training and 20 test images in MNIST's format, found and taken for the published ones."""
    import torch

    from snnexp.data import mnist

    random = torch.Generator().manual_seed(0)
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, length in (("train", 40), ("t10k", 20)):
        images = torch.randint(256, (length, 28, 28), dtype=torch.uint8, generator=random)
        labels = torch.randint(10, (length,), dtype=torch.uint8, generator=random)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = [0, 0, 8, values.ndim, *(byte for size in values.shape for byte in size.to_bytes(4, "big"))]
            content = bytes(header) + values.numpy().tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(content)
            monkeypatch.setitem(mnist.SHA256, f"{prefix}-{kind}-ubyte", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("SNNEXP_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"

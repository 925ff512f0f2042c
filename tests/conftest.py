"""Configuration and fixtures of the tests."""

import gc
import hashlib
import os
import signal
import subprocess
import warnings
from pathlib import Path

import pytest

# avoid more threads than cores when tests start processes
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# let the processes of tests share compiled bytecode
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# run Triton kernels on the CPU; must be set before Triton is imported
os.environ["TRITON_INTERPRET"] = "1"

import commands  # noqa: E402

# syncing to disk is slow and not needed in tests
os.fsync = commands.no_sync
# also forks the workers of sweeps from the server
subprocess.Popen = commands.Popen  # type: ignore[misc]
# background processes of a shell ignore SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        # the workers of pytest-xdist run the tests
        return
    with warnings.catch_warnings():
        # torchmetrics imports scienceplots if installed, which calls deprecated functions of matplotlib
        warnings.filterwarnings("ignore", "The (read_style_directory|update_nested_dict) function was deprecated")
        import lightning.pytorch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    commands.simplify_hydra()


def pytest_collection_finish() -> None:
    # garbage collection need not traverse the modules and tests again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a data root with 40 training and 20 test images in MNIST's format, and patch the checksums."""
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

"""``snnexp doctor``: report versions, devices, data and configs, one per line."""

import os
from pathlib import Path

from snnexp import config, limits, threads
from snnexp.errors import DataError
from snnexp.record.environment import versions


def report() -> int:
    """Print versions, devices, kernels, data and configs; return the exit code, 0."""
    for package, version in versions().items():
        print(f"{package:<12} {version}")
    import torch

    print(f"{'cpu':<12} {limits.cores()} cores, threads of a run: {threads.number({'trainer': {}})}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            print(f"{'gpu':<12} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        print(f"{'gpu':<12} not available to torch")
    print(f"{'kernels':<12} {_kernels(torch.cuda.is_available())}")
    root = os.path.expanduser(os.environ.get("SNNEXP_DATA_DIR") or "data")
    print(f"{'data':<12} {_data(root)}")
    source = "$SNNEXP_CONF" if os.environ.get("SNNEXP_CONF") else "with the package"
    print(f"{'conf':<12} {config.conf_dir()} ({source})")
    return 0


def _kernels(gpu: bool) -> str:
    import importlib.util

    available = ["reference", "fused"]
    if gpu and importlib.util.find_spec("triton"):
        available.append("triton")
    return f"{', '.join(available)}; kernel=auto uses {available[-1]}"


def _data(root: str) -> str:
    from snnexp.data import MNIST

    try:
        for train in (True, False):
            MNIST(root, train=train)
    except DataError as error:
        return str(error)
    return f"MNIST in {Path(root).absolute()}, checksums match"

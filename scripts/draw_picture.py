"""Draw the picture of the README: what regression_sqrt_fit does before and after training.

python scripts/draw_picture.py docs/regression_sqrt_fit.png
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from snnexp.experiment import build, compose, run

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(["experiment=regression_sqrt_fit", f"logger.root={folder}"])
        record = run(cfg)
        parts = build(cfg)
        x, y = parts.data.test[[0]]
        traces = {}
        for name in ("init", "last"):
            weights = torch.load(record.path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
            parts.task.load_state_dict(weights)
            with torch.no_grad():
                traces[name] = parts.network(parts.encoder(x))

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(traces["init"][-1].membrane[:, 0, 0], color=GREY, label="membrane before training")
    left.plot(traces["last"][-1].membrane[:, 0, 0], color=BLUE, label="membrane after training")
    left.plot(y[:, 0, 0], "--", color=ORANGE, label="target")
    left.set(xlabel="time step", ylabel="membrane of the readout", ylim=(None, 1.6 * y.max().item()))
    left.legend(frameon=False, loc="upper left", fontsize=8)
    offset = 0
    for name, trace, color in zip(("hidden1", "hidden2"), traces["last"], (BLUE, ORANGE), strict=False):
        step, neuron = trace.spikes[:, 0].nonzero(as_tuple=True)
        right.scatter(step, neuron + offset, s=1.5, color=color, label=name, linewidths=0)
        offset += trace.spikes.shape[-1]
    right.set(xlabel="time step", ylabel="neuron", ylim=(-3, offset + 45))
    right.legend(frameon=False, loc="upper right", fontsize=8, markerscale=5, ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/regression_sqrt_fit.png"]))

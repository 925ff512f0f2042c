"""Train the network of digits_leaky in a plain snnTorch loop, with split, batches and initial weights of a snnexp run.

python scripts/snntorch_digits.py 0 1 2
"""

import statistics
import sys
from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import nn

from snnexp.experiment import build, compose


class Net(nn.Module):
    """64-100-10, beta 0.95, arctangent surrogate."""

    def __init__(self, num_steps: int, hidden: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.fc2 = nn.Linear(64, hidden), nn.Linear(hidden, 10)
        spike_grad = surrogate.atan(alpha=2.0)
        self.lif1 = snntorch.Leaky(beta=0.95, spike_grad=spike_grad)
        self.lif2 = snntorch.Leaky(beta=0.95, spike_grad=spike_grad)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def train(seed: int) -> float:
    """Train; return the accuracy on the test split of the recipe, decoded by the highest spike count."""
    cfg = compose(["experiment=digits_leaky", f"seed={seed}", "trainer=cpu"])
    parts = build(cfg)
    net = Net(cfg.num_steps, cfg.network.hidden[0])
    weights = [value for name, value in parts.network.state_dict().items() if name.endswith(("weight", "bias"))]
    with torch.no_grad():
        for mine, theirs in zip((*net.fc1.parameters(), *net.fc2.parameters()), weights, strict=True):
            mine.copy_(theirs)
    optimizer = torch.optim.Adam(net.parameters(), lr=cfg.optimizer.lr)
    loader: Any = parts.data.train_dataloader()
    for epoch in range(cfg.trainer.max_epochs):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            _, membranes = net(x.flatten(1))
            loss = sum((nn.functional.cross_entropy(membrane, y) for membrane in membranes), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [(net(x.flatten(1))[0].sum(0).argmax(1) == y).sum().item() for x, y in parts.data.test_dataloader()]
    return sum(right) / len(parts.data.test)


if __name__ == "__main__":
    accuracies = [train(int(seed)) for seed in sys.argv[1:] or range(10)]
    print(" ".join(f"{accuracy:.4f}" for accuracy in accuracies))
    print(f"mean {statistics.mean(accuracies):.4f}")

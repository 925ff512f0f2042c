"""Train the network of the snnTorch regression tutorial, with data and initial weights of the same seed as snnexp.

python scripts/snntorch_regression.py sqrt 0 1 2
"""

import statistics
import sys

import snntorch
import torch
from snntorch import surrogate
from torch import nn

from snnexp.data import RegressionDataset
from snnexp.metrics import l1, relative_error

HIDDEN = 128


class Net(nn.Module):
    """1-128-128-1, beta and threshold ~ U(0, 1) per neuron, beta learned, output without reset."""

    def __init__(self) -> None:
        super().__init__()
        spike_grad = surrogate.fast_sigmoid()
        beta, threshold = torch.rand(HIDDEN), torch.rand(HIDDEN)
        self.fc1 = nn.Linear(1, HIDDEN)
        self.lif1 = snntorch.Leaky(beta=beta, threshold=threshold, learn_beta=True, spike_grad=spike_grad)
        beta, threshold = torch.rand(HIDDEN), torch.rand(HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.lif2 = snntorch.Leaky(beta=beta, threshold=threshold, learn_beta=True, spike_grad=spike_grad)
        beta = torch.rand(1)
        self.fc3 = nn.Linear(HIDDEN, 1)
        self.li = snntorch.Leaky(
            beta=beta, threshold=1.0, learn_beta=True, spike_grad=spike_grad, reset_mechanism="none"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.li.reset_mem()
        recorded = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            _, mem3 = self.li(self.fc3(spk2), mem3)
            recorded.append(mem3)
        return torch.stack(recorded)


def train(mode: str, seed: int, iterations: int = 100) -> tuple[float, float]:
    """Train as in the tutorial; return L1 and relative error."""
    torch.manual_seed(seed)
    x, y = RegressionDataset(50, 1, mode)[[0]]
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(iterations):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        membrane = net(x)
    return l1(membrane, y).item(), relative_error(membrane, y).item()


if __name__ == "__main__":
    mode, *seeds = sys.argv[1:] or ["sqrt"]
    results = [train(mode, int(seed)) for seed in seeds or range(10)]
    for seed, (l1_error, relative) in zip(seeds or range(10), results, strict=True):
        print(f"seed {seed}  l1 {l1_error:.4g}  relative error {relative:.4g}")
    print(f"mean l1 {statistics.mean(error for error, _ in results):.4g}")

"""Networks of other libraries, and one without any, each a plain ``torch.nn.Module``."""

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.neurons import Neuron


class Plain(nn.Module):
    """Two linear layers with the neurons of the config; traces are returned by name.

    Args:
        inputs: shape of one input.
        outputs: neurons of the readout.
        neuron: builds the hidden neurons.
        readout: builds the readout neurons.
        width: hidden neurons.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: int, neuron: Any, readout: Any, width: int = 16) -> None:
        super().__init__()
        self.front, self.hidden = nn.Linear(torch.Size(inputs).numel(), width), neuron(width)
        self.back, self.readout = nn.Linear(width, outputs), readout(outputs)
        assert isinstance(self.hidden, Neuron)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.hidden(self.front(x.flatten(2)))
        return {"hidden": hidden, "readout": self.readout(self.back(hidden.spikes))}


class SnnTorch(nn.Module):
    """Leaky neurons of snnTorch that store their state."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, width: int = 16, beta: float = 0.9) -> None:
        super().__init__()
        from snntorch import Leaky

        size = torch.Size(inputs).numel()
        hidden = Leaky(beta=beta, threshold=0.3, init_hidden=True, learn_beta=True)
        readout = Leaky(beta=beta, threshold=0.3, init_hidden=True, output=True)
        self.net = nn.Sequential(nn.Linear(size, width), hidden, nn.Linear(width, outputs), readout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, membrane = zip(*(self.net(step) for step in x.flatten(2)), strict=True)
        return torch.stack(spikes), torch.stack(membrane)


class SpikingJelly(nn.Module):
    """LIF nodes of SpikingJelly, in its multi-step mode."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, width: int = 16) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, layer, neuron

        size = torch.Size(inputs).numel()
        self.net = nn.Sequential(
            layer.Linear(size, width), neuron.LIFNode(v_threshold=0.2), layer.Linear(width, outputs)
        )
        self.last = neuron.LIFNode(v_threshold=0.2, store_v_seq=True)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.last(self.net(x.flatten(2)))
        return spikes, self.last.v_seq


class Norse(nn.Module):
    """LIF cells of Norse and a leaky integrator, with explicit state."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, num_steps: int, width: int = 16) -> None:
        super().__init__()
        from norse.torch import LICell, LIFCell, SequentialState

        self.num_steps = num_steps
        size = torch.Size(inputs).numel()
        self.net = SequentialState(nn.Linear(size, width), LIFCell(), nn.Linear(width, outputs), LICell())

    def forward(self, x: Tensor) -> Tensor:
        state, membranes = None, []
        for step in x.flatten(2):
            membrane, state = self.net(step, state)
            membranes.append(membrane)
        assert len(membranes) == self.num_steps
        return torch.stack(membranes)

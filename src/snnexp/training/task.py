"""The LightningModule: it drives the parts that it receives and logs what they say."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from snnexp import metrics
from snnexp.events import Events
from snnexp.losses import Loss
from snnexp.network import Network
from snnexp.neurons import Reduced, Trace
from snnexp.optimizers import grouped

Measure = Callable[[Any, Tensor], metrics.Sum]
"""How well a readout's trace meets a target, summed over a batch, and the count of what was summed."""


class Task(LightningModule):
    """Encode, run the network, compare, log.

    Args:
        network: traces of an encoded batch.
        encode: values to currents or spikes, as the network takes them.
        spikes_come_in: whether ``encode`` makes spikes, which cost synaptic operations.
        loss: what is minimised.
        measures: by name, what is reported beside the loss.
        optimizer: ``optimizer(parameters, total_steps)`` as Lightning's ``configure_optimizers`` returns it.
    """

    def __init__(
        self,
        network: Network,
        encode: Callable[[Tensor], Tensor | Events],
        spikes_come_in: bool,
        loss: Loss,
        measures: Mapping[str, Measure],
        optimizer: Callable[..., dict[str, Any]],
    ) -> None:
        super().__init__()
        self.network = network
        self.encode = encode
        self.spikes_come_in = spikes_come_in
        self.loss = loss
        self.measures = measures
        self.optimizer = optimizer
        layers = list(network.neurons())
        self.means = metrics.Means()
        """Of the evaluation under way."""
        self.resumed: Mapping[str, Any] | None = None
        """A checkpoint, whose states the optimiser and its schedule take."""
        # an evaluation reads single time steps of the readout at most
        self.reduced = layers[:-1] if loss.reads == "membrane" else layers

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        loss, _, traces = self._step(batch)
        samples = _samples(traces)
        # reading every trace costs time, so it is done only for the steps that are logged
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            measured = self._measured(traces, batch, "train")
            values = {"train/loss": loss.detach(), **{name: total / n for name, (total, n) in measured.items()}}
            self.log_dict(values, on_step=True, on_epoch=False, batch_size=samples)
        return {"loss": loss, "samples": samples, "traces": traces}

    def validation_step(self, batch: Any, index: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Any, index: int) -> dict[str, Any]:
        return {"traces": self._evaluation_step(batch, "test")}

    def shares(self, outputs: Any, batch: Any) -> Sequence[tuple[Any, Tensor]]:
        """What each member has of what a step gave, and its target."""
        return [(outputs, batch[1])]

    def configure_optimizers(self) -> Any:
        made = self.make_optimizer([*self.parameters()], int(self.trainer.estimated_stepping_batches))
        if self.resumed is not None:
            made["optimizer"].load_state_dict(self.resumed["optimizer_states"][0])
            if "lr_scheduler" in made:
                made["lr_scheduler"]["scheduler"].load_state_dict(self.resumed["lr_schedulers"][0])
        return made

    def make_optimizer(self, parameters: Sequence[nn.Parameter], total_steps: int) -> dict[str, Any]:
        """The optimiser of the task's parameters, or of as many others in their place.

        Weight decay acts on synapses and feedback. A neuron parameter has a meaning and a unit of its own: pulled
        towards zero, a decay or a threshold becomes another neuron.
        """
        kept = {id(parameter) for neuron in self.network.equations().values() for parameter in neuron.constants()}
        decays = [id(parameter) not in kept for parameter in self.parameters()]
        # an optimiser of a user's says how it decays by itself
        groups = grouped(parameters, decays, getattr(self.optimizer, "weight_decay", 0.0))
        return self.optimizer(groups, total_steps)

    def _step(self, batch: Any, reduced: Container[str] = ()) -> tuple[Tensor, Tensor | Events, list[Trace | Reduced]]:
        values, target = batch
        inputs = self.encode(values)
        traces = self.network(inputs, reduced=reduced)
        return self.loss(traces[-1], target), inputs, traces

    def _evaluation_step(self, batch: Any, split: str) -> list[Trace | Reduced]:
        loss, inputs, traces = self._step(batch, reduced=self.reduced)
        samples = _samples(traces)
        values = {f"{split}/loss": metrics.counted(loss * samples, samples), **self._measured(traces, batch, split)}
        if split == "test":
            values |= self._operations(traces, inputs)
        self.means.add(values)
        return traces

    def _operations(self, traces: list[Trace | Reduced], inputs: Tensor | Events) -> dict[str, metrics.Sum]:
        """``test/synops``, and by the layer that the spikes arrive at; without those that cannot be counted."""
        arriving = {f"test/synops/{name}": torch.zeros((), device=self.device) for name in self.network.neurons()}
        unknown: set[str] = set()
        for layer, spikes, synapse in self.network.deliveries(traces, inputs if self.spikes_come_in else None):
            name = f"test/synops/{layer}"
            if synapse is None:
                unknown.add(name)
            else:
                arriving[name] = arriving[name] + metrics.synaptic_operations(spikes, synapse)
        known = {name: value for name, value in arriving.items() if name not in unknown}
        whole = {} if unknown else {"test/synops": torch.stack([*known.values()]).sum()}
        found, samples = {**whole, **known}, _samples(traces)
        return {name: metrics.counted(value * samples, samples) for name, value in found.items()}

    @torch.no_grad()
    def _measured(self, traces: list[Trace | Reduced], batch: Any, split: str) -> dict[str, metrics.Sum]:
        values = {f"{split}/{name}": measure(traces[-1], batch[1]) for name, measure in self.measures.items()}
        for (name, neuron), trace in zip(self.network.neurons().items(), traces, strict=True):
            if neuron.spikes:
                rate = metrics.firing_rate(trace.spike_count) / trace.num_steps
                values[f"{split}/firing_rate/{name}"] = metrics.counted(rate * _samples(traces), _samples(traces))
        return values


def _samples(traces: list[Trace | Reduced]) -> int:
    return len(traces[-1].last_spikes)

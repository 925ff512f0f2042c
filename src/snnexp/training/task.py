"""The LightningModule: runs the parts of an experiment and logs their metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from snnexp import metrics
from snnexp.decoders import Decoder, Readout, pooled
from snnexp.errors import ConfigError, key_prefix
from snnexp.losses import Loss
from snnexp.network import Network
from snnexp.neurons import Reads, ReducedTrace, Trace, statistic_names
from snnexp.optimizers import NamedParameter, Parameters, Role, build_optimizer, learning_rates
from snnexp.record.measures import higher_is_better
from snnexp.regularizers import Penalty
from snnexp.schedules import Constant, Schedule
from snnexp.sparse import SparseSpikes
from snnexp.training.accumulation import Accumulation


class Task(LightningModule):
    """Encode a batch, run the network, compute the loss and log metrics.

    Args:
        network: returns the traces of an encoded batch.
        encode: encodes values as currents or spikes.
        inputs_are_spikes: True if the inputs are spikes, which count as synaptic operations.
        loss: the loss to minimize.
        measures: reported metrics by name.
        optimizer: an :class:`~snnexp.optimizers.OptimizerFactory`.
        decoder: predicts a class from the readout; None if the targets are not labels.
        penalties: regularization terms added to the loss, by name.
        schedule: of the learning rates; constant by default.
    """

    def __init__(
        self,
        network: Network,
        encode: Callable[[Tensor], Tensor | SparseSpikes],
        inputs_are_spikes: bool,
        loss: Loss,
        measures: Mapping[str, metrics.Measure],
        optimizer: Callable[..., Any],
        decoder: Decoder | None = None,
        penalties: Mapping[str, Penalty] = MappingProxyType({}),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.encode = encode
        self.inputs_are_spikes = inputs_are_spikes
        self.loss = loss
        self.measures = measures
        self.optimizer = optimizer
        self.decoder = decoder
        self.penalties = penalties
        self.schedule = Constant() if schedule is None else schedule
        self.means = metrics.Totals(measures)
        """Accumulated metrics of the current evaluation."""
        self.accumulation: Accumulation | None = None
        """Splits a step into batches; None for one batch per step."""
        self.resumed: Mapping[str, Any] | None = None
        """Content of the checkpoint to resume the optimizer and its schedule from."""
        fires = {name: neuron.spikes for name, neuron in network.neurons().items()}
        self.penalized: dict[str, Sequence[str]] = {}
        for name, penalty in penalties.items():
            with key_prefix(f"regularizer.{name}"):
                self.penalized[name] = penalty.chosen(fires)
        """Layers read by each penalty."""
        self.statistics = self._needed()
        """The statistics that an evaluation computes, by layer."""

    def _needed(self) -> dict[str, tuple[str, ...]]:
        layers = self.network.neurons()
        readout = [*layers][-1]
        needed: dict[str, list[Reads]] = {name: [] for name in layers}
        for name, neuron in layers.items():
            # for firing rates and synaptic operations
            if neuron.spikes or name != readout:
                needed[name].append("spike_count")
            # spikes of the last step are never delivered
            if neuron.feedback_synapse is not None or name in self.network.feedback_layers:
                needed[name].append("last_spikes")
        needed[readout] += [self.loss.reads, *(measure.reads for measure in self.measures.values())]
        needed[readout] += [] if self.decoder is None else [self.decoder.reads]
        for name, penalty in self.penalties.items():
            for layer in self.penalized[name]:
                needed[layer].append(penalty.reads)
        return {name: union(reads) for name, reads in needed.items()}

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        if self.accumulation is not None:
            return self._accumulated(batch, self.accumulation)
        loss, penalties, _, traces = self._step(batch)
        samples = traces[-1].samples
        # metrics are expensive, so compute them only at logged steps
        if self._is_logged():
            measured = self._measured(traces, batch, "train")
            self._log_step(loss, penalties, {name: self.means.compute(name, each) for name, each in measured.items()})
        minimized = sum(penalties.values(), loss)
        return {"loss": minimized, "unregularized_loss": loss.detach(), "samples": samples, "traces": traces}

    def _accumulated(self, step: Any, accumulation: Accumulation) -> dict[str, Any]:
        """:meth:`training_step` over several batches; the returned traces are those of the last."""
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        totals: dict[str, Tensor] = {}
        measured = metrics.Totals(self.measures)
        batches = [*accumulation.batches(step)]
        for index, (batch, share) in enumerate(batches):
            loss, penalties, _, traces = self._step(batch)
            minimized = share * sum(penalties.values(), loss)
            for name, value in {"": loss, **penalties}.items():
                totals[name] = totals.get(name, 0) + share * value.detach()
            if self._is_logged():
                measured.add(self._measured(traces, batch, "train"))
            # Lightning runs the backward pass of the last batch
            if index + 1 < len(batches):
                minimized.backward()  # type: ignore[no-untyped-call]
        loss, samples = totals.pop(""), step[0].shape[accumulation.input_axis]
        if self._is_logged():
            self._log_step(loss, totals, measured.take())
        return {"loss": minimized, "unregularized_loss": loss, "samples": samples, "traces": traces}

    def _is_logged(self) -> bool:
        """Return True if the current step is logged."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined, no-any-return]

    def _log_step(self, loss: Tensor, penalties: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> None:
        values = {"train/loss": loss.detach()}
        values |= {f"train/penalty/{name}": value.detach() for name, value in penalties.items()}
        values |= measured
        values |= {f"train/{name}": rate for name, rate in self.rates().items()}
        self.log_dict(values, on_step=True, on_epoch=False)

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        # accumulated gradients must not be cleared before the last batch
        if self.accumulation is None:
            super().optimizer_zero_grad(*arguments)

    def validation_step(self, batch: Any, index: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Any, index: int) -> dict[str, Any]:
        return {"traces": self._evaluation_step(batch, "test")}

    def rates(self) -> dict[str, Tensor]:
        """Return the learning rates by name; empty for a single constant rate."""
        by_name = learning_rates(self.optimizers().param_groups)  # type: ignore[union-attr]
        several = len(by_name) > 1 or not isinstance(self.schedule, Constant)
        return {name: torch.tensor(rate) for name, rate in by_name.items()} if several else {}

    def split_by_member(self, outputs: Any, batch: Any) -> Sequence[tuple[Any, Tensor]]:
        """Return the outputs of a step and the targets for each member."""
        if "loss" in outputs:
            outputs = {**outputs, "minimized": outputs["loss"], "loss": outputs["unregularized_loss"]}
        return [(outputs, batch[1])]

    def configure_optimizers(self) -> Any:
        configuration = self.make_optimizer([*self.parameters()], *self.lengths())
        if self.resumed is not None:
            configuration["optimizer"].load_state_dict(self.resumed["optimizer_states"][0])
            if "lr_scheduler" in configuration:
                configuration["lr_scheduler"]["scheduler"].load_state_dict(self.resumed["lr_schedulers"][0])
        return configuration

    def lengths(self) -> tuple[int, int]:
        """Return the total numbers of steps and epochs."""
        return int(self.trainer.estimated_stepping_batches), int(self.trainer.max_epochs or 1)

    def make_optimizer(self, parameters: Sequence[nn.Parameter], steps: int, epochs: int = 1) -> dict[str, Any]:
        """Make the optimizer of the task's parameters, or of substitutes, and its schedule.

        Args:
            parameters: one per parameter of the task.
            steps: total number of steps.
            epochs: total number of epochs.

        Raises:
            ConfigError: both the optimizer and the config have a schedule.
        """
        kept = {
            id(parameter)
            for neuron in self.network.native_neurons().values()
            for parameter in neuron.equation_parameters()
        }
        named = [
            NamedParameter(name.removeprefix("network."), _role(name, id(own) in kept), parameter)
            for (name, own), parameter in zip(self.named_parameters(), parameters, strict=True)
        ]
        # a user-defined optimizer may apply weight decay by itself
        configuration = build_optimizer(
            self.optimizer, Parameters(named, getattr(self.optimizer, "weight_decay", 0.0)), steps
        )
        return self.scheduled(configuration, steps, epochs)

    def higher_is_better(self, metric: str) -> bool | None:
        """Return the direction of improvement of a metric, None if unknown; see :mod:`snnexp.record.measures`."""
        return higher_is_better(metric, {name: measure.higher_is_better for name, measure in self.measures.items()})

    def scheduled(self, configuration: dict[str, Any], steps: int, epochs: int) -> dict[str, Any]:
        """Add the learning rate schedule to an optimizer configuration for Lightning."""
        schedule: Any = self.schedule
        higher = {"higher_is_better": bool(self.higher_is_better(schedule.measure))} if schedule.watches else {}
        scheduler = schedule(configuration["optimizer"], epochs if schedule.unit == "epoch" else steps, **higher)
        if scheduler is None:
            return configuration
        if "lr_scheduler" in configuration:
            name = type(self.optimizer).__name__
            raise ConfigError(f"schedule: {name} has its own schedule; use schedule=constant")
        watched = {"monitor": schedule.measure, "reduce_on_plateau": True} if schedule.watches else {}
        return {**configuration, "lr_scheduler": {"scheduler": scheduler, "interval": schedule.unit, **watched}}

    def compare(self, traces: Sequence[Any], target: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(pooled(self.decoder, traces[-1]), target)

    def penalize(self, traces: Sequence[Any]) -> dict[str, Tensor]:
        """Return the penalties by name."""
        by_layer = dict(zip(self.network.neurons(), traces, strict=True))
        return {
            name: penalty({layer: by_layer[layer] for layer in self.penalized[name]})
            for name, penalty in self.penalties.items()
        }

    def _step(
        self, batch: Any, statistics: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | SparseSpikes, list[Trace | ReducedTrace]]:
        """Return the loss, the penalties by name, the encoded inputs, and the traces."""
        values, target = batch
        inputs = self.encode(values)
        traces = self.network(inputs, statistics=statistics)
        return self.compare(traces, target), self.penalize(traces), inputs, traces

    def _evaluation_step(self, batch: Any, split: str) -> list[Trace | ReducedTrace]:
        loss, penalties, inputs, traces = self._step(batch, statistics=self.statistics)
        samples = traces[-1].samples
        values = {"loss": loss, **{f"penalty/{name}": value for name, value in penalties.items()}}
        states: dict[str, metrics.State] = {
            f"{split}/{name}": metrics.counted(value * samples, samples) for name, value in values.items()
        }
        states |= self._measured(traces, batch, split)
        if split == "test":
            states |= self._operations(traces, inputs)
        self.means.add(states)
        return traces

    def _operations(
        self, traces: list[Trace | ReducedTrace], inputs: Tensor | SparseSpikes
    ) -> dict[str, metrics.State]:
        """Return ``test/synops`` in total and per receiving layer, without layers whose synapses are unknown."""
        arriving = {f"test/synops/{name}": torch.zeros((), device=self.device) for name in self.network.neurons()}
        unknown: set[str] = set()
        for layer, spikes, synapse in self.network.deliveries(traces, inputs if self.inputs_are_spikes else None):
            name = f"test/synops/{layer}"
            if synapse is None:
                unknown.add(name)
            else:
                arriving[name] = arriving[name] + metrics.synaptic_operations(spikes, synapse)
        known = {name: value for name, value in arriving.items() if name not in unknown}
        total = {} if unknown else {"test/synops": torch.stack([*known.values()]).sum()}
        counts, samples = {**total, **known}, traces[-1].samples
        return {name: metrics.counted(value * samples, samples) for name, value in counts.items()}

    @torch.no_grad()
    def _measured(self, traces: list[Trace | ReducedTrace], batch: Any, split: str) -> dict[str, metrics.State]:
        readout = Readout(traces[-1], self.decoder, self.loss)
        values = {f"{split}/{name}": measure.update(readout, batch[1]) for name, measure in self.measures.items()}
        for (name, neuron), trace in zip(self.network.neurons().items(), traces, strict=True):
            if neuron.spikes:
                rate = metrics.firing_rate(trace.spike_count) / trace.num_steps
                values[f"{split}/firing_rate/{name}"] = metrics.counted(rate * trace.samples, trace.samples)
        return values


def union(reads: Iterable[Reads]) -> tuple[str, ...]:
    """Return the names of all statistics that are read, without duplicates."""
    return tuple(dict.fromkeys(name for each in reads for name in statistic_names(each)))


def _role(name: str, is_constant: bool) -> Role:
    return "neuron" if is_constant else "bias" if name.endswith(".bias") else "weight"

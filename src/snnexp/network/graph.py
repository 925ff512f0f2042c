"""Networks defined in a config: several inputs per layer, skip connections, feedback, any synapse."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from snnexp.errors import ConfigError
from snnexp.network.layers import Dense, Layer, NeuronFactory
from snnexp.network.network import INPUT, Network
from snnexp.neurons import Identity, Neuron
from snnexp.spec.annotations import Nodes, Steps
from snnexp.spec.checked import checked
from snnexp.spec.parts import PartFactory

Shape = tuple[int, ...]


class Graph(Network):
    """Layers with named inputs. Each is a mapping:

    ==========  ========================================================================================================
    name        name of the layer; the last one is ``readout``
    inputs      names of the source layers, ``input`` for the network's input; by default the previous layer. The
                currents of several inputs are added. This or a later layer is read with a delay of one step.
    size        number of neurons of a layer with dense synapses; by default the number of outputs for the readout
    synapse     a ``torch.nn.Module`` by ``_target_``, a list of them, applied in order, or, for several inputs, a
                mapping from their names to these; dense by default. ``in_channels``, ``in_features`` and
                ``num_features`` are inferred.
    neuron      neurons that replace those of the network, by ``_target_``; null for the identity
    ==========  ========================================================================================================

    Args:
        inputs: shape of one input.
        outputs: number of readout neurons.
        neuron: creates the neurons of all layers before the readout.
        readout: creates the neurons of the last layer.
        num_steps: T for an input that is constant over time.
        layers: the layers, in the order of computation.

    Raises:
        ConfigError: the layers are inconsistent.
    """

    stackable = True

    @checked
    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        neuron: NeuronFactory,
        readout: NeuronFactory,
        num_steps: Steps,
        layers: Nodes,
    ) -> None:
        require_wiring(layers)
        for layer in layers:
            if hasattr(nn.ModuleDict, layer["name"]):
                raise ConfigError(
                    f"layers: {layer['name']!r} cannot name a layer, torch.nn has an attribute of this name"
                )
        makers = {"neuron": neuron, "readout": readout}
        super().__init__(num_steps, lambda: _GraphBuilder(tuple(inputs), outputs, makers, layers).build())

    @staticmethod
    def shapes(inputs: tuple[int, ...], outputs: int, layers: Any) -> list[tuple[str, tuple[int, ...]]] | None:
        """See :meth:`MLP.shapes`; layers with their own neuron have no node. None if a shape depends on a synapse."""
        if any(layer.get("synapse") is not None for layer in layers):
            return None
        last = len(layers) - 1
        nodes = [
            "" if "neuron" in layer else "readout" if index == last else "neuron" for index, layer in enumerate(layers)
        ]
        return [(node, (layer.get("size") or outputs,)) for node, layer in zip(nodes, layers, strict=True)]

    @staticmethod
    def requires(layers: Any) -> None:
        """Raise :class:`ConfigError` if names or keys of layers are inconsistent."""
        require_wiring(layers)


def require_wiring(layers: Any) -> None:
    """Raise :class:`ConfigError` if names or keys of layers are inconsistent."""
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ConfigError("layers: must be a list of layers, the last named readout")
    names = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, dict) or not isinstance(layer.get("name"), str):
            raise ConfigError(f"layers: number {index + 1} must be a mapping with a name")
        names.append(layer["name"])
        known = ("name", "inputs", "size", "synapse", "neuron")
        if wrong := [str(key) for key in layer if key not in known]:
            raise ConfigError(f"layers: {layer['name']} has an unknown key {wrong[0]}; use one of {', '.join(known)}")
    if names[-1] != "readout":
        raise ConfigError(f"layers: the last layer is {names[-1]}, must be named readout")
    for name in names:
        if not name.isidentifier() or name == "input" or names.count(name) > 1:
            raise ConfigError(
                f"layers: {name!r} cannot name a layer; use letters, digits and underscores, each name once, not input"
            )
    for layer, previous in zip(layers, ["input", *names], strict=False):
        name, sources, synapse = layer["name"], layer.get("inputs", [previous]), layer.get("synapse")
        if not isinstance(sources, (list, tuple)) or not sources or len({*map(str, sources)}) < len(sources):
            raise ConfigError(f"layers: inputs of {name} must be a list of unique names")
        for source in sources:
            if source != "input" and source not in names:
                raise ConfigError(f"layers: {name} reads {source}, use one of input, {', '.join(names)}")
        size = layer.get("size")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"layers: size of {name} must be a whole number of at least 1")
        if size is not None and synapse is not None:
            raise ConfigError(f"layers: {name} has a size and a synapse, which defines the size; remove one of them")
        if size is None and synapse is None and name != "readout":
            raise ConfigError(f"layers: {name} needs a size or a synapse")
        by_name = isinstance(synapse, dict) and "_target_" not in synapse
        if by_name and set(synapse) != set(sources):
            raise ConfigError(f"layers: {name} needs one synapse for each of its inputs {', '.join(sources)}")
        if synapse is not None and len(sources) > 1 and not by_name:
            raise ConfigError(f"layers: {name} has several inputs and needs a mapping from their names to synapses")
        if synapse in ([], {}):
            raise ConfigError(f"layers: synapse of {name} is empty")
    reads = {
        layer["name"]: list(layer.get("inputs", [previous]))
        for layer, previous in zip(layers, ["input", *names], strict=False)
    }
    for name in names:
        if "input" not in dependencies(reads, name):
            raise ConfigError(f"layers: the input does not reach {name}")
        if name != "readout" and name not in dependencies(reads, "readout"):
            raise ConfigError(f"layers: {name} does not reach the readout")


def dependencies(reads: Any, name: Any) -> Any:
    """Return all direct and indirect sources of a layer; ``reads`` has the sources of each layer."""
    visited: list[Any] = []
    queue = [name]
    while queue:
        for source in reads.get(queue.pop(), []):
            if source not in visited:
                visited.append(source)
                queue.append(source)
    return visited


class _GraphBuilder:
    """Builds the layers of a graph in order as far as possible, since a synapse depends on its input shape."""

    def __init__(
        self,
        inputs: Shape,
        outputs: int,
        makers: Mapping[str, NeuronFactory],
        nodes: Sequence[Mapping[str, Any]],
    ) -> None:
        self.outputs, self.makers, self.nodes = outputs, makers, {node["name"]: node for node in nodes}
        self.shapes: dict[str, Shape] = {INPUT: inputs}
        names = [*self.nodes]
        self.sources = {
            name: tuple(self.nodes[name].get("inputs") or (previous,))
            for previous, name in zip([INPUT, *names], names, strict=False)
        }

    def build(self) -> dict[str, Layer]:
        """Return all layers by name."""
        neurons: dict[str, Neuron] = {}
        synapses: dict[tuple[str, str], nn.Module] = {}
        for name in self.nodes:
            known = [source for source in self.sources[name] if source in self.shapes]
            if (size := self._size(name)) is None:
                if not known:
                    raise ConfigError(f"layers: {name} reads only later layers and needs a size")
                for source in known:
                    synapses[name, source] = self._module(name, source)
                self.shapes[name] = self._features(name, known, synapses)
            else:
                self.shapes[name] = (size,)
            neurons[name] = self._neuron(name)
        for name, sources in self.sources.items():
            for index, source in enumerate(sources):
                if (name, source) not in synapses:
                    bias = neurons[name].synapse_bias and index == 0
                    synapses[name, source] = self._dense_or_module(name, source, bias)
            self._features(name, sources, synapses)
        layers = {}
        for name, sources in self.sources.items():
            by_source = {source: synapses[name, source] for source in sources}
            synapse = by_source if len(by_source) > 1 else by_source[sources[0]]
            layers[name] = Layer(synapse, neurons[name], sources)
        return layers

    def _size(self, name: str) -> int | None:
        """Return the size of a layer with dense synapses; None if it depends on its synapse."""
        node = self.nodes[name]
        if node.get("synapse") is not None:
            return None
        return int(node["size"]) if node.get("size") is not None else self.outputs

    def _neuron(self, name: str) -> Neuron:
        node, shape = self.nodes[name], self.shapes[name]
        if name == "readout" and shape != (self.outputs,):
            raise ConfigError(f"layers: the readout has shape {list(shape)}, these data require {[self.outputs]}")
        features = shape[0] if len(shape) == 1 else shape
        if "neuron" not in node:
            return self.makers["readout" if name == "readout" else "neuron"](features)
        if node["neuron"] is None:
            return Identity(features)
        neuron = node["neuron"]
        if isinstance(neuron, PartFactory):
            neuron = neuron(features=features) if "features" in neuron.missing else neuron()
        if not isinstance(neuron, Neuron):
            raise ConfigError(f"layers: neuron of {name} is a {type(neuron).__name__}, must be a snnexp.neurons.Neuron")
        return neuron

    def _dense_or_module(self, name: str, source: str, bias: bool) -> nn.Module:
        if self._size(name) is None:
            return self._module(name, source)
        return Dense(torch.Size(self.shapes[source]).numel(), self.shapes[name][0], bias=bias)

    def _module(self, name: str, source: str) -> nn.Module:
        """Return the synapse between a source and a layer."""
        node = self.nodes[name]["synapse"]
        node = node[source] if isinstance(node, Mapping) else node
        if not isinstance(node, (list, tuple)):
            return _build_module(node, self.shapes[source], name)
        shape, modules = self.shapes[source], []
        for each in node:
            modules.append(_build_module(each, shape, name))
            shape = _output_shape(modules[-1], shape, name)
        return nn.Sequential(*modules)

    def _features(self, name: str, sources: Sequence[str], synapses: Mapping[tuple[str, str], nn.Module]) -> Shape:
        """Return the shape of a layer, which must be the same for all its synapses."""
        by_source = {source: _output_shape(synapses[name, source], self.shapes[source], name) for source in sources}
        shapes = {*by_source.values()} | {self.shapes[each] for each in [name] if each in self.shapes}
        if len(shapes) > 1:
            shown = ", ".join(f"{list(shape)} from {source}" for source, shape in by_source.items())
            raise ConfigError(f"layers: currents of {name} have different shapes: {shown}")
        return next(iter(shapes))


def _build_module(node: Any, shape: Shape, name: str) -> nn.Module:
    """Create a module of a synapse; constructor arguments that depend on the input shape are inferred."""
    if isinstance(node, nn.Module):
        return node
    if not isinstance(node, PartFactory):
        raise ConfigError(f"layers: a synapse of {name} is a {type(node).__name__}, must be a torch.nn.Module")
    inferred: dict[str, Any] = {
        "inputs": shape,
        "in_features": shape[-1],
        "in_channels": shape[0],
        "num_features": shape[0],
        "num_channels": shape[0],
        "normalized_shape": shape,
    }
    module = node(**{key: value for key, value in inferred.items() if key in node.missing})
    if not isinstance(module, nn.Module):
        raise ConfigError(f"layers: a synapse of {name} is a {type(module).__name__}, must be a torch.nn.Module")
    return module


@torch.no_grad()
def _output_shape(module: nn.Module, shape: Shape, name: str) -> Shape:
    """Return the output shape ``[*N]`` of a module, without side effects."""
    if 0 in shape:
        raise ConfigError(f"layers: a synapse of {name} reads an empty shape {list(shape)}")
    training = module.training
    module.eval()
    try:
        # two batch sizes: a module for unbatched inputs may take the batch axis for channels
        output, other = module(torch.zeros(2, *shape)), module(torch.zeros(3, *shape))
    except Exception as error:
        if not type(module).__module__.startswith("torch."):
            raise
        reason = " ".join(str(error).split())[:160]
        cls = type(module).__name__
        raise ConfigError(f"layers: a synapse of {name}, {cls}, cannot read {list(shape)}: {reason}") from error
    finally:
        module.train(training)
    valid = all(isinstance(each, torch.Tensor) and each.ndim > 1 for each in (output, other))
    if not valid or (len(output), len(other)) != (2, 3) or output.shape[1:] != other.shape[1:]:
        cls = type(module).__name__
        raise ConfigError(f"layers: a synapse of {name}, {cls}, must return a tensor [B, *N] for {['B', *shape]}")
    return tuple(output.shape[1:])

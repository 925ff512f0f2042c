"""A network whose layers a config wires: several inputs of a layer, skip connections, feedback, any synapse."""

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
    name        of the layer; the last one is ``readout``
    inputs      names of the layers that it reads, ``input`` for the network's input; by default the layer before. The
                currents of several inputs add up. A layer that is not before this one is read one step later.
    size        neurons of a layer with dense synapses; the readout has as many as the data have outputs
    synapse     a ``torch.nn.Module`` by ``_target_``, a list of them that follow each other, or for several inputs a
                mapping from their names to these; dense without. ``in_channels``, ``in_features`` and ``num_features``
                are filled in.
    neuron      neurons of another kind than the network's, by ``_target_``; null for none: the currents are handed on
    ==========  ========================================================================================================

    Args:
        inputs: shape of one input.
        outputs: neurons of the readout.
        neuron: makes the layers before the readout.
        readout: makes the last layer.
        num_steps: T where the input does not change over time.
        layers: the layers, in the order in which they are computed.

    Raises:
        ConfigError: layers do not fit each other.
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
        for each in layers:
            if hasattr(nn.ModuleDict, each["name"]):
                raise ConfigError(
                    f"layers: {each['name']!r} cannot name a layer, torch.nn has an attribute of this name"
                )
        makers = {"neuron": neuron, "readout": readout}
        super().__init__(num_steps, lambda: _Wiring(tuple(inputs), outputs, makers, layers).layers())

    @staticmethod
    def shapes(inputs: tuple[int, ...], outputs: int, layers: Any) -> list[tuple[str, tuple[int, ...]]] | None:
        """As of :meth:`MLP.shapes`, without the node for neurons of a layer's own; None where a synapse decides."""
        if any(layer.get("synapse") is not None for layer in layers):
            return None
        last = len(layers) - 1
        nodes = ["" if "neuron" in layer else "readout" if at == last else "neuron" for at, layer in enumerate(layers)]
        return [(node, (layer.get("size") or outputs,)) for node, layer in zip(nodes, layers, strict=True)]

    @staticmethod
    def requires(layers: Any) -> None:
        """Refuse layers whose names or keys do not fit each other."""
        require_wiring(layers)


def require_wiring(layers: Any) -> None:
    """Raise :class:`ConfigError` for layers whose names or keys do not fit each other."""
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
    for layer, before in zip(layers, ["input", *names], strict=False):
        name, sources, synapse = layer["name"], layer.get("inputs", [before]), layer.get("synapse")
        if not isinstance(sources, (list, tuple)) or not sources or len({*map(str, sources)}) < len(sources):
            raise ConfigError(f"layers: inputs of {name} must be a list of different names")
        for source in sources:
            if source != "input" and source not in names:
                raise ConfigError(f"layers: {name} reads {source}, the choice is input, {', '.join(names)}")
        size = layer.get("size")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"layers: size of {name} must be a whole number of at least 1")
        if size is not None and synapse is not None:
            raise ConfigError(f"layers: {name} has a size and a synapse, whose outputs are its neurons; leave out one")
        if size is None and synapse is None and name != "readout":
            raise ConfigError(f"layers: {name} needs a size or a synapse")
        by_name = isinstance(synapse, dict) and "_target_" not in synapse
        if by_name and set(synapse) != set(sources):
            raise ConfigError(f"layers: {name} needs one synapse for each of its inputs {', '.join(sources)}")
        if synapse is not None and len(sources) > 1 and not by_name:
            raise ConfigError(f"layers: {name} has several inputs, and needs a mapping from their names to synapses")
        if synapse in ([], {}):
            raise ConfigError(f"layers: synapse of {name} is empty")
    reads = {
        layer["name"]: list(layer.get("inputs", [before]))
        for layer, before in zip(layers, ["input", *names], strict=False)
    }
    for name in names:
        if "input" not in reached(reads, name):
            raise ConfigError(f"layers: nothing of the input reaches {name}")
        if name != "readout" and name not in reached(reads, "readout"):
            raise ConfigError(f"layers: nothing of {name} reaches the readout")


def reached(reads: Any, name: Any) -> Any:
    """All that a layer depends on, by what each layer reads."""
    found: list[Any] = []
    left = [name]
    while left:
        for source in reads.get(left.pop(), []):
            if source not in found:
                found.append(source)
                left.append(source)
    return found


class _Wiring:
    """Builds the layers of a graph, as far as possible in their order: a synapse needs the shape that it reads."""

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
            name: tuple(self.nodes[name].get("inputs") or (before,))
            for before, name in zip([INPUT, *names], names, strict=False)
        }

    def layers(self) -> dict[str, Layer]:
        """All layers, by name."""
        neurons: dict[str, Neuron] = {}
        synapses: dict[tuple[str, str], nn.Module] = {}
        for name in self.nodes:
            there = [source for source in self.sources[name] if source in self.shapes]
            if (size := self._size(name)) is None:
                if not there:
                    raise ConfigError(f"layers: {name} reads later layers alone, and needs a size")
                for source in there:
                    synapses[name, source] = self._module(name, source)
                self.shapes[name] = self._features(name, there, synapses)
            else:
                self.shapes[name] = (size,)
            neurons[name] = self._neuron(name)
        for name, sources in self.sources.items():
            for index, source in enumerate(sources):
                if (name, source) not in synapses:
                    bias = neurons[name].synapse_bias and index == 0
                    synapses[name, source] = self._dense_or_module(name, source, bias)
            self._features(name, sources, synapses)
        made = {}
        for name, sources in self.sources.items():
            several = {source: synapses[name, source] for source in sources}
            made[name] = Layer(several if len(several) > 1 else several[sources[0]], neurons[name], sources)
        return made

    def _size(self, name: str) -> int | None:
        """The neurons of a layer with dense synapses; None where its synapse says how many there are."""
        node = self.nodes[name]
        if node.get("synapse") is not None:
            return None
        return int(node["size"]) if node.get("size") is not None else self.outputs

    def _neuron(self, name: str) -> Neuron:
        node, shape = self.nodes[name], self.shapes[name]
        if name == "readout" and shape != (self.outputs,):
            raise ConfigError(f"layers: the readout has neurons {list(shape)}, and these data need {[self.outputs]}")
        features = shape[0] if len(shape) == 1 else shape
        if "neuron" not in node:
            return self.makers["readout" if name == "readout" else "neuron"](features)
        if node["neuron"] is None:
            return Identity(features)
        made = node["neuron"]
        if isinstance(made, PartFactory):
            made = made(features=features) if "features" in made.missing else made()
        if not isinstance(made, Neuron):
            raise ConfigError(f"layers: neuron of {name} is a {type(made).__name__}, must be a snnexp.neurons.Neuron")
        return made

    def _dense_or_module(self, name: str, source: str, bias: bool) -> nn.Module:
        if self._size(name) is None:
            return self._module(name, source)
        return Dense(torch.Size(self.shapes[source]).numel(), self.shapes[name][0], bias=bias)

    def _module(self, name: str, source: str) -> nn.Module:
        """The synapse of a layer behind a source."""
        node = self.nodes[name]["synapse"]
        node = node[source] if isinstance(node, Mapping) else node
        if not isinstance(node, (list, tuple)):
            return _made(node, self.shapes[source], name)
        shape, modules = self.shapes[source], []
        for each in node:
            modules.append(_made(each, shape, name))
            shape = _behind(modules[-1], shape, name)
        return nn.Sequential(*modules)

    def _features(self, name: str, sources: Sequence[str], synapses: Mapping[tuple[str, str], nn.Module]) -> Shape:
        """The shape of a layer, on which all synapses agree."""
        found = {source: _behind(synapses[name, source], self.shapes[source], name) for source in sources}
        shapes = {*found.values()} | {self.shapes[each] for each in [name] if each in self.shapes}
        if len(shapes) > 1:
            shown = ", ".join(f"{list(shape)} from {source}" for source, shape in found.items())
            raise ConfigError(f"layers: currents of {name} have different shapes: {shown}")
        return next(iter(shapes))


def _made(node: Any, shape: Shape, name: str) -> nn.Module:
    """A module of a synapse; what its constructor asks about the shape that it reads is filled in."""
    if isinstance(node, nn.Module):
        return node
    if not isinstance(node, PartFactory):
        raise ConfigError(f"layers: a synapse of {name} is a {type(node).__name__}, must be a torch.nn.Module")
    known: dict[str, Any] = {
        "inputs": shape,
        "in_features": shape[-1],
        "in_channels": shape[0],
        "num_features": shape[0],
        "num_channels": shape[0],
        "normalized_shape": shape,
    }
    made = node(**{key: value for key, value in known.items() if key in node.missing})
    if not isinstance(made, nn.Module):
        raise ConfigError(f"layers: a synapse of {name} is a {type(made).__name__}, must be a torch.nn.Module")
    return made


@torch.no_grad()
def _behind(module: nn.Module, shape: Shape, name: str) -> Shape:
    """The shape ``[*N]`` of what comes out of a module; nothing in it changes."""
    if 0 in shape:
        raise ConfigError(f"layers: a synapse of {name} reads {list(shape)}, of which nothing is left")
    training = module.training
    module.eval()
    try:
        # a module for samples without a batch takes a batch of one size for channels
        found, more = module(torch.zeros(2, *shape)), module(torch.zeros(3, *shape))
    except Exception as error:
        if not type(module).__module__.startswith("torch."):
            raise
        reason = " ".join(str(error).split())[:160]
        kind = type(module).__name__
        raise ConfigError(f"layers: a synapse of {name}, {kind}, cannot read {list(shape)}: {reason}") from error
    finally:
        module.train(training)
    fits = all(isinstance(each, torch.Tensor) and each.ndim > 1 for each in (found, more))
    if not fits or (len(found), len(more)) != (2, 3) or found.shape[1:] != more.shape[1:]:
        kind = type(module).__name__
        raise ConfigError(f"layers: a synapse of {name}, {kind}, must give a tensor [B, *N] for {['B', *shape]}")
    return tuple(found.shape[1:])

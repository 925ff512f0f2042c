"""What the shipped parts are by name, and which of them cannot work together: told without importing any of them.

:data:`SHIPPED` mirrors the constructors; a test holds it to them. The rules below it take plain values, so that a
config is refused at once; parts from elsewhere are checked when they are built.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snnexp.errors import ConfigError, Refusals, located
from snnexp.text import closest, shown

ROUNDING = 1 + 1e-6
"""A bound counts as met by what exceeds it in the last digits of float32."""


@dataclass(frozen=True)
class Part:
    """A shipped target. ``arguments`` are those that a config may give; the starred ones it must give."""

    name: str
    arguments: str = ""

    @property
    def known(self) -> list[str]:
        return self.arguments.replace("*", "").split()

    @property
    def required(self) -> list[str]:
        return [word[:-1] for word in self.arguments.split() if word.endswith("*")]


@dataclass(frozen=True)
class Data(Part):
    """Data: the shape of one input, neurons of the readout, and how many samples train where that is fixed."""

    target: str = ""
    sequences: bool = False
    inputs: tuple[int, ...] = ()
    outputs: int = 0
    samples: int | None = None


@dataclass(frozen=True)
class Encoder(Part):
    """An encoder."""

    takes_sequences: bool = False


@dataclass(frozen=True)
class Loss(Part):
    """A loss."""

    targets: tuple[str, ...] = ("labels",)
    reads: str = "membrane"


@dataclass(frozen=True)
class Neuron(Part):
    """A neuron, hidden or as readout."""

    spikes: bool = True


def _from(module: str, *parts: Part) -> dict[str, Any]:
    return {f"snnexp.{module}.{part.name}": part for part in parts}


_LOADER = "batch_size drop_last num_workers seed"
_LEAKY = "learn_beta learn_threshold reset surrogate"
_NEURONS = _from(
    "neurons",
    Neuron("Leaky", f"beta threshold {_LEAKY}"),
    Neuron("RLeaky", f"beta threshold feedback kernel_size V learn_recurrent {_LEAKY}"),
    Neuron("ParametrizedLIF", "recurrent tau_mem_inv tau_syn_inv v_th v_leak v_reset learn log_tau dt surrogate"),
    Neuron("LeakyIntegrator", "tau_mem_inv tau_syn_inv v_leak dt", spikes=False),
)
SHIPPED: dict[str, dict[str, Any]] = {
    "data": _from(
        "data",
        Data(
            "mnist_data",
            f"root* download mean std val_size {_LOADER}",
            target="labels",
            inputs=(1, 28, 28),
            outputs=10,
            samples=60_000,
        ),
        Data(
            "regression_data",
            f"mode* num_steps* num_samples sample_seed {_LOADER}",
            target="trace",
            sequences=True,
            inputs=(1,),
            outputs=1,
        ),
    ),
    "encoder": _from(
        "encoders",
        Encoder("Sequence", takes_sequences=True),
        Encoder("Constant"),
        Encoder("ConstantCurrentLIF", "num_steps* tau_mem_inv v_th v_leak v_reset dt"),
        Encoder("Bernoulli", "num_steps*"),
        Encoder("Latency", "num_steps*"),
    ),
    "network": _from(
        "network",
        Part("MLP", "num_steps* hidden"),
        Part("Conv", "num_steps* channels kernel_size stride hidden"),
    ),
    "neuron": _NEURONS,
    "readout": _NEURONS,
    "surrogate": _from(
        "surrogates",
        Part("ATan", "alpha"),
        Part("FastSigmoid", "slope"),
        Part("SuperSpike", "alpha"),
        Part("Sigmoid", "slope"),
        Part("Triangular", "width"),
        Part("StraightThrough"),
    ),
    "loss": _from(
        "losses",
        Loss("CEMembrane"),
        Loss("MSECount", "correct_rate incorrect_rate", reads="spike_count"),
        Loss("MSEMembrane", "on_target off_target", targets=("labels", "trace")),
        Loss("NLLMaxVoltage", reads="max_membrane"),
    ),
    "optimizer": _from(
        "optimizers",
        Part("Adam", "lr betas weight_decay schedule"),
        Part("SGD", "lr momentum weight_decay schedule"),
    ),
    "trainer": _from(
        "training.assembly",
        Part(
            "make_trainer",
            "accelerator devices strategy precision threads max_epochs limit_batches limit_test_batches "
            "log_every_n_steps",
        ),
    ),
    "initializer": _from(
        "initializers",
        Part("Constant", "value*"),
        Part("Uniform", "low high"),
        Part("Normal", "mean std"),
        Part("LogNormal", "mean std"),
    ),
}
"""Place in a config to the targets that may stand there; an initializer stands for a neuron's parameter."""
EVERY: dict[str, Any] = {target: part for targets in SHIPPED.values() for target, part in targets.items()}


def check(plain: Mapping[str, Any], refusals: Refusals) -> None:
    """Hold the nodes of a config against what their targets take and against each other.

    Args:
        plain: the config.
        refusals: what has been refused of it; values of such a node are compared with no others. Takes what is found.
    """
    nodes = {place: node for place, node in plain.items() if place in SHIPPED and _is_part(node, place, refusals)}
    for place, node in nodes.items():
        _check_node(node, place, refusals)
    known = {place: SHIPPED[place].get(node["_target_"]) for place, node in nodes.items()}
    data, loss, encoder, readout = (known.get(place) for place in ("data", "loss", "encoder", "readout"))
    if data and loss:
        with refusals.collected():
            require_target(loss, data)
    if data and encoder:
        with refusals.collected():
            require_encoder(encoder, data)
    if loss and readout:
        with refusals.collected():
            require_spikes(loss, readout)
    if data and not refusals.about("data") and not refusals.about("trainer"):
        devices = nodes["trainer"].get("devices", 1) if known.get("trainer") else 1
        with refusals.collected(), located("data"):
            _check_batches(data, devices, **_values(nodes["data"]))
    network = known.get("network")
    if data and network and not refusals.about("network"):
        with refusals.collected():
            for place, features in _layers(network.name, data, _values(nodes["network"])):
                fits = FITS.get(nodes[place]["_target_"]) if place in nodes else None
                if fits is not None and not refusals.about(place):
                    with refusals.collected(), located(place):
                        fits(features, **_values(nodes[place]))


def _is_part(node: Any, place: str, refusals: Refusals) -> bool:
    named = isinstance(node, Mapping) and isinstance(node.get("_target_"), str)
    return named and place not in refusals.sentences and f"{place}._target_" not in refusals.sentences


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    # what the inputs are is for the assembly, whatever the data
    return {key: value for key, value in node.items() if key not in ("_target_", "spikes")}


def _check_node(node: Mapping[str, Any], path: str, refusals: Refusals) -> None:
    part = EVERY.get(node["_target_"])
    if part is not None:
        values = _values(node)
        with refusals.collected():
            require_arguments(path, part.name, values, part.known)
        for name in part.required:
            if name not in values:
                refusals.add(f"{path}: {part.name} is missing a required argument: '{name}'")
        rule = RULES.get(node["_target_"])
        if rule is not None and not refusals.about(path):
            with refusals.collected(), located(path):
                rule(**values)
    for key, value in node.items():
        child = f"{path}.{key}"
        if _is_part(value, child, refusals):
            _check_node(value, child, refusals)


def require_arguments(path: str, name: str, keys: Collection[Any], known: Collection[str]) -> None:
    """Refuse those of ``keys`` that ``name``, which is built at ``path``, does not take."""
    unknown = [
        f"{path}.{shown(key)}: unknown key, {name} has no such argument, {closest(str(key), known)}"
        for key in keys
        if key not in known
    ]
    if unknown:
        raise ConfigError(*unknown)


def require_target(loss: Any, data: Any) -> None:
    """Refuse a loss that cannot be compared with the target of the data."""
    if data.target not in loss.targets:
        raise ConfigError(
            f"loss: {_name(loss)} compares with {loss.targets[0]}, these data have a {data.target}; "
            "use loss=mse_membrane, or data with labels"
        )


def require_encoder(encoder: Any, data: Any) -> None:
    """Refuse an encoder of sequences on data that are none, and the other way round."""
    if encoder.takes_sequences != data.sequences:
        need = "sequence" if data.sequences else "constant"
        raise ConfigError(f"encoder: {_name(encoder)} does not fit these data; use encoder={need}")


def require_spikes(loss: Any, readout: Any) -> None:
    """Refuse a loss that counts the spikes of a readout that never fires."""
    if loss.reads == "spike_count" and not readout.spikes:
        raise ConfigError(
            f"loss: {_name(loss)} counts spikes and this readout never fires; use another loss, or readout=same"
        )


def _name(part: Any) -> str:
    return part.name if isinstance(part, Part) else type(part).__name__


def _check_batches(
    data: Data, devices: int, batch_size: int = 1, drop_last: bool = False, val_size: int = 0, **values: Any
) -> None:
    samples = data.samples or values.get("num_samples", 1)
    if val_size >= samples:
        raise ConfigError(f"val_size: got {val_size}, must be less than the {samples} training samples")
    samples -= val_size
    if drop_last and batch_size > samples:
        raise ConfigError(f"batch_size: got {batch_size}, must be at most the {samples} training samples")
    if min(batch_size, samples) % devices:
        raise ConfigError(
            f"batch_size: {min(batch_size, samples)} samples per batch cannot be shared equally by {devices} processes"
        )


def _layers(network: str, data: Data, values: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """The neurons of each layer in order, and the node that makes them."""
    with located("network"):
        maps = convolved(data.inputs, **values) if network == "Conv" else []
    hidden = [(size,) for size in values.get("hidden", [])]
    return [*(("neuron", features) for features in [*maps, *hidden]), ("readout", (data.outputs,))]


def convolved(
    inputs: tuple[int, ...],
    channels: Sequence[int] = (8, 16),
    kernel_size: int | None = 5,
    stride: int = 2,
    **_: Any,
) -> list[tuple[int, ...]]:
    """The maps ``(C, H, W)`` behind each convolution of a conv network.

    Raises:
        ConfigError: the input is no map, or nothing of it is left.
    """
    if len(inputs) != 3:
        raise ConfigError(f"inputs: got {list(inputs)}, a conv network needs images [C, H, W]; use network=mlp")
    if kernel_size is None:
        raise ConfigError("kernel_size: got null, must be a whole number of at least 1")
    maps: list[tuple[int, ...]] = [inputs]
    for index, out_channels in enumerate(channels, start=1):
        side = [(length - kernel_size) // stride + 1 for length in maps[-1][1:]]
        if min(side) < 1:
            raise ConfigError(
                f"channels: nothing of the image is left for convolution {index}; use fewer channels, a smaller "
                "kernel_size or stride"
            )
        maps.append((out_channels, *side))
    return maps[1:]


def uniform(low: float = 0.0, high: float = 1.0) -> None:
    """Refuse an interval whose ends are in the wrong order."""
    if high < low:
        raise ConfigError(f"high: got {high:g}, must be at least low = {low:g}")


def log_normal(mean: float = 1.0, **_: Any) -> None:
    """Refuse a mean that no log-normal distribution has."""
    if mean <= 0:
        raise ConfigError(f"mean: got {mean:g}, must be greater than 0 for a log-normal distribution")


def time_constants(dt: float = 1e-3, **values: Any) -> None:
    """Refuse a neuron that would leak more than all it has in one step; drawn values are checked when drawn."""
    for name in ("tau_mem_inv", "tau_syn_inv"):
        value = values.get(name)
        if isinstance(value, (int, float)) and value > ROUNDING / dt:
            raise ConfigError(f"{name}: a start value is {value:g}, must be at most {1 / dt:g}")


def encoder_time_constants(tau_mem_inv: float = 100.0, dt: float = 1e-3, **_: Any) -> None:
    """The same for an encoder, whose parameters are plain numbers."""
    if dt * tau_mem_inv > 1:
        raise ConfigError(f"tau_mem_inv: got {tau_mem_inv:g} per s, must be at most 1 / dt = {1 / dt:g} per s")


def trajectory(num_steps: int, **_: Any) -> None:
    """Refuse a trajectory that goes nowhere."""
    if num_steps < 2:
        raise ConfigError(f"num_steps: got {num_steps}, a trajectory needs at least 2")


def feedback(features: tuple[int, ...], feedback: str = "linear", kernel_size: int | None = None, **_: Any) -> None:
    """Refuse a feedback that the shape of its layer does not allow."""
    if feedback == "linear" and len(features) != 1:
        raise ConfigError(
            f"feedback: linear feedback needs a flat layer, these neurons form a map {list(features)}; "
            "use conv2d or one_to_one"
        )
    if feedback == "conv2d" and len(features) != 3:
        raise ConfigError(
            f"feedback: conv2d feedback needs a map [C, H, W], these neurons are {list(features)}; "
            "use linear or one_to_one"
        )
    if feedback == "conv2d" and (kernel_size is None or kernel_size % 2 == 0):
        raise ConfigError(f"kernel_size: got {shown(kernel_size)}, conv2d feedback needs an odd whole number")


def recurrence(features: tuple[int, ...], recurrent: bool = True, **_: Any) -> None:
    """Refuse all-to-all recurrence on a map."""
    if recurrent and len(features) != 1:
        raise ConfigError(f"recurrent: a recurrent layer is flat, these neurons form a map {list(features)}; use false")


RULES: dict[str, Callable[..., None]] = {
    "snnexp.initializers.Uniform": uniform,
    "snnexp.initializers.LogNormal": log_normal,
    "snnexp.neurons.ParametrizedLIF": time_constants,
    "snnexp.neurons.LeakyIntegrator": time_constants,
    "snnexp.encoders.ConstantCurrentLIF": encoder_time_constants,
    "snnexp.data.regression_data": trajectory,
}
"""What the arguments of one target owe each other."""
FITS: dict[str, Callable[..., None]] = {
    "snnexp.neurons.RLeaky": feedback,
    "snnexp.neurons.ParametrizedLIF": recurrence,
}
"""What a neuron demands of the shape of its layer."""

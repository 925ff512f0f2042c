"""Property tests of all shipped parts, with arguments drawn from their annotations."""

import copy
import inspect
import math
import pkgutil
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.neurons import Leaky, Neuron, Trace
from snnexp.optimizers import NamedParameter, Parameters
from snnexp.spec import parts
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Argument
from snnexp.spec.values import Domain, Either, Kind, ListOf, Number, OneOf, Parameter, Part

pytestmark = pytest.mark.slow

T, B, N = 6, 3, 4
LIMIT = 50.0
"""Largest absolute value that is drawn."""
CHECKS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


def values(domain: Domain | None) -> st.SearchStrategy[Any]:
    match domain:
        case Number(whole=True):
            low, high = max(domain.low, -LIMIT), min(domain.high, LIMIT)
            return st.integers(math.ceil(low), math.floor(high))
        case Number():
            # extremes have tests of their own
            low, high = max(domain.low, -LIMIT, 2.0**-10 if domain.low > 0 else -LIMIT), min(domain.high, LIMIT)
            open_low, open_high = domain.open_low and low == domain.low, domain.open_high and high == domain.high
            return st.floats(low, high, exclude_min=open_low, exclude_max=open_high, width=32).filter(_is_normal)
        case Parameter():
            return values(domain.number) | values(domain.number).map(lambda x: torch.full((N,), x))
        case OneOf():
            return st.sampled_from(domain.options)
        case Kind():
            return st.none() if domain.type is type(None) else st.booleans()
        case Either():
            return values(domain.first) | values(domain.second)
        case ListOf():
            size = {"min_size": domain.length, "max_size": domain.length} if domain.length else {"max_size": 3}
            return st.lists(values(domain.each), **size)  # type: ignore[arg-type]
        case Part():
            place = parts.place_of(f"{domain.kind.__module__}.{domain.kind.__qualname__}")
            assert place is not None
            return st.sampled_from([*parts.shipped(place)]).map(partial(_plain, place))
    raise AssertionError(f"no values are drawn for {domain}")


def _plain(place: str, target: str) -> Any:
    """Build a part with its defaults."""
    required = {name: 0.5 for name, argument in parts.shipped(place)[target].arguments.items() if argument.required}
    return pkgutil.resolve_name(target)(**required)


def _is_normal(x: float) -> bool:
    """Return True unless the square of a number underflows in float32."""
    return x == 0 or abs(x) > 1e-3


@cache
def arguments(place: str, target: str) -> st.SearchStrategy[dict[str, Any]]:
    spec = parts.shipped(place)[target]
    given_ = PLACES[place].given

    def one(argument: Argument) -> st.SearchStrategy[Any]:
        if argument.name == "num_steps":
            return st.just(T)
        return values(argument.domain)

    drawn = {name: one(argument) for name, argument in spec.arguments.items() if name not in (*given_, "measure")}
    return st.fixed_dictionaries({}, optional=drawn).map(
        lambda found: found | ({"num_steps": T} if "num_steps" in drawn else {})
    )


def build(place: str, target: str, found: dict[str, Any], **more: Any) -> Any:
    """Build a part; discard the example if the arguments violate a relation between them."""
    try:
        return pkgutil.resolve_name(target)(**more, **found)
    except ConfigError as error:
        message = str(error)
        assume(not message)


def targets(place: str) -> Any:
    return pytest.mark.parametrize("target", [*parts.shipped(place)])


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@targets("neuron")
@CHECKS
@given(data=st.data())
def test_neurons(target: str, data: Any) -> None:
    neuron: Neuron = build("neuron", target, data.draw(arguments("neuron", target)), features=N).double()
    current = torch.randn((T, B, N), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    current = (data.draw(st.sampled_from([0.1, 1.0, 10.0])) * current).requires_grad_()
    whole: Trace = neuron(current)
    state = neuron.zero_state(current[0])
    assert [part.shape for part in whole.state] == [part.shape for part in state], "state in, state out"
    assert whole.spikes.shape == whole.membrane.shape == current.shape
    assert set(whole.spikes.unique().tolist()) <= {0.0, 1.0}
    assert neuron.spikes or not whole.spikes.any()
    # the sequence can be split
    first = neuron(current[:2], state=state)
    second = neuron(current[2:], state=first.state)
    same(torch.cat([first.membrane, second.membrane]), whole.membrane)
    same(torch.cat([first.spikes, second.spikes]), whole.spikes)
    # samples are independent
    alone = neuron(current[:, 1:2])
    same(alone.membrane, whole.membrane[:, 1:2])
    trained = [current, *(weight for weight in neuron.parameters() if weight.requires_grad)]
    assume(whole.membrane.isfinite().all())
    for gradient in torch.autograd.grad(whole.membrane.sum() + whole.spikes.sum(), trained, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
    assert not any(left.any() for left in neuron.project().values()), "initial values are in their domains"


@targets("neuron")
@CHECKS
@given(data=st.data())
def test_neurons_on_feature_maps(target: str, data: Any) -> None:
    found = {name: value for name, value in data.draw(arguments("neuron", target)).items() if _is_whole(value)}
    neuron: Neuron = build("neuron", target, found, features=(2, 3, 3))
    trace: Trace = neuron(torch.randn(T, B, 2, 3, 3))
    assert trace.membrane.shape == (T, B, 2, 3, 3)


def _is_whole(value: Any) -> bool:
    return not isinstance(value, Tensor)


@targets("surrogate")
@CHECKS
@given(data=st.data())
def test_surrogates(target: str, data: Any) -> None:
    surrogate = build("surrogate", target, data.draw(arguments("surrogate", target)))
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).view(5, 5)
    derivative = surrogate(x)
    assert (derivative.shape, derivative.dtype) == (x.shape, x.dtype)
    assert derivative.isfinite().all()
    assert (derivative >= 0).all()
    same(derivative, surrogate(-x))
    same(derivative[2], surrogate(x[2]))
    same(1 / derivative, surrogate.reciprocal_(x.clone()))


@targets("encoder")
@CHECKS
@given(data=st.data())
def test_encoders(target: str, data: Any) -> None:
    encoder = build("encoder", target, data.draw(arguments("encoder", target)))
    sequences = data.draw(st.booleans()) if encoder.takes_sequences == "both" else encoder.takes_sequences
    encoder = encoder.for_data(sequences)
    values = torch.rand((T, B, N) if sequences else (B, N), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    encoded = encoder(values)
    assert encoded.shape == ((1 if encoder.constant else T), B, N)
    levels = {-1.0, 0.0, 1.0} if getattr(encoder, "off_spikes", False) else {0.0, 1.0}
    assert not encoder.spikes or set(encoded.unique().tolist()) <= levels
    if not encoder.draws:
        same(encoder(values[:, :1] if sequences else values[:1]), encoded[:, :1])


@targets("loss")
@CHECKS
@given(data=st.data())
def test_losses(target: str, data: Any) -> None:
    drawn = data.draw(arguments("loss", target))
    if "class_weights" in drawn:
        # None or one weight per class; "balanced" needs the data of a run
        drawn["class_weights"] = data.draw(st.lists(st.floats(0.01, LIMIT), min_size=N, max_size=N) | st.none())
    # steps of the sequence
    drawn |= {name: data.draw(st.integers(-T, T - 1)) for name in ("on_target", "off_target") if _is_step(target, name)}
    loss = build("loss", target, drawn)
    membrane = torch.randn((T, B, N), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    trace = Trace((membrane > 0).double() + 0 * membrane, membrane, ())
    goals = {"labels": torch.tensor([0, 2, 1]), "trace": torch.zeros((T, B, N), dtype=torch.float64)}
    goals["values"] = torch.zeros((B, N), dtype=torch.float64)
    goals["step_labels"] = torch.arange(T * B).reshape(T, B) % N
    for kind in loss.targets:
        value = loss(trace, goals[kind])
        assert value.shape == ()
        assert value.isfinite()
        assert value >= 0
        (gradient,) = torch.autograd.grad(value, membrane)
        assert gradient.isfinite().all()
        # invariant to the order of samples
        turned = [2, 0, 1]
        again = Trace(trace.spikes[:, turned], membrane[:, turned], ())
        goal = goals[kind]
        same(loss(again, goal[:, turned] if kind in ("trace", "step_labels") else goal[turned]), value)


def _is_step(target: str, name: str) -> bool:
    domain = parts.shipped("loss")[target].arguments.get(name, Argument(name)).domain
    return isinstance(domain, Number) and domain.whole


@targets("optimizer")
@CHECKS
@given(data=st.data())
def test_optimizers(target: str, data: Any) -> None:
    drawn = data.draw(arguments("optimizer", target))
    # weight decay and eps may dominate the gradient
    drawn = {name: value for name, value in drawn.items() if name not in ("weight_decay", "eps")}
    factory = build("optimizer", target, drawn)
    weight = nn.Parameter(torch.full((3,), 0.5))
    optimizer = factory(Parameters([NamedParameter("weight", "weight", weight)]))
    weight.grad = torch.tensor([1.0, 0.0, -1.0])
    optimizer.step()
    assert weight.isfinite().all()
    assert weight[0] < weight[1] < weight[2], "descends"


@targets("schedule")
@CHECKS
@given(data=st.data())
def test_schedules(target: str, data: Any) -> None:
    """Learning rates are between 0 and that of the optimizer, and resuming reproduces them."""
    found = data.draw(arguments("schedule", target))
    schedule = build("schedule", target, found)

    def rates(stopped: int | None) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler, seen = schedule(optimizer, 10), []
        for step in range(10):
            if scheduler is not None and step == stopped:
                states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
                scheduler = schedule(optimizer, 10)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler is not None:
                scheduler.step(*[1.0 + step] if schedule.watches else [])
        return seen

    whole = rates(None)
    # a minimum rate above that of the optimizer raises the rate
    highest = max(0.5, found.get("min_lr", 0), found.get("eta_min", 0))
    # PyTorch computes cosines by a recursion, which rounds
    assert all(-1e-12 <= rate <= highest + 1e-12 for rate in whole)
    assert rates(data.draw(st.integers(0, 9))) == whole


@targets("network")
@CHECKS
@given(data=st.data())
def test_networks(target: str, data: Any) -> None:
    found = {name: value for name, value in data.draw(arguments("network", target)).items() if name != "num_steps"}
    small = {name: _smaller(value) for name, value in found.items()}
    shape = data.draw(st.sampled_from([(12, 9), (2, 12, 9)]))
    spec = parts.shipped("network")[target]
    if "layers" in spec.arguments:
        sizes = data.draw(st.lists(st.integers(1, 4), max_size=3))
        small["layers"] = [{"name": f"layer{index}", "size": size} for index, size in enumerate(sizes)]
        small["layers"].append({"name": "readout"})
    network = build("network", target, small, inputs=shape, outputs=N, neuron=Leaky, readout=Leaky, num_steps=T)
    traces = network(torch.rand(T, B, *shape))
    known = {name: argument.value for name, argument in spec.arguments.items()} | small
    rule = pkgutil.resolve_name(target).shapes
    shapes = rule(shape, N, **{name: known[name] for name in [*inspect.signature(rule).parameters][2:]})
    assert [trace.membrane.shape for trace in traces] == [(T, B, *features) for _, features in shapes]


def _smaller(value: Any) -> Any:
    if isinstance(value, list):
        return [min(each, 5) for each in value]
    return min(value, 4) if isinstance(value, int) else value


@pytest.mark.parametrize("place", ["neuron", "surrogate", "encoder", "loss", "optimizer", "schedule", "initializer"])
def test_there_are_parts_to_test(place: str) -> None:
    assert parts.shipped(place)


@targets("initializer")
@CHECKS
@given(data=st.data())
def test_initializers(target: str, data: Any) -> None:
    found = data.draw(arguments("initializer", target))
    required = {name: 0.5 for name, each in parts.shipped("initializer")[target].arguments.items() if each.required}
    initializer = build("initializer", target, required | found)
    values = initializer((2, 3))
    assert values.shape == (2, 3)
    assert values.isfinite().all()

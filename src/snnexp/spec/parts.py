"""The parts of this package, and the specification of any part by its target."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from snnexp.spec import source as sources
from snnexp.spec.places import PLACES, Place
from snnexp.spec.reader import Spec, read
from snnexp.text import snake_case

Function = TypeVar("Function", bound=Callable[..., Any])


class PartFactory:
    """Builds a part that lies deeper within the arguments of another, which alone knows what is missing.

    Args:
        make: the factory.
        missing: names of arguments that the constructor has and the config does not set.
    """

    def __init__(self, make: Callable[..., Any], missing: Iterable[str]) -> None:
        self.make, self.missing = make, frozenset(missing)

    def __call__(self, **arguments: Any) -> Any:
        return self.make(**arguments)


def part(**facts: Any) -> Callable[[Function], Function]:
    """Mark a function that makes a part, and say what others need to know of it.

    Args:
        facts: of data, ``target`` (``labels`` or ``trace``), ``sequences``, ``inputs``, ``outputs`` and ``samples``, as
            of :class:`snnexp.data.DataModule`, and ``stackable``; what depends on arguments is left out. ``validation``
            names the arguments that make a validation split, the usual first; with ``splits_in_file``, one may also be
            in the file.
    """

    def decorate(function: Function) -> Function:
        return function

    return decorate


def of(target: str) -> Spec:
    """The part that a config names by ``target``."""
    # files of this package stay as they are while it runs
    return _own(target) if target.startswith("snnexp.") else read(target)


_own = functools.cache(read)


def is_shipped(target: str, place: str) -> bool:
    """Whether a part of this package may stand at a place."""
    module, base = PLACES[place].module, PLACES[place].base
    if not f"{target.rpartition('.')[0]}.".startswith(f"{module}."):
        return False
    spec = of(target)
    return base in spec.bases[1:] if base else spec.facts is not None


@functools.cache
def shipped(place: str) -> Mapping[str, Spec]:
    """The parts of this package that may stand at a place, by target."""
    module = PLACES[place].module
    found: dict[str, Spec] = {}
    # names of the package come first, and stand for what its files define
    for each in (module, *sources.submodules(module)):
        for name in sources.load(each).names:
            target = f"{each}.{name}"
            if not name.startswith("_") and is_shipped(target, place):
                listed = {spec.definition for spec in found.values()}
                found |= {} if of(target).definition in listed else {target: of(target)}
    return found


@functools.cache
def by_choice(place: str) -> Mapping[str, Spec]:
    """As :func:`shipped`, by the name of the choice that is named after the class, such as ``spike_count``."""
    return {snake_case(spec.name): spec for spec in shipped(place).values()}


@functools.cache
def spike_statistics() -> frozenset[str]:
    """The names of this package's statistics that need a neuron that fires."""
    module = "snnexp.neurons.statistics"
    specs = [of(f"{module}.{name}") for name in sources.load(module).names if name[0].isupper()]
    return frozenset(spec.fact("name") for spec in specs if spec.fact("reads_spikes") is True)


def measures(cfg: Mapping[str, Any]) -> dict[str, Spec]:
    """The measures that a config names, by name."""
    nodes = cfg.get("measure")
    named = nodes.items() if isinstance(nodes, Mapping) else ()
    found = ((name, node.get("_target_") if isinstance(node, Mapping) else None) for name, node in named)
    return {str(name): of(target) for name, target in found if isinstance(target, str)}


def places_of(spec: Spec) -> list[Place]:
    """The places where a part may stand, of those whose parts derive from a class."""
    return [place for place in PLACES.values() if place.base in spec.bases]


def place_of(kind: str) -> str | None:
    """The place of the parts that derive from a class."""
    return next((name for name, place in PLACES.items() if place.base == kind), None)


def is_stacked(spec: Spec) -> bool:
    """Whether a part computes for all members of a stack at once, as trainers and initializers do not."""
    return all(place.stacked for place in places_of(spec)) and not is_shipped(spec.target, "trainer")

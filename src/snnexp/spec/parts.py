"""Look up the specification of a part by its ``_target_``, and list the parts of this package."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from snnexp.spec import source as sources
from snnexp.spec.places import PLACES, Place
from snnexp.spec.reader import Spec, read
from snnexp.text import snake_case

Function = TypeVar("Function", bound=Callable[..., Any])


class PartFactory:
    """Builds a part that is nested in the arguments of another part, which supplies the missing arguments.

    Args:
        make: builds the part.
        missing: names of the constructor arguments that the config does not set.
    """

    def __init__(self, make: Callable[..., Any], missing: Iterable[str]) -> None:
        self.make, self.missing = make, frozenset(missing)

    def __call__(self, **arguments: Any) -> Any:
        return self.make(**arguments)


def part(**facts: Any) -> Callable[[Function], Function]:
    """Mark a function as a part, and declare facts that other parts depend on.

    Args:
        facts: for data, ``target`` (such as ``labels`` or ``trace``), ``sequences``, ``inputs``, ``outputs`` and
            ``samples``, as in :class:`snnexp.data.DataModule`, and ``stackable``; leave out facts that depend on
            arguments. ``validation`` names the arguments that create a validation split, the preferred one first;
            with ``splits_in_file`` the file may contain one too.
    """

    def decorate(function: Function) -> Function:
        return function

    return decorate


def of(target: str) -> Spec:
    """Return the specification of the part that a config names by ``target``."""
    # files of this package do not change during the process
    return _own(target) if target.startswith("snnexp.") else read(target)


_own = functools.cache(read)


def is_shipped(target: str, place: str) -> bool:
    """Return True if a part belongs to this package and is allowed at a place."""
    module, base = PLACES[place].module, PLACES[place].base
    if not f"{target.rpartition('.')[0]}.".startswith(f"{module}."):
        return False
    spec = of(target)
    return base in spec.bases[1:] if base else spec.facts is not None


@functools.cache
def shipped(place: str) -> Mapping[str, Spec]:
    """Return the parts of this package that are allowed at a place, by target."""
    module = PLACES[place].module
    found: dict[str, Spec] = {}
    # the names that the package exports take precedence over those of its modules
    for each in (module, *sources.submodules(module)):
        for name in sources.load(each).names:
            target = f"{each}.{name}"
            if not name.startswith("_") and is_shipped(target, place):
                listed = {spec.definition for spec in found.values()}
                found |= {} if of(target).definition in listed else {target: of(target)}
    return found


@functools.cache
def by_choice(place: str) -> Mapping[str, Spec]:
    """Return :func:`shipped` by the snake-case class name, which is the name of the choice, such as ``spike_count``."""
    return {snake_case(spec.name): spec for spec in shipped(place).values()}


@functools.cache
def spike_statistics() -> frozenset[str]:
    """Return the names of the shipped statistics that need a spiking neuron."""
    module = "snnexp.neurons.statistics"
    specs = [of(f"{module}.{name}") for name in sources.load(module).names if name[0].isupper()]
    return frozenset(spec.fact("name") for spec in specs if spec.fact("reads_spikes") is True)


def measures(cfg: Mapping[str, Any]) -> dict[str, Spec]:
    """Return the specifications of the measures in a config, by name."""
    nodes = cfg.get("measure")
    named = nodes.items() if isinstance(nodes, Mapping) else ()
    found = ((name, node.get("_target_") if isinstance(node, Mapping) else None) for name, node in named)
    return {str(name): of(target) for name, target in found if isinstance(target, str)}


def places_of(spec: Spec) -> list[Place]:
    """Return the places whose base class a part derives from."""
    return [place for place in PLACES.values() if place.base in spec.bases]


def place_of(kind: str) -> str | None:
    """Return the name of the place whose parts derive from the class ``kind``."""
    return next((name for name, place in PLACES.items() if place.base == kind), None)


def is_stacked(spec: Spec) -> bool:
    """Return True if a part computes for all members of a stack at once; trainers and initializers do not."""
    return all(place.stacked for place in places_of(spec)) and not is_shipped(spec.target, "trainer")

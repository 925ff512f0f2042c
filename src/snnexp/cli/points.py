"""``snnexp train -m``: the points of a sweep or search, and their launcher."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import config
from snnexp.config import security
from snnexp.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from snnexp.sweeps.sources import SearchRequest

Point = tuple[list[str], dict[str, Any]]
"""Overrides of a point of a sweep, and its config."""


def run_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of Hydra itself."""
    return [word for word in overrides if not word.lstrip("+~").startswith(("hydra/", "hydra."))]


def warn_all(messages: Iterable[str]) -> None:
    """Print warnings to stderr, if any."""
    for message in messages:
        # Rich is slow to import
        from snnexp import terminal

        terminal.warn(message)


def prepare_sweep(
    overrides: Sequence[str], folders: Sequence[Path] = ()
) -> "tuple[list[Point] | SearchRequest, dict[str, Any]]":
    """Compose and check a sweep before its first point starts.

    Args:
        overrides: the command-line overrides.
        folders: additional config folders, as given by ``--config-dir``.

    Returns:
        The points of a sweep, or the request for a search; and the settings of the launcher.

    Raises:
        ConfigError: a point is invalid, or the points differ in their launcher or sweeper.
    """
    own = run_overrides(overrides)
    hydra_overrides = [word for word in overrides if word not in own]
    for word in hydra_overrides:
        if config.has_sweep([word]):
            raise ConfigError(f"{word.partition('=')[0]}: settings of Hydra cannot be swept")
    starters = [word for word in hydra_overrides if not word.lstrip("+~").startswith("hydra.")]
    composer = config.Composer(folders, starters)
    first_node = composer.node(config.first_point(own, folders))
    # a part given on the command line may need values that a config lists in params
    listed = config.params_to_overrides(first_node["sweeper"].get("params") or {})
    node = _with_settings(composer, hydra_overrides, config.first_point([*listed, *own], folders))
    source, points, nodes = _points(node["sweeper"], own, composer)
    leading = _leading(nodes)
    if nodes[leading]["launcher"] != first_node["launcher"]:
        node = _with_settings(composer, hydra_overrides, points[leading])
    warn_all(composer.left_out(overrides))
    launcher = {key: value for key, value in node["launcher"].items() if key != "_target_"}
    return source, {"kind": security.starter_kind(node["launcher"], "launcher"), **launcher}


def _points(
    sweeper: Mapping[str, Any], overrides: Sequence[str], composer: config.Composer
) -> "tuple[list[Point] | SearchRequest, list[list[str]], list[dict[str, Any]]]":
    """Return the points or the request for a search; and the overrides of all points with their ``hydra`` nodes.

    For a search, these are the points at the corners of the search space.
    """
    params = sweeper.get("params") or {}
    if security.starter_kind(sweeper, "sweeper") == "optuna":
        from snnexp.sweeps.sources import SearchRequest

        settings = {key: value for key, value in sweeper.items() if key not in ("_target_", "params")}
        request = SearchRequest(settings, params, overrides, composer)
        # raises before anything is written
        request.checked  # noqa: B018
        corners = request.corners()
        return request, corners, [*map(composer.node, corners)]
    points = [*config.points([*config.params_to_overrides(params), *overrides], composer.folders)]
    checked, nodes = _check(points, composer)
    return checked, points, nodes


def _with_settings(composer: config.Composer, overrides: Sequence[str], point: Sequence[str]) -> dict[str, Any]:
    """Return the ``hydra`` node of a point with Hydra's ``overrides``, and with the default launcher and sweeper."""
    node, chosen = composer.node(point), [word.partition("=")[0] for word in overrides]
    defaults = [
        f"hydra/{name}={known[0]}"
        for name, known in security.STARTERS.items()
        if security.starter_kind(node[name], name) == "basic" and f"hydra/{name}" not in chosen
    ]
    _, node = config.compose_unchecked([*defaults, *overrides, *point], composer.folders)
    for name, known in security.STARTERS.items():
        if security.starter_kind(node[name], name) == "basic":
            # Hydra's own launcher and sweeper stop at the first failure
            raise ConfigError(f"hydra/{name}: got basic, there are {', '.join(known)}")
    return node


def _check(points: Iterable[list[str]], composer: config.Composer) -> tuple[list[Point], list[dict[str, Any]]]:
    """Check all points; return them with their configs, and their ``hydra`` nodes."""
    checked: list[Point] = []
    nodes: list[dict[str, Any]] = []
    errors = ConfigErrors()
    for count, point in enumerate(points, 1):
        with errors.collect():
            cfg, node = composer.point(point)
            nodes.append(node)
            checked.append((point, config.plain(config.check(cfg))))
        if len(nodes) < count:
            # composing the others would take as long and probably fail too
            break
    errors.raise_if_any()
    return checked, nodes


def _leading(nodes: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the first point that chooses a launcher, or 0 if none does.

    Args:
        nodes: the ``hydra`` node of each point.

    Raises:
        ConfigError: the points choose different launchers or sweepers.
    """
    every = range(len(nodes))
    choosing = [index for index in every if security.starter_kind(nodes[index]["launcher"], "launcher") != "basic"]
    for starter, indices in (("sweeper", every), ("launcher", choosing)):
        if any(nodes[index][starter] != nodes[indices[0]][starter] for index in indices):
            raise ConfigError(f"hydra/{starter}: the points have different ones; start a separate sweep for each")
    if 0 < len(choosing) < len(nodes):
        name = nodes[choosing[0]]["runtime"]["choices"]["hydra/launcher"]
        warn_all([f"hydra/launcher: {name} starts all points, although some do not choose it"])
    return choosing[0] if choosing else 0

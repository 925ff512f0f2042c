"""What is asked for by ``snnexp train -m``: the points of a sweep or a search, and what starts them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import config
from snnexp.config import security
from snnexp.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from snnexp.sweeps.sources import SearchRequest

Point = tuple[list[str], dict[str, Any]]
"""The overrides of a point of a sweep, and its config."""


def run_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides of a run, without those of Hydra's own node."""
    return [word for word in overrides if not word.lstrip("+~").startswith(("hydra/", "hydra."))]


def warn_all(sentences: Iterable[str]) -> None:
    """Warn the person, where there is something to say."""
    for sentence in sentences:
        # Rich takes longer to import than a refusal should
        from snnexp import terminal

        terminal.warn(sentence)


def prepare_sweep(
    overrides: Sequence[str], folders: Sequence[Path] = ()
) -> "tuple[list[Point] | SearchRequest, dict[str, Any]]":
    """Compose and check a sweep before its first point starts.

    Args:
        overrides: what was typed.
        folders: more configs, as of ``--config-dir``.

    Returns:
        The points of a sweep, or what a search was asked for; and the settings of the launcher.

    Raises:
        ConfigError: a point cannot work, or the points do not agree on what starts them.
    """
    typed = run_overrides(overrides)
    hydras = [word for word in overrides if word not in typed]
    for word in hydras:
        if config.has_sweep([word]):
            raise ConfigError(f"{word.partition('=')[0]}: settings of Hydra cannot be swept")
    composer = config.Composer(folders, [word for word in hydras if not word.lstrip("+~").startswith("hydra.")])
    begun = composer.node(config.first_point(typed, folders))
    # a config may list values too, which a part that was typed may need
    listed = config.params_to_overrides(begun["sweeper"].get("params") or {})
    node = _with_settings(composer, hydras, config.first_point([*listed, *typed], folders))
    chosen, every, nodes = _chosen(node["sweeper"], typed, composer)
    leading = _leading(nodes)
    if nodes[leading]["launcher"] != begun["launcher"]:
        node = _with_settings(composer, hydras, every[leading])
    warn_all(composer.left_out(overrides))
    launcher = {key: value for key, value in node["launcher"].items() if key != "_target_"}
    return chosen, {"kind": security.starter_kind(node["launcher"], "launcher"), **launcher}


def _chosen(
    sweeper: Mapping[str, Any], typed: Sequence[str], composer: config.Composer
) -> "tuple[list[Point] | SearchRequest, list[list[str]], list[dict[str, Any]]]":
    """What is asked for; and the points, of a search those at the ends, with Hydra's own node of each."""
    params = sweeper.get("params") or {}
    if security.starter_kind(sweeper, "sweeper") == "optuna":
        from snnexp.sweeps.sources import SearchRequest

        settings = {key: value for key, value in sweeper.items() if key not in ("_target_", "params")}
        request = SearchRequest(settings, params, typed, composer)
        # before anything is written
        request.checked  # noqa: B018
        ends = request.corners()
        return request, ends, [*map(composer.node, ends)]
    points = [*config.points([*config.params_to_overrides(params), *typed], composer.folders)]
    found, nodes = _checked(points, composer)
    return found, points, nodes


def _with_settings(composer: config.Composer, hydras: Sequence[str], point: Sequence[str]) -> dict[str, Any]:
    """Hydra's own node of a point with the settings that were typed, and the usual where nothing was chosen."""
    node, chosen = composer.node(point), [word.partition("=")[0] for word in hydras]
    usual = [
        f"hydra/{name}={known[0]}"
        for name, known in security.STARTERS.items()
        if security.starter_kind(node[name], name) == "basic" and f"hydra/{name}" not in chosen
    ]
    _, node = config.compose_unchecked([*usual, *hydras, *point], composer.folders)
    for name, known in security.STARTERS.items():
        if security.starter_kind(node[name], name) == "basic":
            # Hydra's own stop at the first failure
            raise ConfigError(f"hydra/{name}: got basic, there are {', '.join(known)}")
    return node


def _checked(points: Iterable[list[str]], composer: config.Composer) -> tuple[list[Point], list[dict[str, Any]]]:
    """The points with their configs, and Hydra's own nodes."""
    found: list[Point] = []
    nodes: list[dict[str, Any]] = []
    errors = ConfigErrors()
    for tried, point in enumerate(points, 1):
        with errors.collect():
            cfg, node = composer.point(point)
            nodes.append(node)
            found.append((point, config.plain(config.check(cfg))))
        if len(nodes) < tried:
            # it could not be composed, and the others would take as long
            break
    errors.raise_if_any()
    return found, nodes


def _leading(nodes: Sequence[Mapping[str, Any]]) -> int:
    """The first point that chooses a launcher, or the first of all.

    Args:
        nodes: Hydra's own, of all points.

    Raises:
        ConfigError: two points choose different ones, or have different sweepers.
    """
    every = range(len(nodes))
    choosing = [index for index in every if security.starter_kind(nodes[index]["launcher"], "launcher") != "basic"]
    for starter, indices in (("sweeper", every), ("launcher", choosing)):
        if any(nodes[index][starter] != nodes[indices[0]][starter] for index in indices):
            raise ConfigError(f"hydra/{starter}: the points do not have the same; start a sweep of each")
    if 0 < len(choosing) < len(nodes):
        name = nodes[choosing[0]]["runtime"]["choices"]["hydra/launcher"]
        warn_all([f"hydra/launcher: {name} starts all points, though not all of them choose it"])
    return choosing[0] if choosing else 0

"""Imports point one way: the table of who may know whom, read from the source without running it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snnexp

PACKAGE = Path(snnexp.__file__).parent
LEAVES = {"domains", "errors", "pairs"}

# part of the package: the siblings that it may import, now or later
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "domains": {"errors"},
    "surrogates": LEAVES,
    "initializers": LEAVES,
    "losses": LEAVES,
    "metrics": LEAVES,
    "optimizers": LEAVES,
    "upgrade": LEAVES,
    "files": LEAVES,
    "limits": LEAVES,
    "runs": LEAVES | {"files", "upgrade"},
    "origin": LEAVES | {"runs"},
    "seeds": set(),
    "data": LEAVES | {"limits", "seeds", "user_parts"},
    "events": set(),
    "encoders": LEAVES | {"events"},
    "neurons": LEAVES | {"surrogates", "initializers"},
    "kernels": LEAVES | {"neurons", "surrogates"},
    "network": LEAVES | {"neurons", "events"},
    # the task is handed its parts; it names their types
    "task": {"events", "metrics", "losses", "network", "neurons", "optimizers"},
    "threads": LEAVES | {"limits"},
    "recipes": LEAVES | {"config", "runs"},
    "listing": LEAVES | {"runs"},
    "console": LEAVES | {"files", "runs"},
    "progress": LEAVES | {"console"},
    "checkpoints": LEAVES | {"runs", "upgrade"},
    "callbacks": LEAVES | {"metrics", "runs", "neurons", "seeds"},
    "saving": LEAVES | {"callbacks", "checkpoints", "data", "runs", "upgrade"},
    "pairs": LEAVES,
    "gate": LEAVES | {"pairs"},
    "isolation": set(),
    "user_parts": LEAVES | {"gate", "limits"},
    "config": LEAVES | {"gate", "isolation", "pairs", "runs", "upgrade", "user_parts"},
    "contracts": LEAVES | {"data", "isolation", "losses", "network", "neurons", "user_parts"},
    "assembly": LEAVES
    | {
        "callbacks",
        "config",
        "console",
        "contracts",
        "data",
        "encoders",
        "events",
        "kernels",
        "limits",
        "losses",
        "metrics",
        "network",
    }
    | {"neurons", "pairs", "saving", "task", "user_parts"},
    "report": LEAVES | {"config", "listing", "origin", "recipes", "runs"},
    # what it records is drawn by pure functions, which know no network
    "probe": LEAVES | {"callbacks", "events", "metrics", "report", "runs", "seeds", "task"},
    "training": LEAVES
    | {
        "assembly",
        "callbacks",
        "checkpoints",
        "config",
        "console",
        "files",
        "isolation",
        "limits",
        "network",
        "probe",
        "progress",
    }
    | {"recipes", "runs", "saving", "threads", "user_parts"},
    "sweeps": LEAVES
    | {
        "assembly",
        "callbacks",
        "checkpoints",
        "config",
        "console",
        "data",
        "encoders",
        "events",
        "files",
        "kernels",
        "limits",
        "metrics",
    }
    | {"network", "neurons", "probe", "recipes", "runs", "saving", "seeds", "surrogates", "task", "threads"}
    | {"training", "upgrade"},
    "launch": LEAVES | {"config", "console", "gate", "origin", "runs", "sweeps", "threads", "training"},
    # what users import; nothing imports it
    "experiment": LEAVES | {"assembly", "config", "isolation", "launch", "listing", "runs", "sweeps", "training"},
    "doctor": LEAVES | {"config", "data", "limits", "runs", "threads"},
    "cli": LEAVES
    | {"__init__", "config", "console", "doctor", "launch", "limits", "listing", "report"}
    | {"runs", "sweeps", "threads", "training"},
}
KNOW_HYDRA = {"assembly", "config", "gate", "isolation", "launch", "sweeps", "training"}


def part(path: Path) -> str:
    """``data/mnist.py`` belongs to ``data``, ``network.py`` is ``network``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, module_level: bool = False) -> Iterator[str]:
    """Full names of what a file imports, anywhere or when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if module_level and node in lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(path: Path) -> set[str]:
    """The other parts of the package that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("snnexp.")}
    parts = {part(other) for other in SOURCES}
    return {name if name in parts else "__init__" for name in names} - {part(path)}


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_no_more_than_its_part_may(path: Path) -> None:
    assert part(path) in ALLOWED, "a new part of the package: say here what it may import"
    assert siblings(path) <= ALLOWED[part(path)]


def test_there_are_no_cycles_between_parts_nor_between_files() -> None:
    parts: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    modules = {".".join(("snnexp", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    for module, path in modules.items():
        parts.setdefault(part(path), set()).update(siblings(path))
        names = imported(path)
        files[module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys()
    TopologicalSorter(parts).prepare()
    TopologicalSorter(files).prepare()
    assert files["snnexp.network"] >= {"snnexp.neurons", "snnexp.domains"}, "the graph was read"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_assembly_knows_hydra(path: Path) -> None:
    if part(path) not in KNOW_HYDRA:
        known = {name.split(".")[0] for name in imported(path, module_level=part(path) == "cli")}
        assert not known & {"hydra", "omegaconf"}


@pytest.mark.parametrize("name", ["cli.py", "__init__.py"])
def test_nothing_heavy_is_imported_before_a_verb_needs_it(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(PACKAGE / name, module_level=True)}
    assert roots <= set(sys.stdlib_module_names)

"""Dependencies between the packages follow the table below, without cycles; read from the source."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snnexp

PACKAGE = Path(snnexp.__file__).parent
LEAVES = {"errors", "text", "seeds"}
"""Modules that every package may import."""
EQUATIONS = {
    *("neurons", "surrogates", "initializers", "encoders"),
    *("losses", "decoders", "metrics", "regularizers", "optimizers", "schedules", "sparse"),
}

# package: the other packages that it may import, besides LEAVES
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "text": set(),
    "seeds": set(),
    "isolation": set(),
    "limits": set(),
    "files": set(),
    "spec": set(),
    **{name: {"spec"} for name in ("surrogates", "initializers", "optimizers", "schedules")},
    # they read statistics of a trace
    **{name: {"spec", "neurons"} for name in ("losses", "decoders", "metrics", "regularizers")},
    "sparse": set(),
    "encoders": {"spec", "sparse"},
    "neurons": {"spec", "surrogates", "initializers"},
    "network": EQUATIONS | {"spec"},
    "kernels": {"neurons", "surrogates"},
    "record": set(),
    # upgrades saved configs, and creates run ids
    "config": {"spec", "record", "isolation", "limits", "files"},
    # reports errors of users' code with config.user_parts
    "data": EQUATIONS | {"spec", "config", "limits", "isolation", "files"},
    "figures": set(),
    "threads": {"spec", "limits"},
    "terminal": {"record"},
    "training": EQUATIONS
    | {
        "spec",
        "network",
        "data",
        "kernels",
        "config",
        "record",
        "figures",
        "isolation",
        "limits",
        "terminal",
        "threads",
    },
    "report": {"record", "figures", "config"},
    "search": {"record", "config", "spec"},
    # training is imported only by the functions of a worker
    "sweeps": {"record", "config", "spec", "search", "training", "limits", "terminal", "threads"},
    # the public API; nothing imports it
    "experiment": {"cli", "config", "record", "sweeps", "training", "isolation"},
    "cli": {"__init__", "config", "data", "limits", "record", "report", "spec", "sweeps", "terminal", "threads"}
    | {"training"},
}
IMPORT_HYDRA = {"cli", "config", "isolation", "search", "sweeps", "training"}


def part(path: Path) -> str:
    """``data/mnist.py`` belongs to ``data``, ``losses.py`` is ``losses``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, module_level: bool = False) -> Iterator[str]:
    """Yield the full names that a file imports, anywhere or only at module level."""
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
    """Return the other packages that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("snnexp.")}
    parts = {part(other) for other in SOURCES}
    return {name if name in parts else "__init__" for name in names} - {part(path)}


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_allowed_packages(path: Path) -> None:
    assert part(path) in ALLOWED, "a new package: add the packages that it may import"
    assert siblings(path) <= ALLOWED[part(path)] | LEAVES


def test_packages_and_modules_have_no_import_cycles() -> None:
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
    assert files["snnexp.network.network"] >= {"snnexp.neurons", "snnexp.spec.checked"}, "imports were found"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_some_packages_import_hydra(path: Path) -> None:
    if part(path) not in IMPORT_HYDRA:
        known = {name.split(".")[0] for name in imported(path, module_level=part(path) == "cli")}
        assert not known & {"hydra", "omegaconf"}


@pytest.mark.parametrize("name", ["cli/main.py", "cli/__init__.py", "__init__.py"])
def test_command_line_imports_are_light(name: str) -> None:
    modules = {*imported(PACKAGE / name, module_level=True)} - {"snnexp.cli.main.main"}
    assert {module.split(".")[0] for module in modules} <= set(sys.stdlib_module_names)

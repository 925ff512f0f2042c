"""scripts/structure.py: counts of lines, imports and import cycles."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "structure.py"


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module
    spec.loader.exec_module(module)
    return module


SOURCES = {
    "snnexp/__init__.py": '"""A docstring\nof two lines."""\n\n__version__ = "1"\n',
    "snnexp/a.py": "# a comment\nimport os\n\nfrom snnexp.b import c\n\n\ndef f() -> None:\n    from snnexp import d\n",
    "snnexp/b/__init__.py": "",
    "snnexp/b/c.py": 'class C:\n    """Told."""\n\n    x = max(\n        1,\n    )  # three lines\n    """Of x."""\n',
    "snnexp/d.py": "import snnexp.b.c; y = 1\n",
    "other/e.py": "from snnexp import a\n",
}


def test_what_is_counted(structure: ModuleType) -> None:
    found = structure.measure(SOURCES)
    assert found.lines == {"__init__": 1, "a": 4, "b": 5, "d": 1, "other": 1}
    assert found.figures == {
        "lines of code": 12,
        "statements": 1 + 4 + 3 + 2 + 1,
        "packages": 4,
        "depth of packages": 3,
        "dependencies": 3,
        "cyclic dependencies": 0,
        "import chain at import time": 2,
        "import chain of all imports": 3,
        "lines of the largest file": 8,
        "files above 400 lines": 0,
    }
    assert found.chain == ["snnexp.a", "snnexp.d", "snnexp.b.c"]


def test_imports_in_a_cycle_are_cyclic_dependencies(structure: ModuleType) -> None:
    cycle = SOURCES | {"snnexp/b/e.py": "from snnexp.a import f\n"}
    figures = structure.measure(cycle).figures
    assert (figures["dependencies"], figures["cyclic dependencies"]) == (4, 4), "a to b, a to d, d to b, b to a"

"""The fixtures of the tests of behaviour, for what earlier code has written."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "behaviour"))

from shell import shell, snnexp  # noqa: F401

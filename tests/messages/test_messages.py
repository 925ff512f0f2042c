"""The wording of error messages: command-line arguments, exit code and message of each case in the tables.

Behavior that does not depend on the wording is tested in ``tests/behaviour``.
"""

import os
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PARTS = HERE.parent / "behaviour" / "parts"
CASES = [
    pytest.param(case, id=f"{path.stem}-{' '.join(case['args'])[:60]}")
    for path in sorted(HERE.glob("*.toml"))
    for case in tomllib.loads(path.read_text())["cases"]
]


@pytest.mark.parametrize("case", CASES)
def test_error_is_reported_in_one_line(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (entry,) = entry_points(group="console_scripts", name="snnexp")
    main = entry.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PARTS))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")
    args = [word.replace("PARTS", str(PARTS)) for word in case["args"]]
    monkeypatch.setattr(sys, "argv", ["snnexp", *args])
    assert main(args) == case["code"]
    out, err = capfd.readouterr()
    assert out == ""
    *frames, line = err.splitlines()
    assert bool(frames) == (case["code"] == 8), "only errors of users' parts have a traceback"
    assert line.startswith(f"snnexp: {case['message']}")
    assert os.listdir(tmp_path) == []

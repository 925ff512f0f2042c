"""The wording of sentences: each table says what was typed, the exit code, and what the one line says.

Only the language, or a stricter check, may change these tables; what must hold whatever the words are is in
``tests/behaviour``.
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
    pytest.param(case, id=f"{path.stem}-{' '.join(case['typed'])[:60]}")
    for path in sorted(HERE.glob("*.toml"))
    for case in tomllib.loads(path.read_text())["said"]
]


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (entry,) = entry_points(group="console_scripts", name="snnexp")
    main = entry.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PARTS))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")
    typed = [word.replace("PARTS", str(PARTS)) for word in case["typed"]]
    monkeypatch.setattr(sys, "argv", ["snnexp", *typed])
    assert main(typed) == case["code"]
    out, err = capfd.readouterr()
    assert out == ""
    *frames, line = err.splitlines()
    assert bool(frames) == (case["code"] == 8), "where the error of a user's part was raised"
    assert line.startswith(f"snnexp: {case['says']}")
    assert os.listdir(tmp_path) == []

"""Fixtures of the tests of behaviour: the command line in processes of its own, or in this one."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from shell import PARTS, Ended, Shell, lines


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The command line in processes of its own, in an empty folder."""
    return Shell(tmp_path)


@pytest.fixture
def snnexp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """The command line in this process, in an empty folder: imports are paid for once."""
    (entry,) = entry_points(group="console_scripts", name="snnexp")
    main = entry.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PARTS))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")

    class Here(Shell):
        def __call__(self, *arguments: str, timeout_s: float = 0, **env: str) -> Ended:
            capfd.readouterr()
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", ["snnexp", *arguments])
                for name, value in env.items():
                    patch.setenv(name, value)
                try:
                    code = main([*arguments])
                except SystemExit as end:
                    code = end.code
            out, err = capfd.readouterr()
            return Ended(code or 0, lines(out), lines(err))

    return Here(tmp_path)

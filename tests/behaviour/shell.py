"""The command line, as the tests of behaviour use it, with a package of parts that a user has written.

These tests use the command line, ``snnexp.experiment`` and files, and nothing else of the package. They assert exit
codes, keys, numbers of lines, suggestions and files; the wording of sentences is in ``tests/messages``.

A user's parts import :class:`snnexp.data.DataModule` and :class:`snnexp.encoders.Constant`, and the parts of the old
sweep :class:`snnexp.losses.MSEMembrane`; a config names parts of the package by ``_target_``. Those names are public.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import commands
import pytest

PARTS = Path(__file__).parent / "parts"
OUTSIDE = ("--config-dir", str(PARTS / "conf"))
"""What makes the choices of the user's package known, behind ``train``."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, and what it printed without empty lines."""

    code: int
    out: list[str]
    err: list[str]

    @property
    def key(self) -> str:
        """What a refusal of one line is about: ``neuron.beta`` of ``snnexp: neuron.beta: got ...``."""
        (line,) = self.err
        return line.removeprefix("snnexp: ").partition(":")[0]


def environment(**variables: str) -> dict[str, str]:
    """Variables of a user who has a package of parts of their own, and one thread."""
    path = os.pathsep.join(filter(None, [str(PARTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "SNNEXP_ALLOW_TARGETS": "mypkg", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


class Shell:
    """Runs ``snnexp`` in a folder of its own, as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = commands.PROGRAM

    def __call__(self, *arguments: str, timeout_s: float = 120, **env: str) -> Ended:
        """Run a command to its end, which must come within ``timeout_s``."""
        with self.started(*arguments, **env) as process:
            out, err = process.communicate(timeout=timeout_s)
        return Ended(process.returncode, lines(out), lines(err))

    def started(self, *arguments: str, **env: str) -> commands.Command:
        """A command under way, for ``with``: whatever it has started is gone afterwards."""
        return commands.Command(arguments, self.folder, environment(**env))

    def runs(self) -> list[Path]:
        """The directories of all runs here, by path: those of one name by the second of their start."""
        # nothing looks into a directory that is only being made, and renamed the next moment
        places = ("outputs/*/*/run.json", "outputs/sweeps/*/*/runs/*/run.json")
        found = sorted(record.parent for place in places for record in self.folder.glob(place))
        return [path for path in found if not path.name.startswith(".new-")]

    def run(self) -> Path:
        """The directory of the only run."""
        (path,) = self.runs()
        return path

    def points(self) -> list[dict[str, Any]]:
        """The points of the only sweep."""
        (path,) = self.folder.glob("outputs/sweeps/*/*/sweep.json")
        points: list[dict[str, Any]] = json.loads(path.read_text())["points"]
        return points


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
    # for what it starts
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])

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


def typed(command: str) -> tuple[list[str], dict[str, str]]:
    """A command as a shell reads it: the words behind ``snnexp``, and the variables in front of it."""
    words = shlex.split(command)
    begin = words.index("snnexp")
    return words[begin + 1 :], dict(word.split("=", 1) for word in words[:begin])


def recorded(shell: Shell, *typed: str, name: str = "20260101-000000-abcd") -> Path:
    """The directory of a run that was interrupted before its first step, without having run it."""
    ended = shell("train", *typed, "--cfg", "job", "--resolve")
    assert ended.code == 0
    run = shell.folder / "outputs" / "custom" / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("\n".join(ended.out))
    (run / "overrides.yaml").write_text(json.dumps(typed))
    (run / "run.json").write_text(json.dumps({"status": "interrupted", "exit_code": 130}))
    (run / "metrics.jsonl").touch()
    return run


def record(run: Path) -> dict[str, Any]:
    """The content of a run's run.json."""
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_until(true: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait for something that must become true."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)

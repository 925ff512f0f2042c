"""The pages of the documentation: links, files, commands, and the reference of all keys."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import pytest

import docs

NOT_RUN = {"pip", "git", "cd", "tensorboard", "eval", "torchrun", "srun", "sbatch", "duckdb"}
"""Other programs on pages."""
SHELL = {"python", "cp", "mv", "rm", "mkdir", "head", "ls"}


@pytest.mark.parametrize("page", docs.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = docs.PAGES[page]
    for link in docs.links(path.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (path.parent / target) if target else path
        assert file.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in docs.anchors(file.read_text()), f"{page}: {link}"


def test_the_reference_is_current() -> None:
    sys.path.insert(0, str(docs.ROOT / "scripts"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    assert (docs.ROOT / "docs" / "reference.md").read_text() == reference.page(), "run make reference"


class Page:
    """A reader who types what a page shows, in an empty folder, with one batch in place of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "COLUMNS": "120"}
        self.names: dict[str, object] = {}

    def take(self, step: docs.File | docs.Fragment | docs.Command) -> None:
        if isinstance(step, docs.File):
            path = self.folder / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.content)
        elif isinstance(step, docs.Fragment):
            self.execute(step.code)
        else:
            self.type(step)

    def execute(self, code: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(re.sub(r'("experiment=\w+")', r'\1, "debug=batch"', code), self.names)

    def type(self, command: docs.Command) -> None:
        if not command.words or command.words[0] == "export":
            self.env |= command.variables | dict(word.split("=", 1) for word in command.words[1:])
            return
        program = command.words[0]
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (docs.ROOT / "Makefile").read_text(), re.M)
            assert {word for word in command.words[1:] if "=" not in word} <= {*targets}
        elif program in SHELL and not command.need:
            words = [sys.executable if program == "python" else program, *command.arguments(self.folder)]
            subprocess.run(words, cwd=self.folder, env=self.env, check=True)
        elif program == "snnexp":
            self.snnexp(command)
        else:
            assert program in NOT_RUN | SHELL, f"{program}: not a command that a page may show"

    def snnexp(self, command: docs.Command) -> None:
        arguments = command.arguments(self.folder)
        trains = arguments[0] == "train" and "--cfg" not in arguments
        if command.need and not trains:
            return
        if trains:
            arguments += ["--cfg", "job"] if command.need else ["debug=batch"]
        ended = commands.run(arguments, self.folder, {**self.env, **command.variables}, timeout_s=300)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


@pytest.mark.parametrize("page", docs.PAGES)
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = Page(tmp_path)
    for step in docs.steps(docs.PAGES[page].read_text()):
        reader.take(step)

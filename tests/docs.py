"""The pages of the documentation: their links, files and commands; for tests and scripts.

Blocks of code on a page run from top to bottom in one empty folder. A ``python`` or ``yaml`` block whose first line is
a comment with a path is a file; another ``python`` block is a fragment to be executed; a ``bash`` block is commands, in
which ``RUN``, ``OTHER`` and ``SWEEP`` stand for the newest run, the one before it, and the newest sweep.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest

from snnexp.cli import main
from snnexp.cli.points import prepare_sweep
from snnexp.config import check, compose_unchecked

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
PATH = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
NEEDS = re.compile(r"\s# (needs .*|runs for minutes|stays open)$")
"""What a command says that cannot run everywhere, or not in a few seconds."""
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


@dataclass(frozen=True)
class File:
    """A file that a page shows."""

    path: str
    content: str


@dataclass(frozen=True)
class Fragment:
    """Python code that a page shows."""

    code: str


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    Args:
        words: without the variables in front of it.
        variables: of the environment.
        need: what its comment says that it needs, or how long it takes; "" for none.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str]
    need: str = ""

    def __str__(self) -> str:
        return shlex.join(self.words)

    def arguments(self, folder: Path) -> list[str]:
        """The words after the first, with the runs below ``folder`` in place of their placeholders."""
        known = re.compile(r"\b(RUN|OTHER|SWEEP)\b")
        return [known.sub(lambda match: _newest(match[0], folder), word) for word in self.words[1:]]


def steps(text: str) -> Iterator[File | Fragment | Command]:
    """What a page shows, in its order."""
    for language, content in BLOCK.findall(text):
        path = PATH.match(content)
        if language == "bash":
            yield from _commands(content)
        elif path:
            yield File(path[1], content.partition("\n")[2])
        elif language == "python":
            yield Fragment(content)


def _commands(content: str) -> Iterator[Command]:
    for line in content.replace("\\\n", " ").splitlines():
        need = NEEDS.search(line)
        words = shlex.split(line, comments=True)
        count = next((index for index, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
        variables = dict(word.split("=", 1) for word in words[:count])
        if words:
            yield Command(tuple(words[count:]), variables, need[1] if need else "")


def _newest(placeholder: str, folder: Path) -> str:
    pattern = "outputs/sweeps/*/*/sweep.json" if placeholder == "SWEEP" else "outputs/*/*/run.json"
    found = sorted((path for path in folder.glob(pattern) if path.parts[-4:-2] != ("outputs", "sweeps")), key=_began)
    index = -2 if placeholder == "OTHER" else -1
    if len(found) < -index:
        raise LookupError(f"{placeholder} stands for a run that is not below {folder}")
    return str(found[index].parent.relative_to(folder))


def _began(path: Path) -> tuple[str, int]:
    return path.parent.name[:15], os.stat(path.parent / "config.yaml" if path.name == "run.json" else path).st_mtime_ns


def links(text: str) -> set[str]:
    """The targets of the links and images of a page."""
    return {next(filter(None, found)) for found in LINK.findall(BLOCK.sub("", text))}


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


HAS_MNIST = Path(os.environ.get("SNNEXP_DATA_DIR", "data"), "MNIST", "raw").is_dir()
NOT_RUN = {"pip", "git", "cd", "tensorboard", "eval", "torchrun", "srun", "sbatch", "duckdb"}
"""Other programs on pages."""
SHELL = {"python", "cp", "mv", "rm", "mkdir", "head", "ls"}


class Reader:
    """A reader who types what a page shows, in an empty folder.

    Args:
        folder: the folder.
        whole: train as the page says, and not one batch; also what runs for minutes.
    """

    def __init__(self, folder: Path, whole: bool = False) -> None:
        self.folder, self.whole = folder, whole
        self.env = {**os.environ, "COLUMNS": "120"}
        self.names: dict[str, object] = {}

    def take(self, step: File | Fragment | Command) -> None:
        if isinstance(step, File):
            path = self.folder / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.content)
        elif isinstance(step, Fragment):
            self.execute(step.code)
        else:
            self.type(step)

    def execute(self, code: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code if self.whole else re.sub(r'("experiment=\w+")', r'\1, "debug=batch"', code), self.names)

    def type(self, command: Command) -> None:
        if not command.words or command.words[0] == "export":
            self.env |= command.variables | dict(word.split("=", 1) for word in command.words[1:])
            return
        program = command.words[0]
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert {word for word in command.words[1:] if "=" not in word} <= {*targets}
        elif program in SHELL and not command.need:
            words = [sys.executable if program == "python" else program, *command.arguments(self.folder)]
            subprocess.run(words, cwd=self.folder, env=self.env, check=True)
        elif program == "snnexp":
            self.snnexp(command)
        else:
            assert program in NOT_RUN | SHELL, f"{program}: not a command that a page may show"

    def snnexp(self, command: Command) -> None:
        arguments, file = command.arguments(self.folder), None
        if ">" in arguments:
            arguments, (_, file) = arguments[:-2], arguments[-2:]
        trains = arguments[0] == "train" and "--cfg" not in arguments
        lacks_mnist = not HAS_MNIST and any(re.match(r"(data|experiment)=mnist", word) for word in arguments)
        if lacks_mnist or (command.need and not (self.whole and command.need == "runs for minutes")):
            if trains:
                self.check(arguments)
            return
        if trains and not self.whole:
            # drawing, TensorBoard and more trials take a fifth of the time
            logger = [] if any(word.startswith("logger") for word in arguments) else ["logger=jsonl"]
            arguments = [re.sub(r"(n_trials)=\d+", r"\1=2", word) for word in arguments] + ["debug=batch", *logger]
        code, out, err = self.run(arguments, self.env | command.variables)
        assert code == 0, f"{command}\n{out[-2000:]}\n{err[-2000:]}"
        if file:
            (self.folder / file).write_text(out)

    def run(self, arguments: list[str], env: dict[str, str]) -> tuple[int, str, str]:
        """Return the exit code and the output of ``snnexp``."""
        if "SNNEXP_ALLOW_TARGETS" in env:
            # modules of a page may change
            done = commands.run(arguments, self.folder, env, timeout_s=3600)
            return done.returncode, done.stdout, done.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(arguments)
        return code, out.getvalue(), err.getvalue()

    def check(self, arguments: list[str]) -> None:
        """Compose and check a run, or all points of a sweep."""
        overrides = [word for word in arguments[1:] if word != "-m"]
        if "-m" in arguments:
            prepare_sweep(overrides)
        else:
            check(compose_unchecked(overrides)[0])

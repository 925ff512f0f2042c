"""The command line. Nothing is imported before a verb needs it."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

HELP = """\
Train spiking neural networks from YAML configs.

  snnexp train  [OVERRIDE ...] [-m]  one run, or with -m a sweep over comma-separated values
  snnexp train --from RUN [OVERRIDE ...]  a new run with the config of an earlier one, changed
  snnexp train init_from=RUN ...     start from the weights of a run; init_from.freeze=[hidden1] keeps some
  snnexp resume RUN [KEY=VALUE ...]  resume a run that was interrupted, or make one longer: trainer.max_epochs=20
  snnexp resume SWEEP                run what is not finished of a sweep, and only that
  snnexp eval   RUN [OVERRIDE ...]   measure a run again; --ckpt best|last|FILE  --split test|val|train  --json
  snnexp eval   RUN data=OTHER       measure it on other data
  snnexp predict RUN [OVERRIDE ...]  predictions for each sample as CSV; --ckpt  --split  --output FILE
  snnexp export RUN --to state_dict  the weights alone, for PyTorch, as RUN/export/network.pt; --ckpt
  snnexp report PATH ...             a page about a run, or one that compares those of a sweep or folder; --out FOLDER
  snnexp runs   [DIR]                a table of runs; 'test/accuracy>0.9' status=failed  --sort KEY  --json  --csv
  snnexp list   [GROUP [CHOICE]]     what can be chosen; keys of a choice with their defaults; --config-dir DIR
  snnexp doctor                      versions, devices, data and configs found here

  snnexp train experiment=regression_sqrt
  snnexp train experiment=mnist_leaky neuron=parametrized_lif loss=nll_max_voltage seed=3
  snnexp train -m experiment=mnist_rleaky_count seed=0,1,2 optimizer.lr=1e-3,2e-3
  snnexp train -m sweep=seeds experiment=regression_sqrt hydra/launcher=stacked

RUN and SWEEP are a directory, an id below outputs/, or the end of one id, such as 5193.
Overrides are Hydra's: group=choice or key=value; snnexp train --cfg job shows the whole config, and
snnexp train --hydra-help the other flags. Tab completion: eval "$(snnexp train -sc install=bash)"
Runs are written to outputs/. TensorBoard: tensorboard --logdir outputs
Exit codes: 0 done, 1 a defect of snnexp, 2 usage or config, 3 diverged, 4 data missing or damaged, 5 checkpoint
missing, damaged or not trusted, 6 run directory in use, 7 points of a sweep did not finish, 8 a part of your own
raised an error, 74 I/O error, 130, 143 and 129 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Args:
        argv: what was typed behind ``snnexp``; None for the arguments of this process, whose streams then outlive
            their readers.
    """
    if argv is None:
        _keep_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        from snnexp import __version__

        print(f"snnexp {__version__}")
        return 0
    if arguments[0] in ("-sc", "--shell-completion"):
        # the shell asks without a verb and puts the whole line into the environment
        return _complete(arguments)
    verb = VERBS.get(arguments[0])
    if verb is None:
        from snnexp.text import suggest

        return _refuse(f"{arguments[0]}: no such command, {suggest(arguments[0], VERBS)}; see snnexp --help")
    from snnexp import limits
    from snnexp.errors import DISK_ERRNOS, SnnexpError, describe_disk_error

    # read when torch is imported; under ddp it warns once per process about gradients that are not missing this time
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        os.getcwd()
    except FileNotFoundError:
        return _refuse("the current folder is gone; change to another one", 74)
    if (mask := _umask()) & 0o700:
        return _refuse(f"umask: {mask:03o} removes the owner's permissions from new files; run `umask 022`")
    if limits.has_file_size_limit():
        # could leave a truncated .pyc
        sys.dont_write_bytecode = True
    try:
        with _ending_at_once_on_signals():
            return verb(arguments[1:])
    except SnnexpError as error:
        # of a part of the user's own, unless they are in the log of a run
        sys.stderr.write(getattr(error, "frames", ""))
        return _refuse(error.args, error.exit_code)
    except (ImportError, MemoryError, OSError) as error:
        if limit := limits.describe_limit(error):
            return _refuse(limit)
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno not in DISK_ERRNOS:
            raise
        return _refuse(describe_disk_error(error), 74)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class _Lasting(io.FileIO):
    """A stream whose reader may leave, as that of ``| head`` does: the rest goes nowhere."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return super().write(content)


def _keep_streams() -> None:
    """Let no closed stream and no reader that leaves end what was asked for."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # the lowest number that is free, so the next file that is opened would be taken for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    for stream in ("stdout", "stderr"):
        text = getattr(sys, stream)
        raw = _Lasting(text.fileno(), "w", closefd=False)
        lasting = io.TextIOWrapper(
            raw if text.write_through else io.BufferedWriter(raw),
            encoding=text.encoding,
            errors=text.errors,
            line_buffering=text.line_buffering,
            write_through=text.write_through,
        )
        setattr(sys, stream, lasting)


@contextmanager
def _ending_at_once_on_signals() -> Iterator[None]:
    """Until a run has something to save: what is raised in the middle of an import could be lost in it."""
    import signal
    import threading

    from snnexp.errors import termination_signals

    def end(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, f"snnexp: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in termination_signals() if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(said: str | Sequence[str], code: int = 2) -> int:
    from snnexp.text import truncate

    for text in [said] if isinstance(said, str) else said:
        print(f"snnexp: {truncate(text)}", file=sys.stderr)
    return code


def _train(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    from snnexp.cli import train as launch

    return launch.train(arguments)


def _resume(arguments: list[str]) -> int:
    from snnexp.record.find import locate

    if arguments and not arguments[0].startswith("-"):
        path = locate(arguments[0])
        if (path / "sweep.json").is_file():
            from snnexp.sweeps import driver

            return driver.resume(path, arguments[1:])
        arguments = [str(path), *arguments[1:]]
    from snnexp.cli import trained

    asked = trained.parsed("resume", arguments)
    from snnexp.training.execute import resume

    resume(asked.run, asked.override)
    return 0


def _eval(arguments: list[str]) -> int:
    from snnexp.cli import trained

    return trained.evaluate(arguments)


def _predict(arguments: list[str]) -> int:
    from snnexp.cli import trained

    return trained.predict(arguments)


def _export(arguments: list[str]) -> int:
    from snnexp.cli import trained

    return trained.export(arguments)


def _report(arguments: list[str]) -> int:
    import argparse
    from pathlib import Path

    from snnexp.errors import ConfigError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"report: {message}; see snnexp report --help")

    about = "One HTML page about a run, or one that compares all runs below PATH; figures and their data beside it."
    parser = Parser(prog="snnexp report", description=about)
    parser.add_argument("path", nargs="+", metavar="PATH", help="a run, a sweep, or a folder with runs")
    where = "by default PATH itself; of several, a folder report beside the first"
    parser.add_argument("--out", metavar="FOLDER", help=where)
    what = "compare this measure; by default that of the search, or else accuracy, L1 error or loss"
    parser.add_argument("--metric", metavar="NAME", help=what)
    asked = parser.parse_args(arguments)
    from snnexp.record.find import locate

    paths = [locate(path) for path in asked.path]
    out = None if asked.out is None else Path(os.path.expanduser(asked.out))
    from snnexp.report import report

    print(f"report {report(paths, out, asked.metric)}")
    return 0


def _runs(arguments: list[str]) -> int:
    from snnexp.cli import runs

    return runs.main(arguments)


def _complete(arguments: list[str]) -> int:
    line = os.environ.get("COMP_LINE", "")
    command, _, rest = line.partition(" ")
    if not rest.lstrip().startswith("train "):
        print("\n".join(verb for verb in VERBS if verb.startswith(rest.lstrip())))
        return 0
    import re

    from snnexp.errors import ConfigError

    # Hydra completes `snnexp OVERRIDE ...`, so the verb is taken out, and what Hydra does not know
    shorter = f"{command} {re.sub(r'--from[ =]+[^ ]+ ', '', rest.lstrip().removeprefix('train ').lstrip())}"
    os.environ["COMP_LINE"] = shorter
    folders = re.findall(r" (?:--config-dir|-cd)[ =]+([^ ]+)(?= )", shorter)
    # what is being typed may be no config yet, and the shell would show what is said of it
    with suppress(ConfigError):
        _train([*arguments, *(word for folder in folders for word in ("--config-dir", folder))])
    return 0


def _list(arguments: list[str]) -> int:
    from snnexp import config
    from snnexp.cli.flags import DIR_FLAGS, folders_of, split
    from snnexp.errors import ConfigError
    from snnexp.text import suggest

    others = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in DIR_FLAGS]
    flags, words = split([word for word in arguments if word not in others])
    folders = folders_of(flags)
    if others or len(words) > 2:
        raise ConfigError(f"list: got {' '.join(arguments)}, takes a group, one of its choices, and --config-dir DIR")
    if words and words[0] not in config.GROUPS:
        raise ConfigError(f"{words[0]}: no such group, {suggest(words[0], config.GROUPS)}")
    if len(words) == 2:
        return _list_keys(words[0], words[1], folders)
    for group in words or config.GROUPS:
        if not words:
            print(group)
        found = config.choices(group, folders)
        width = max(map(len, found), default=0)
        for name, description in found.items():
            print(f"{'' if words else '  '}{name:<{width}}  {description}")
    return 0


def _list_keys(group: str, choice: str, folders: "Sequence[Path]") -> int:
    from snnexp import config

    rows, unread = config.describe_choice(group, choice, folders)
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for key, value, *about in rows:
        print(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {'; '.join(filter(None, about))}".rstrip())
    for sentence in unread:
        print(sentence)
    return 0


def _doctor(arguments: list[str]) -> int:
    if arguments:
        return _refuse(f"doctor: takes no arguments, got {' '.join(arguments)}")
    from snnexp.cli import doctor

    return doctor.report()


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "predict": _predict,
    "export": _export,
    "report": _report,
    "runs": _runs,
    "list": _list,
    "doctor": _doctor,
}

"""The command line. Each subcommand imports only what it needs."""

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

  snnexp train  [OVERRIDE ...] [-m]  train one run, or with -m a sweep over comma-separated values
  snnexp train --from RUN [OVERRIDE ...]  start a new run from the config of an earlier run
  snnexp train init_from=RUN ...     start from the weights of a run; init_from.freeze=[hidden1] freezes layers
  snnexp resume RUN [KEY=VALUE ...]  resume an interrupted run, or train a run for longer: trainer.max_epochs=20
  snnexp resume SWEEP                run only the unfinished points of a sweep
  snnexp eval   RUN [OVERRIDE ...]   evaluate a run; --ckpt best|last|FILE  --split test|val|train  --json
  snnexp eval   RUN data=OTHER       evaluate it on other data
  snnexp predict RUN [OVERRIDE ...]  write the predictions for each sample as CSV; --ckpt  --split  --output FILE
  snnexp export RUN --to state_dict  export the weights for PyTorch to RUN/export/network.pt; --ckpt
  snnexp report PATH ...             write an HTML report of a run, or a comparison of runs; --out FOLDER
  snnexp runs   [DIR]                list runs; 'test/accuracy>0.9' status=failed  --sort KEY  --json  --csv
  snnexp list   [GROUP [CHOICE]]     list config groups, choices, or the keys of a choice; --config-dir DIR
  snnexp doctor                      show versions, devices, data and configs

  snnexp train experiment=regression_sqrt
  snnexp train experiment=mnist_leaky neuron=parametrized_lif loss=nll_max_voltage seed=3
  snnexp train -m experiment=mnist_rleaky_count seed=0,1,2 optimizer.lr=1e-3,2e-3
  snnexp train -m sweep=seeds experiment=regression_sqrt hydra/launcher=stacked

RUN and SWEEP are a directory, an id below outputs/, or a unique suffix of an id, such as 5193.
OVERRIDE is a Hydra override, GROUP=CHOICE or KEY=VALUE. snnexp train --cfg job prints the whole config,
snnexp train --hydra-help the other flags. Tab completion: eval "$(snnexp train -sc install=bash)"
Runs are written to outputs/. TensorBoard: tensorboard --logdir outputs
Exit codes: 0 success, 1 bug in snnexp, 2 invalid usage or config, 3 diverged, 4 data missing or corrupt, 5 checkpoint
missing, corrupt or not trusted, 6 run directory in use, 7 points of a sweep did not finish, 8 your own code raised an
error, 74 I/O error, 130, 143 and 129 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the arguments after ``snnexp``; None for those of this process, whose streams are then protected from
            readers that close early.
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
        # for completion, the shell passes the whole line in COMP_LINE instead of a subcommand
        return _complete(arguments)
    subcommand = SUBCOMMANDS.get(arguments[0])
    if subcommand is None:
        from snnexp.text import suggest

        return _fail(f"{arguments[0]}: no such command, {suggest(arguments[0], SUBCOMMANDS)}; see snnexp --help")
    from snnexp import limits
    from snnexp.errors import DISK_ERRNOS, SnnexpError, describe_disk_error

    # read when torch is imported; with ddp each process would print spurious warnings about missing gradients
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        os.getcwd()
    except FileNotFoundError:
        return _fail("the current folder was deleted; change to another one", 74)
    if (mask := _umask()) & 0o700:
        return _fail(f"umask: {mask:03o} removes the owner's permissions from new files; run `umask 022`")
    if limits.has_file_size_limit():
        # a .pyc file could be truncated
        sys.dont_write_bytecode = True
    try:
        with _exit_on_signals():
            return subcommand(arguments[1:])
    except SnnexpError as error:
        # traceback of the user's own code, unless it is in the log of a run
        sys.stderr.write(getattr(error, "frames", ""))
        return _fail(error.args, error.exit_code)
    except (ImportError, MemoryError, OSError) as error:
        if limit := limits.describe_limit(error):
            return _fail(limit)
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno not in DISK_ERRNOS:
            raise
        return _fail(describe_disk_error(error), 74)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class _PipeTolerantFile(io.FileIO):
    """A stream that discards its output once the reader has closed the pipe, as ``| head`` does."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return super().write(content)


def _keep_streams() -> None:
    """Keep running if a standard stream is closed, or its reader closes the pipe."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # the next file that is opened would otherwise get this descriptor
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    for stream in ("stdout", "stderr"):
        text = getattr(sys, stream)
        raw = _PipeTolerantFile(text.fileno(), "w", closefd=False)
        wrapper = io.TextIOWrapper(
            raw if text.write_through else io.BufferedWriter(raw),
            encoding=text.encoding,
            errors=text.errors,
            line_buffering=text.line_buffering,
            write_through=text.write_through,
        )
        setattr(sys, stream, wrapper)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit at once on termination signals, until a run handles them: an exception during an import could be lost."""
    import signal
    import threading

    from snnexp.errors import termination_signals

    def end(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, f"snnexp: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, end) for number in termination_signals() if main}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(messages: str | Sequence[str], code: int = 2) -> int:
    from snnexp.text import truncate

    for text in [messages] if isinstance(messages, str) else messages:
        print(f"snnexp: {truncate(text)}", file=sys.stderr)
    return code


def _train(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    from snnexp.cli import train

    return train.train(arguments)


def _resume(arguments: list[str]) -> int:
    from snnexp.record.find import locate

    if arguments and not arguments[0].startswith("-"):
        path = locate(arguments[0])
        if (path / "sweep.json").is_file():
            from snnexp.sweeps import driver

            return driver.resume(path, arguments[1:])
        arguments = [str(path), *arguments[1:]]
    from snnexp.cli import trained

    args = trained.parse("resume", arguments)
    from snnexp.training.execute import resume

    resume(args.run, args.override)
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

    about = "Write an HTML report of a run, or a comparison of all runs below PATH, with figures and their data as CSV."
    parser = Parser(prog="snnexp report", description=about)
    parser.add_argument("path", nargs="+", metavar="PATH", help="a run, a sweep, or a folder with runs")
    where = "output folder; default: PATH, or with several paths a folder report next to the first"
    parser.add_argument("--out", metavar="FOLDER", help=where)
    what = "metric to compare; default: that of the search, or else accuracy, L1 error or loss"
    parser.add_argument("--metric", metavar="NAME", help=what)
    args = parser.parse_args(arguments)
    from snnexp.record.find import locate

    paths = [locate(path) for path in args.path]
    out = None if args.out is None else Path(os.path.expanduser(args.out))
    from snnexp.report import report

    print(f"report {report(paths, out, args.metric)}")
    return 0


def _runs(arguments: list[str]) -> int:
    from snnexp.cli import runs

    return runs.main(arguments)


def _complete(arguments: list[str]) -> int:
    line = os.environ.get("COMP_LINE", "")
    command, _, rest = line.partition(" ")
    if not rest.lstrip().startswith("train "):
        print("\n".join(name for name in SUBCOMMANDS if name.startswith(rest.lstrip())))
        return 0
    import re

    from snnexp.errors import ConfigError

    # Hydra completes `snnexp OVERRIDE ...`, so the subcommand and flags unknown to Hydra are removed
    shorter = f"{command} {re.sub(r'--from[ =]+[^ ]+ ', '', rest.lstrip().removeprefix('train ').lstrip())}"
    os.environ["COMP_LINE"] = shorter
    folders = re.findall(r" (?:--config-dir|-cd)[ =]+([^ ]+)(?= )", shorter)
    # an incomplete line may be an invalid config; its error would be shown in the shell
    with suppress(ConfigError):
        _train([*arguments, *(word for folder in folders for word in ("--config-dir", folder))])
    return 0


def _list(arguments: list[str]) -> int:
    from snnexp import config
    from snnexp.cli.flags import DIR_FLAGS, folders_of, split
    from snnexp.errors import ConfigError
    from snnexp.text import suggest

    unknown = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in DIR_FLAGS]
    flags, words = split([word for word in arguments if word not in unknown])
    folders = folders_of(flags)
    if unknown or len(words) > 2:
        raise ConfigError(f"list: got {' '.join(arguments)}, takes a group, one of its choices, and --config-dir DIR")
    if words and words[0] not in config.GROUPS:
        raise ConfigError(f"{words[0]}: no such group, {suggest(words[0], config.GROUPS)}")
    if len(words) == 2:
        return _list_keys(words[0], words[1], folders)
    for group in words or config.GROUPS:
        if not words:
            print(group)
        choices = config.choices(group, folders)
        width = max(map(len, choices), default=0)
        for name, description in choices.items():
            print(f"{'' if words else '  '}{name:<{width}}  {description}")
    return 0


def _list_keys(group: str, choice: str, folders: "Sequence[Path]") -> int:
    from snnexp import config

    rows, notes = config.describe_choice(group, choice, folders)
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for key, value, *about in rows:
        print(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {'; '.join(filter(None, about))}".rstrip())
    for note in notes:
        print(note)
    return 0


def _doctor(arguments: list[str]) -> int:
    if arguments:
        return _fail(f"doctor: takes no arguments, got {' '.join(arguments)}")
    from snnexp.cli import doctor

    return doctor.report()


SUBCOMMANDS: dict[str, Callable[[list[str]], int]] = {
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

"""The command line. Nothing is imported before a verb needs it."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

HELP = """\
Train spiking neural networks from YAML configs.

  snnexp train  [OVERRIDE ...] [-m]  one run, or with -m a sweep over comma-separated values
  snnexp resume RUN [KEY=VALUE ...]  go on with a run that was interrupted, or make one longer: trainer.max_epochs=20
  snnexp resume SWEEP                run what is not finished of a sweep, and only that
  snnexp eval   RUN                  measure a run again; --ckpt best|last|FILE  --split test|val|train  --json
  snnexp report PATH ...             a page about a run, or one that compares those of a sweep or folder; --out FOLDER
  snnexp runs   [DIR]                a table of runs; 'test/accuracy>0.9' status=failed  --sort KEY  --json  --csv
  snnexp list   [GROUP]              what can be chosen
  snnexp doctor                      versions, devices, data and configs found here

  snnexp train experiment=regression_sqrt
  snnexp train experiment=mnist_leaky neuron=parametrized_lif loss=nll_max_voltage seed=3
  snnexp train -m experiment=mnist_rleaky_count seed=0,1,2 optimizer.lr=1e-3,2e-3
  snnexp train -m sweep=seeds experiment=regression_sqrt hydra/launcher=stacked

Overrides are Hydra's: group=choice or key=value; snnexp train --cfg job shows the whole config, and
snnexp train --hydra-help the other flags. Tab completion: eval "$(snnexp train -sc install=bash)"
Runs are written to outputs/. TensorBoard: tensorboard --logdir outputs
Exit codes: 0 done, 1 a defect of snnexp, 2 usage or config, 3 diverged, 4 data missing or damaged, 5 checkpoint
missing, damaged or not trusted, 6 run directory in use, 7 points of a sweep did not finish, 74 I/O error,
130, 143 and 129 interrupted."""


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
        from snnexp.domains import closest

        return _refuse(f"{arguments[0]}: no such command, {closest(arguments[0], VERBS)}; see snnexp --help")
    from snnexp import limits
    from snnexp.errors import DISK, SnnexpError, about_disk

    # read when torch is imported; under ddp it warns once per process about gradients that are not missing this time
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        os.getcwd()
    except FileNotFoundError:
        return _refuse("the current folder is gone; change to another one", 74)
    if (mask := _umask()) & 0o700:
        return _refuse(f"umask: {mask:03o} takes the rights of the owner from all that is made here; set it to 022")
    if limits.has_short_files():
        # Python would keep the part of a compiled module that it could write
        sys.dont_write_bytecode = True
    try:
        with _ending_at_once_on_signals():
            return verb(arguments[1:])
    except SnnexpError as error:
        return _refuse(str(error), error.exit_code)
    except (ImportError, MemoryError, OSError) as error:
        if limit := limits.met(error):
            return _refuse(limit)
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno not in DISK:
            raise
        return _refuse(about_disk(error), 74)


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
            os.open(os.devnull, os.O_RDWR)
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

    from snnexp.errors import ending_signals

    def end(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, f"snnexp: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in ending_signals() if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(sentence: str, code: int = 2) -> int:
    from snnexp.domains import line

    sentence = line(sentence)
    print(f"snnexp: {sentence if len(sentence) <= 190 else f'{sentence[:187]}...'}", file=sys.stderr)
    return code


def _train(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    from snnexp import launch

    return launch.train(arguments)


def _resume(arguments: list[str]) -> int:
    from pathlib import Path

    if arguments and (Path(arguments[0]) / "sweep.json").is_file():
        from snnexp.sweeps import driver

        return driver.resume(Path(arguments[0]), sys.argv[0], arguments[1:])
    asked = _of_a_run("resume", arguments)
    from snnexp.experiment import resume

    resume(asked.run, asked.override)
    return 0


def _eval(arguments: list[str]) -> int:
    import json

    asked = _of_a_run("eval", arguments)
    from snnexp.console import console, result_table
    from snnexp.experiment import evaluate

    measured = evaluate(asked.run, asked.ckpt, asked.split, asked.override)
    if asked.json:
        print(json.dumps(measured, indent=2))
    else:
        console().print(result_table(measured, {}))
    return 0


def _report(arguments: list[str]) -> int:
    import argparse
    from pathlib import Path

    from snnexp.errors import ConfigError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"report: {message}; see snnexp report --help")

    about = "One HTML page about a run, or one that compares all runs below PATH; figures and their data beside it."
    parser = Parser(prog="snnexp report", description=about)
    parser.add_argument("path", nargs="+", type=Path, metavar="PATH", help="a run, a sweep, or a folder with runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="by default PATH itself; ./report for several")
    parser.add_argument("--metric", metavar="NAME", help="compare this measure, instead of accuracy, L1 error or loss")
    asked = parser.parse_args(arguments)
    from snnexp.report import report

    print(f"report {report(asked.path, asked.out, asked.metric)}")
    return 0


def _runs(arguments: list[str]) -> int:
    from snnexp import listing

    return listing.main(arguments)


def _of_a_run(verb: str, arguments: list[str]) -> Any:
    """What was typed after a verb that takes a run; what is wrong with it is told before torch is imported."""
    import argparse
    from pathlib import Path

    from snnexp import config, runs
    from snnexp.errors import ConfigError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            # argparse takes changes of the config for required too
            raise ConfigError(f"{verb}: {message.replace(', KEY=VALUE', '')}; see snnexp --help")

    parser = Parser(prog=f"snnexp {verb}", add_help=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("-h", "--help", action="help")
    if verb == "eval":
        parser.add_argument("--ckpt", default="last", help="last, best, init, or a file")
        parser.add_argument("--split", default="test", choices=("test", "val", "train"))
        parser.add_argument("--json", action="store_true", help="every digit, for programs")
    asked = parser.parse_intermixed_args(arguments)
    saved = config.load(runs.Run.open(asked.run).path / "config.yaml")
    if verb == "resume":
        config.require_same(saved, config.change(saved, asked.override))
    else:
        config.change_evaluation(saved, asked.override)
    return asked


def _complete(arguments: list[str]) -> int:
    line, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", 0))
    command, _, rest = line.partition(" ")
    if not rest.lstrip().startswith("train "):
        print("\n".join(verb for verb in VERBS if verb.startswith(rest.lstrip())))
        return 0
    # Hydra completes `snnexp OVERRIDE ...`, so the verb is taken out
    shorter = f"{command} {rest.lstrip().removeprefix('train ').lstrip()}"
    os.environ.update(COMP_LINE=shorter, COMP_POINT=str(point - len(line) + len(shorter)))
    return _train(arguments)


def _list(arguments: list[str]) -> int:
    from snnexp import config, domains
    from snnexp.errors import ConfigError

    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        raise ConfigError(f"list: got {' '.join(arguments)}, takes at most one group: {', '.join(config.GROUPS)}")
    if arguments and arguments[0] not in config.GROUPS:
        raise ConfigError(f"{arguments[0]}: no such group, {domains.closest(arguments[0], config.GROUPS)}")
    conf = config.conf_dir()
    for group in arguments or config.GROUPS:
        if not arguments:
            print(group)
        found = config.choices(group, conf)
        width = max(map(len, found), default=0)
        for name, description in found.items():
            print(f"{'' if arguments else '  '}{name:<{width}}  {description}")
    return 0


def _doctor(arguments: list[str]) -> int:
    if arguments:
        return _refuse(f"doctor: takes no arguments, got {' '.join(arguments)}")
    from snnexp import doctor

    return doctor.report()


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "report": _report,
    "runs": _runs,
    "list": _list,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())

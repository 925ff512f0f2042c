"""The verbs that take a trained run: what was typed is checked before PyTorch is imported."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from snnexp import config, threads
from snnexp.cli.flags import DIR_FLAGS, split
from snnexp.config import decoding
from snnexp.errors import ConfigError
from snnexp.record.find import locate
from snnexp.record.origin import origin
from snnexp.record.run import Run

FORMATS = ("state_dict",)
"""What weights can be exported to."""


def evaluate(arguments: Sequence[str]) -> int:
    """Print what ``snnexp eval ARGUMENTS`` measures; returns the exit code.

    Raises:
        SnnexpError: as :func:`snnexp.training.evaluate.evaluate`.
    """
    asked = parsed("eval", arguments)
    from snnexp.terminal import console, result_table
    from snnexp.training.evaluate import evaluate as measure

    measured = measure(asked.run, asked.ckpt, asked.split, asked.override, asked.folders)
    if asked.json:
        print(json.dumps(measured, indent=2))
    else:
        decoder = decoding.decoder_name(asked.cfg, Run.open(asked.run).read().get("decoder"))
        console().print(result_table(measured, {}, decoder))
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Write what ``snnexp predict ARGUMENTS`` asks for, and print the path; returns the exit code.

    Raises:
        SnnexpError: as :func:`snnexp.training.evaluate.predict`.
    """
    asked = parsed("predict", arguments)
    from snnexp.training.evaluate import predict as write

    print(write(asked.run, asked.ckpt, asked.split, asked.override, asked.output, asked.folders))
    return 0


def export(arguments: Sequence[str]) -> int:
    """Write what ``snnexp export ARGUMENTS`` asks for, and print the path; returns the exit code.

    Raises:
        SnnexpError: as :func:`snnexp.training.evaluate.export`.
    """
    asked = parsed("export", arguments)
    from snnexp.training.evaluate import export as write

    print(write(asked.run, asked.ckpt))
    return 0


def parsed(verb: str, arguments: Sequence[str]) -> Any:
    """What was typed after a verb that takes a run.

    Raises:
        ConfigError: it cannot work.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            # argparse takes changes of the config for required too
            raise ConfigError(f"{verb}: {message.replace(', KEY=VALUE', '')}; see snnexp --help")

    parser = Parser(prog=f"snnexp {verb}", add_help=False)
    parser.add_argument("run", metavar="RUN")
    if verb != "export":
        parser.add_argument("override", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("-h", "--help", action="help")
    if verb != "resume":
        parser.add_argument("--ckpt", default="last", type=os.path.expanduser, help="last, best, init, or a file")
    if verb in ("eval", "predict"):
        parser.add_argument("--split", default="test", choices=("test", "val", "train"))
        more = "more configs, such as data of your own; by default those of the run"
        parser.add_argument(*DIR_FLAGS, dest="folders", action="append", default=[], metavar="DIR", help=more)
    if verb == "eval":
        parser.add_argument("--json", action="store_true", help="every digit, for programs")
    if verb == "predict":
        output = "a new file; by default predictions.csv in the run directory"
        parser.add_argument("--output", type=os.path.expanduser, metavar="FILE", help=output)
    if verb == "export":
        parser.add_argument("--to", required=True, choices=FORMATS, help="what to write")
    asked = parser.parse_intermixed_args([*arguments])
    asked.run = locate(asked.run)
    run = Run.open(asked.run)
    saved = config.load(run.path / "config.yaml")
    if verb == "export":
        return asked
    if verb == "resume":
        changed = config.change(saved, asked.override)
        config.require_same(saved, changed)
    else:
        # which says what is wrong with them
        split([word for folder in asked.folders for word in (DIR_FLAGS[0], folder)])
        asked.folders = [Path(os.path.expanduser(folder)) for folder in asked.folders]
        known = asked.folders or [folder for folder in origin(run.facts()).folders if folder.is_dir()]
        changed = config.change_evaluation(saved, asked.override, known)
    if any(word.startswith("trainer.threads=") for word in asked.override):
        threads.require(changed)
    asked.cfg = changed
    return asked

"""Subcommands that take a trained run: their arguments are checked before PyTorch is imported."""

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
"""Formats of ``snnexp export --to``."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run ``snnexp eval ARGUMENTS`` and print the metrics; return the exit code.

    Raises:
        SnnexpError: see :func:`snnexp.training.evaluate.evaluate`.
    """
    args = parse("eval", arguments)
    from snnexp.terminal import console, result_table
    from snnexp.training.evaluate import evaluate as measure

    metrics = measure(args.run, args.ckpt, args.split, args.override, args.folders)
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        decoder = decoding.decoder_name(args.cfg, Run.open(args.run).read().get("decoder"))
        console().print(result_table(metrics, {}, decoder))
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Run ``snnexp predict ARGUMENTS`` and print the path of the file; return the exit code.

    Raises:
        SnnexpError: see :func:`snnexp.training.evaluate.predict`.
    """
    args = parse("predict", arguments)
    from snnexp.training.evaluate import predict as write

    print(write(args.run, args.ckpt, args.split, args.override, args.output, args.folders))
    return 0


def export(arguments: Sequence[str]) -> int:
    """Run ``snnexp export ARGUMENTS`` and print the path of the file; return the exit code.

    Raises:
        SnnexpError: see :func:`snnexp.training.evaluate.export`.
    """
    args = parse("export", arguments)
    from snnexp.training.evaluate import export as write

    print(write(args.run, args.ckpt))
    return 0


def parse(subcommand: str, arguments: Sequence[str]) -> Any:
    """Parse and check the arguments of a subcommand that takes a run.

    Raises:
        ConfigError: the arguments are invalid.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            # argparse lists the overrides as required too
            raise ConfigError(f"{subcommand}: {message.replace(', KEY=VALUE', '')}; see snnexp --help")

    parser = Parser(prog=f"snnexp {subcommand}", add_help=False)
    parser.add_argument("run", metavar="RUN", help="a run directory, an id below outputs/, or a unique suffix of an id")
    if subcommand != "export":
        parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help="override of the config")
    parser.add_argument("-h", "--help", action="help", help="show this help message and exit")
    if subcommand != "resume":
        parser.add_argument(
            "--ckpt", default="last", type=os.path.expanduser, help="last (default), best, init, or a file"
        )
    if subcommand in ("eval", "predict"):
        splits = ("test", "val", "train")
        parser.add_argument("--split", default="test", choices=splits, help="the split to evaluate; default: test")
        more = "additional config folder, such as for your own data; default: those of the run"
        parser.add_argument(*DIR_FLAGS, dest="folders", action="append", default=[], metavar="DIR", help=more)
    if subcommand == "eval":
        parser.add_argument("--json", action="store_true", help="print the metrics as JSON, with all digits")
    if subcommand == "predict":
        output = "file to create; default: predictions.csv in the run directory"
        parser.add_argument("--output", type=os.path.expanduser, metavar="FILE", help=output)
    if subcommand == "export":
        parser.add_argument("--to", required=True, choices=FORMATS, help="format of the weights")
    args = parser.parse_intermixed_args([*arguments])
    args.run = locate(args.run)
    run = Run.open(args.run)
    saved = config.load(run.path / "config.yaml")
    if subcommand == "export":
        return args
    if subcommand == "resume":
        changed = config.change(saved, args.override)
        config.require_same(saved, changed)
    else:
        # raises for invalid folders
        split([word for folder in args.folders for word in (DIR_FLAGS[0], folder)])
        args.folders = [Path(os.path.expanduser(folder)) for folder in args.folders]
        folders = args.folders or [folder for folder in origin(run.facts()).folders if folder.is_dir()]
        changed = config.change_evaluation(saved, args.override, folders)
    if any(word.startswith("trainer.threads=") for word in args.override):
        threads.require(changed)
    args.cfg = changed
    return args

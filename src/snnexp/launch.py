"""``snnexp train``: Hydra composes, sweeps and completes; each job that it starts becomes a run of ours."""

import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp import config, domains, runs
from snnexp.errors import ConfigError, InterruptedRunError, SnnexpError, about_disk

CFG_FLAGS = ("--cfg", "-c")
DIR_FLAGS = ("--config-dir", "-cd")
VALUED = (*CFG_FLAGS, *DIR_FLAGS, "--package", "-p")
OTHER_CONF = ("--config-path", "-cp", "--config-name", "-cn")
CFG = ("job", "hydra", "all")
PLAIN = (
    "--info",
    "-i",
    "--multirun",
    "-m",
    "--run",
    "-r",
    "--resolve",
    "--shell-completion",
    "-sc",
    "--hydra-help",
    "--version",
)
SWEEP = ("--multirun", "-m")
SHOW = (*CFG_FLAGS, "--info", "-i", "--hydra-help", "--version")
COMPLETE = ("--shell-completion", "-sc")


@dataclass
class Point:
    """One point of a sweep, and how it ended."""

    overrides: list[str]
    status: str
    run: Path | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def train(arguments: Sequence[str]) -> int:
    """Run what ``snnexp train ARGUMENTS`` asks for; returns the exit code.

    Raises:
        SnnexpError: a single run could not start, diverged or was interrupted.
    """
    flags, overrides = split(arguments)
    overrides = config.quoted(overrides)
    conf = config.conf_dir()
    config.prepare()
    # Hydra then raises what it finds instead of printing pages; `explain` makes it one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    jobs = Jobs(program=typed[0], flags=[flag for flag in flags if flag not in SWEEP])
    try:
        if not any(flag in COMPLETE for flag in flags):
            check(flags, overrides)
            overrides = [config.NO_SEARCH, *overrides]
        sys.argv = [typed[0], *flags, *overrides]
        hydra.main(config_path=str(conf), config_name="train", version_base=config.VERSION_BASE)(jobs)()
    except config.REFUSALS as error:
        raise error if isinstance(error, SnnexpError) else config.explain(error, overrides) from error
    finally:
        sys.argv = typed
    return jobs.finish()


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides; Hydra itself wants all overrides in one piece.

    Raises:
        ConfigError: a flag that Hydra does not have, or that lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
        elif word.partition("=")[0] in VALUED:
            flag, _, value = word.partition("=")
            value = value or next(rest, "")
            if not value or (flag in CFG_FLAGS and value not in CFG):
                needed = f"one of {', '.join(CFG)}" if flag in CFG_FLAGS else "a value"
                raise ConfigError(f"{flag}: got {value or 'nothing'}, must be followed by {needed}")
            if flag in DIR_FLAGS and not Path(value).is_dir():
                raise ConfigError(f"{flag}: {domains.shown(value)} is not a folder")
            if flag in DIR_FLAGS and any(flag in DIR_FLAGS for flag in flags):
                raise ConfigError(f"{flag}: given twice, takes one folder")
            flags += [flag, value]
        elif word in PLAIN:
            flags.append(word)
        elif word.partition("=")[0] in OTHER_CONF:
            raise ConfigError(f"{word}: set SNNEXP_CONF to another folder of configs, or add one with --config-dir")
        else:
            raise ConfigError(f"{word}: no such flag, {domains.closest(word, [*VALUED, *PLAIN])}")
    return flags, overrides


def check(flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Compose and check what Hydra is going to compose, each point of a sweep before the first one starts.

    Raises:
        ConfigError: a point cannot work, or would make Hydra do more than start runs.
    """
    folder = next((Path(value) for flag, value in itertools.pairwise(flags) if flag in DIR_FLAGS), None)
    if any(flag in SWEEP for flag in flags):
        # Hydra itself starts with what all points share, which another choice may replace in each of them
        _, node = config.composed(config.shared(overrides), folder)
        params = node["sweeper"].get("params") or {}
        for point in config.points([*(f"{key}={value}" for key, value in params.items()), *overrides], folder):
            config.check(config.composed(point, folder)[0])
    else:
        cfg, _ = config.composed(overrides, folder)
        if not any(flag in SHOW for flag in flags):
            config.check(cfg)


class Jobs:
    """The function that Hydra calls with a composed config, once per run."""

    def __init__(self, program: str, flags: list[str]) -> None:
        self.program = program
        self.flags = flags
        self.points: list[Point] = []
        self.sweep: Path | None = None
        self.error: BaseException | None = None
        self.__name__ = "train"

    def __call__(self, cfg: DictConfig) -> None:
        try:
            self._start(cfg)
        except Exception as error:
            # Hydra would print about it and go on to the next job
            self.error = error

    def _start(self, cfg: DictConfig) -> None:
        job = HydraConfig.get()
        # as text: an interpolation in it belongs to the config, not to this list
        overrides: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
        checked = config.check(cfg)
        # ddp starts its processes by the command line, which must then ask for this one run
        sys.argv = [self.program, "train", *self.flags, *overrides]
        if job.mode == RunMode.MULTIRUN:
            self.sweep = Path(job.runtime.output_dir).parent
            self._run_point(checked, overrides, Path(job.runtime.output_dir))
        else:
            from snnexp.experiment import run

            run(checked, overrides)

    def _run_point(self, cfg: DictConfig, overrides: list[str], folder: Path) -> None:
        from snnexp.experiment import run

        print(f"\npoint {len(self.points) + 1}: {' '.join(overrides)}", flush=True)
        try:
            record = run(cfg, overrides, folder)
        except InterruptedRunError as error:
            # Hydra catches every Exception of a job and would go on to the next
            self._add(Point(overrides, error.status, reason=str(error)))
            self._tell()
            print(f"snnexp: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from error
        except OSError as error:
            # the next point would meet the same disk
            reason = about_disk(error)
            print(f"snnexp: {reason}", file=sys.stderr)
            with suppress(OSError):
                self._add(Point(overrides, "failed", reason=reason))
            raise SystemExit(74) from error
        except Exception as error:
            if not isinstance(error, SnnexpError):
                traceback.print_exc()
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"snnexp: {reason}", file=sys.stderr)
            self._add(Point(overrides, getattr(error, "status", "failed"), reason=reason))
        else:
            self._add(Point(overrides, record.status, record.path, record.metrics))

    def _add(self, point: Point) -> None:
        # after each point: a sweep that is killed leaves what it has measured
        self.points.append(point)
        assert self.sweep is not None
        rows, _ = self._rows()
        runs.write_summary(self.sweep / "summary.csv", rows)

    def finish(self) -> int:
        """After the last job: raise what ended a single run, or print the table of a sweep; returns the exit code."""
        if self.error is not None:
            raise self.error
        if self.points:
            self._tell()
        return 7 if any(point.status != "finished" for point in self.points) else 0

    def _rows(self) -> tuple[list[dict[str, Any]], list[str]]:
        varied = _varied([point.overrides for point in self.points])
        names = sorted({name for point in self.points for name in point.metrics})
        rows = [
            {
                **{key: dict(_pairs(point.overrides)).get(key, "") for key in varied},
                "status": point.status,
                **{name: point.metrics.get(name) for name in names},
                "run": "" if point.run is None else point.run.name,
                "reason": point.reason,
            }
            for point in self.points
        ]
        # those of single layers have no place in a line
        shown = [*varied, "status", *(name for name in names if name.count("/") == 1 and name != "test/synops")]
        return rows, shown

    def _tell(self) -> None:
        from rich.table import Table

        from snnexp.console import console, show_path

        assert self.sweep is not None
        rows, shown = self._rows()
        table = Table(*shown, box=None, pad_edge=False)
        for row in rows:
            cells: list[Any] = [row[name] for name in shown]
            table.add_row(
                *("" if cell is None else domains.number(cell) if isinstance(cell, float) else cell for cell in cells)
            )
        terminal = console()
        terminal.print()
        terminal.print(table)
        terminal.print(f"sweep {show_path(self.sweep)}")


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    return [(key.lstrip("+"), value) for key, _, value in (override.partition("=") for override in overrides)]


def _varied(points: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between points."""
    first = _pairs(points[0])
    return [key for key, value in first if any(dict(_pairs(point)).get(key) != value for point in points)]

"""Kill runs at random moments and resume them; prints how many ended like a run that nothing had stopped.

    scripts/chaos.py kills       SIGKILL, for three neurons with 0 and 2 data workers
    scripts/chaos.py ddp         SIGKILL of the first of two processes
    scripts/chaos.py signals     SIGTERM and SIGINT
    scripts/chaos.py starts      runs that start at the same moment
    scripts/chaos.py overrides   overrides out of random pieces of Hydra's grammar
    scripts/chaos.py stacks      SIGKILL for the driver of 4 and of 8 stacked points: at random, within the first step,
                                 inside a save, and twice in a row
    scripts/chaos.py sweep       60 points of which 10 end their process in as many ways, the driver killed on the way

Each run is a process of its own, started as a user starts it, on real MNIST images; those of the sweep are regressions.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import faults
import fuzz
from ends import content

from snnexp.config import compose
from snnexp.errors import ConfigError

SNNEXP = [sys.executable, "-m", "snnexp.cli"]
RUN = [
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.limit_batches=12",
    "trainer.log_every_n_steps=2",
    "data.val_size=2000",
    "data.batch_size=64",
    "network.hidden=[100]",
    "num_steps=10",
    # a checkpoint after every step, so that many kills hit one that is being written
    "logger.save_every_s=0",
]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
NEURONS = {
    "Leaky": ["experiment=mnist_leaky", "encoder=bernoulli"],
    "RLeaky": ["experiment=mnist_rleaky_count"],
    "ParametrizedLIF": ["experiment=mnist_parametrized_lif"],
}

STACKED = ["hydra/launcher=stacked", "hydra.launcher.workers=1", "trainer=cpu", "logger=jsonl", "logger.save_every_s=0"]
STACKS = {
    "4 regressions": ["experiment=regression_linear", "trainer.max_epochs=150", "seed=range(4)"],
    "a search of 4": [
        *("experiment=regression_linear", "trainer.max_epochs=150", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4"),
        *("hydra.sweeper.metric=test/l1", "hydra.sweeper.sampler=random", "optimizer.lr=interval(0.001,0.01)"),
    ],
    "8 with a validation": [*NEURONS["Leaky"], *RUN[1:], "optimizer.lr=1e-3,2e-3", "seed=range(4)"],
}
"""Checkpoints are written after every step; those of the last have two learning rates and draw their spikes."""


@dataclass
class Whole:
    """A run that nothing stopped."""

    content: str
    files: set[str]
    rows: int
    until_directory_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", default=["kills", "ddp", "signals", "starts", "overrides", "stacks", "sweep"]
    )
    parser.add_argument(
        "--times",
        type=int,
        help="kills per case, 5; of ddp, 10; signals, 10 each; starts, 12; overrides, 500; of stacks, 3 per case and "
        "moment; of a driver, 5",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    asked = parser.parse_args()
    trials = {
        "kills": kills,
        "ddp": ddp,
        "signals": signals,
        "starts": starts,
        "overrides": overrides,
        "stacks": stacks,
        "sweep": sweep,
    }
    with tempfile.TemporaryDirectory() as folder:
        good = [trials[what](Path(folder), random.Random(asked.seed), asked.times) for what in asked.what]
    return 0 if all(good) else 1


def kills(folder: Path, draw: random.Random, times: int | None) -> bool:
    """SIGKILL, a fifth of them before there is a run directory, then resume."""
    cases = {
        f"{neuron} workers {workers}": [*recipe, *RUN, f"data.num_workers={workers}"]
        for neuron, recipe in NEURONS.items()
        for workers in (0, 2)
    }
    return killed(folder, draw, cases, times or 5)


def ddp(folder: Path, draw: random.Random, times: int | None) -> bool:
    """SIGKILL of the first of two processes, which the other one does not outlive."""
    return killed(folder, draw, {"ddp": [*NEURONS["RLeaky"], *RUN, *DDP]}, times or 10)


def killed(folder: Path, draw: random.Random, cases: dict[str, list[str]], times: int) -> bool:
    """Kill each case so many times, and resume."""
    good = tried = torn = 0
    for name, case in cases.items():
        whole = measure(folder / name, case)
        for index in range(times):
            cwd = folder / f"{name}-{index}"
            process = start(cwd, case)
            wait_for_a_moment(process, cwd, whole, draw, early=index % 5 == 0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = not ends(process.pid)
            path = directory(cwd)
            saving = path is not None and any(path.rglob(".*.tmp"))
            same, where = ends_alike(cwd, path, case, whole)
            good, tried, torn = good + (same and not left), tried + 1, torn + saving
            note = (", while saving" if saving else "") + (", AND LEFT A PROCESS" if left else "")
            print(f"{name:24} {where}{note}: {'the same' if same else 'DIFFERENT'}", flush=True)
    print(f"{good} of {tried} killed runs ended with the same weights, optimizer and metrics; {torn} kills hit a save")
    return good == tried


def ends(group: int, patience_s: float = 10.0) -> bool:
    """Whether all processes of a group end soon."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def signals(folder: Path, draw: random.Random, times: int | None) -> bool:
    """SIGTERM and SIGINT at random moments: the exit code, one line, and a run that can be resumed."""
    good = tried = 0
    case = [*NEURONS["RLeaky"], *RUN, "data.num_workers=2"]
    whole = measure(folder / "whole", case)
    for number in (signal.SIGTERM, signal.SIGINT):
        for index in range(times or 10):
            cwd = folder / f"{number.name}-{index}"
            process = start(cwd, case)
            wait_for_a_moment(process, cwd, whole, draw, early=index % 5 == 0)
            process.send_signal(number)
            _, stderr = process.communicate()
            path = directory(cwd)
            told = stderr.splitlines() == [f"snnexp: stopped by {number.name}"]
            marked = path is None or json.loads((path / "run.json").read_text())["status"] == "interrupted"
            same, where = ends_alike(cwd, path, case, whole)
            fine = process.returncode == 128 + number and told and marked and same
            good, tried = good + fine, tried + 1
            print(
                f"{number.name} {where}: exit {process.returncode}, {'the same' if same else 'DIFFERENT'}", flush=True
            )
            if not fine:
                print(stderr)
    print(f"{good} of {tried} signals: exit code, one line, marked as interrupted, and resumed to the same end")
    return good == tried


def starts(folder: Path, draw: random.Random, times: int | None) -> bool:
    """Runs that start together have a directory each."""
    # half a gigabyte each; the test suite starts 50 processes that only make their directories
    times = times or 12
    cwd = folder / "together"
    cwd.mkdir()
    command = [*SNNEXP, "train", "experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl"]
    started = [subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL) for _ in range(times)]
    codes = [process.wait() for process in started]
    found = [json.loads(path.read_text())["status"] for path in cwd.glob("outputs/*/*/run.json")]
    print(f"{times} runs started together: {len(found)} directories, {found.count('finished')} finished")
    return codes == [0] * times and found == ["finished"] * times


def overrides(folder: Path, draw: random.Random, times: int | None) -> bool:
    """Random overrides are composed or refused in a line, and nothing else happens."""
    tried, refused, longest = times or 500, 0, 0.0
    for typed in fuzz.overrides(tried, draw.randrange(10**6)):
        began = time.perf_counter()
        try:
            compose(typed)
        except ConfigError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 200:
                print(f"{typed!r}: refused in {str(error)!r}")
                return False
        longest = max(longest, time.perf_counter() - began)
    print(f"{tried} random overrides: {refused} refused in a line, {tried - refused} composed, at most {longest:.2f} s")
    return True


def sweep(folder: Path, draw: random.Random, times: int | None) -> bool:
    """SIGKILL for the driver at random moments, each time resumed; every point ends once, and as it would alone."""
    cwd, ways = folder / "sweep", [*faults.REASONS]
    cwd.mkdir()
    where = dict(zip(draw.sample(range(60), len(ways)), ways, strict=True))
    told = ",".join(f"'{where.get(point, '')}'" for point in range(60))
    environment = {**os.environ, "PYTHONPATH": str(Path(faults.__file__).parent), "SNNEXP_ALLOW_TARGETS": "faults"}
    loss = ["loss._target_=faults.Faulty", "+loss.point=${seed}", f"+loss.faults=[{told}]"]
    limits = ["hydra.launcher.timeout_s=10", "hydra.launcher.memory_gb=4"]
    case = [
        *("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=20", "logger=jsonl", *loss),
        *("logger.save_every_s=0", "-m", "seed=range(60)", *limits),
    ]
    command = [*SNNEXP, "train", *case]
    for kill in range(times or 5):
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
        # after some more points each time, and a little more
        least = (kill + draw.random()) * 50 / (times or 5)
        while process.poll() is None:
            found = [path.parent for path in cwd.glob("outputs/sweeps/*/*/sweep.json")]
            ended = ledger(found[0]).count("finished") if found else 0
            if ended > least:
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.wait()
        ended = ledger(found[0]).count("finished")
        print(f"kill {kill + 1}: {ended} points had finished", flush=True)
        command = [*SNNEXP, "resume", str(found[0])] if found else command
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    print(done.stdout)
    (home,) = (path.parent for path in cwd.glob("outputs/sweeps/*/*/sweep.json"))
    records = [json.loads(path.read_text()) for path in home.glob("runs/*/run.json")]
    finished = sorted(record["seed"] for record in records if record["status"] == "finished")
    points = json.loads((home / "sweep.json").read_text())["points"]
    good = done.returncode == 7
    good &= finished == sorted(set(range(60)) - where.keys()) and len(records) == 60
    for seed, point in enumerate(points):
        good &= point["status"] == "finished" if seed not in where else faults.REASONS[where[seed]] in point["reason"]
    resumed = sum("resumed_at_step" in record for record in records)
    print(
        f"60 points, {len(ways)} of them at fault, driver killed {times or 5} times: exit {done.returncode}, "
        f"{len(finished)} finished once each, {60 - len(finished)} told with their causes, {resumed} were resumed"
    )
    return good


def stacks(folder: Path, draw: random.Random, times: int | None) -> bool:
    """SIGKILL for the driver of a stack, then resume; every member ends as in a stack that was left alone."""
    good = tried = 0
    for name, case in STACKS.items():
        command = [*SNNEXP, "train", "-m", *STACKED, *case]
        began = time.monotonic()
        subprocess.run(command, cwd=made(folder / name), stdout=subprocess.DEVNULL, check=True)
        took_s, whole = time.monotonic() - began, members(folder / name)
        for moment in ("at random", "within the first step", "inside a save", "twice in a row"):
            for index in range(times or 3):
                cwd = made(folder / f"{name}-{moment}-{index}")
                for kill in range(2 if moment == "twice in a row" else 1):
                    home = next(iter(cwd.glob("outputs/sweeps/*/*")), None)
                    again = [*SNNEXP, "resume", str(home)] if kill and home else command
                    process = subprocess.Popen(again, cwd=cwd, stdout=subprocess.DEVNULL)
                    wait_in_stack(process, cwd, moment, took_s, draw)
                    process.kill()
                    process.wait()
                    # whoever trains ends when the driver is gone
                    time.sleep(0.3)
                home = next(iter(cwd.glob("outputs/sweeps/*/*")), None)
                again = command if home is None else [*SNNEXP, "resume", str(home)]
                done = subprocess.run(again, cwd=cwd, capture_output=True, text=True)
                found = members(cwd) if done.returncode == 0 else {}
                steps = sorted({steps[-1] for _, steps in found.values() if steps})
                same = {point: end for point, (end, _) in found.items()} == {
                    point: end for point, (end, _) in whole.items()
                }
                good, tried = good + same, tried + 1
                print(f"{name}, {moment}, resumed at {steps}: {'the same' if same else 'DIFFERENT'}", flush=True)
                if done.returncode:
                    print(done.stdout, done.stderr)
    print(f"{good} of {tried} killed stacks ended with the same weights, optimizers and metrics in all members")
    return good == tried


def wait_in_stack(
    process: "subprocess.Popen[bytes]", cwd: Path, moment: str, took_s: float, draw: random.Random
) -> None:
    """Wait for a moment in the life of a stack."""
    began = time.monotonic()
    until = draw.uniform(0.4, 1) * took_s
    while process.poll() is None:
        homes = [*cwd.glob("outputs/sweeps/*/*/runs/[0-9]*")]
        if moment == "within the first step" and homes and any((home / "checkpoints").glob("init*") for home in homes):
            break
        late = time.monotonic() - began > until
        if late and (moment != "inside a save" or any(any(home.rglob(".*.tmp")) for home in homes)):
            break
        time.sleep(0.001)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def members(cwd: Path) -> dict[str, tuple[str, list[int]]]:
    """By what was typed, how a member ended and the steps that it was resumed at."""
    records = {path.parent: json.loads(path.read_text()) for path in cwd.glob("outputs/sweeps/*/*/runs/*/run.json")}
    return {
        (path / "overrides.yaml").read_text(): (content(path), record.get("resumed_at_step", []))
        for path, record in records.items()
    }


def ledger(path: Path) -> list[str]:
    return [point["status"] for point in json.loads((path / "sweep.json").read_text())["points"]]


def measure(cwd: Path, case: list[str]) -> Whole:
    """Run a case to its end."""
    began = time.perf_counter()
    process = start(cwd, case)
    while directory(cwd) is None and process.poll() is None:
        time.sleep(0.01)
    until = time.perf_counter() - began
    path = directory(cwd)
    assert process.wait() == 0, process.communicate()[1]
    assert path is not None
    return Whole(content(path), files(path), len(rows(path)), until)


def start(cwd: Path, case: list[str]) -> subprocess.Popen[str]:
    cwd.mkdir()
    command = [*SNNEXP, "train", *case]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, **pipes, text=True, start_new_session=True)


def wait_for_a_moment(
    process: subprocess.Popen[str], cwd: Path, whole: Whole, draw: random.Random, early: bool
) -> None:
    """Wait for a random moment before there is a run directory, or after so many rows of metrics and a little more."""
    if early:
        # what comes before Python has started cannot be answered by a program
        time.sleep(draw.uniform(0.3, whole.until_directory_s))
        return
    least = draw.randrange(whole.rows - 1)
    while process.poll() is None:
        path = directory(cwd)
        if path is not None and len(rows(path)) >= least:
            break
        time.sleep(0.002)
    # the time of a few steps, with what they save
    time.sleep(draw.uniform(0, 0.2))


def rows(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines()


def files(path: Path) -> set[str]:
    """All in a run directory but events of TensorBoard, whose names hold a time and a process."""
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.parent.name != "tensorboard"}


def directory(cwd: Path) -> Path | None:
    return next((path.parent for path in cwd.glob("outputs/*/[0-9]*/config.yaml")), None)


def ends_alike(cwd: Path, path: Path | None, case: list[str], whole: Whole) -> tuple[bool, str]:
    """Resume, or start again where there was nothing yet; whether the end is the same, and where it was stopped."""
    command = [*SNNEXP, "train", *case] if path is None else [*SNNEXP, "resume", str(path)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr)
        return False, "could not go on"
    found = directory(cwd)
    assert found is not None
    steps = json.loads((found / "run.json").read_text()).get("resumed_at_step")
    where = "had finished" if steps is None else f"resumed at step {steps[0]}"
    where = "before there was a directory" if path is None else where
    same = content(found) == whole.content and len(rows(found)) == whole.rows and files(found) == whole.files
    return same and len([*cwd.glob("outputs/*/*")]) == 1, where


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

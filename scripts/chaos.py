"""Kill runs at random times and resume them; print how many ended like an uninterrupted run.

    scripts/chaos.py kills       SIGKILL, for three neurons with 0 and 2 data workers
    scripts/chaos.py ddp         SIGKILL of rank 0 of two processes
    scripts/chaos.py signals     SIGTERM and SIGINT
    scripts/chaos.py starts      runs that start at the same time
    scripts/chaos.py overrides   random overrides from pieces of Hydra's grammar
    scripts/chaos.py stacks      SIGKILL of the driver of 4 and of 8 stacked points: at random, during the first step,
                                 during a save, and twice in a row
    scripts/chaos.py sweep       60 points, 10 of which fail in different ways, with the driver killed in between

Each run is a separate `snnexp` process on real MNIST images; the runs of the sweep are regressions.
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
"""All write a checkpoint after every step; the last has two learning rates and a random encoder."""


@dataclass
class Reference:
    """An uninterrupted run."""

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
        help="repetitions; by default 5 kills per case, 10 for ddp, 10 of each signal, 12 starts, 500 overrides, 3 per "
        "case and phase of stacks, 5 of the driver of a sweep",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times")
    args = parser.parse_args()
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
        good = [trials[what](Path(folder), random.Random(args.seed), args.times) for what in args.what]
    return 0 if all(good) else 1


def kills(folder: Path, rng: random.Random, times: int | None) -> bool:
    """SIGKILL, one in five before the run directory exists, then resume."""
    cases = {
        f"{neuron} workers {workers}": [*recipe, *RUN, f"data.num_workers={workers}"]
        for neuron, recipe in NEURONS.items()
        for workers in (0, 2)
    }
    return kill_and_resume(folder, rng, cases, times or 5)


def ddp(folder: Path, rng: random.Random, times: int | None) -> bool:
    """SIGKILL of rank 0; rank 1 must end too."""
    return kill_and_resume(folder, rng, {"ddp": [*NEURONS["RLeaky"], *RUN, *DDP]}, times or 10)


def kill_and_resume(folder: Path, rng: random.Random, cases: dict[str, list[str]], times: int) -> bool:
    """Kill each case ``times`` times, and resume."""
    good = tried = torn = 0
    for name, case in cases.items():
        reference = measure(folder / name, case)
        for index in range(times):
            cwd = folder / f"{name}-{index}"
            process = start(cwd, case)
            wait_for_random_time(process, cwd, reference, rng, early=index % 5 == 0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = not ends(process.pid)
            path = directory(cwd)
            saving = path is not None and any(path.rglob(".*.tmp"))
            same, where = resumes_equal(cwd, path, case, reference)
            good, tried, torn = good + (same and not left), tried + 1, torn + saving
            note = (", while saving" if saving else "") + (", LEFT A PROCESS RUNNING" if left else "")
            print(f"{name:24} {where}{note}: {'the same' if same else 'DIFFERENT'}", flush=True)
    print(f"{good} of {tried} killed runs ended with the same weights, optimizer and metrics; {torn} kills hit a save")
    return good == tried


def ends(group: int, patience_s: float = 10.0) -> bool:
    """Return True if all processes of a group end within ``patience_s``."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def signals(folder: Path, rng: random.Random, times: int | None) -> bool:
    """SIGTERM and SIGINT at random times: exit code, one line of output, and a resumable run."""
    good = tried = 0
    case = [*NEURONS["RLeaky"], *RUN, "data.num_workers=2"]
    reference = measure(folder / "reference", case)
    for number in (signal.SIGTERM, signal.SIGINT):
        for index in range(times or 10):
            cwd = folder / f"{number.name}-{index}"
            process = start(cwd, case)
            wait_for_random_time(process, cwd, reference, rng, early=index % 5 == 0)
            process.send_signal(number)
            _, stderr = process.communicate()
            path = directory(cwd)
            reported = stderr.splitlines() == [f"snnexp: stopped by {number.name}"]
            marked = path is None or json.loads((path / "run.json").read_text())["status"] == "interrupted"
            same, where = resumes_equal(cwd, path, case, reference)
            fine = process.returncode == 128 + number and reported and marked and same
            good, tried = good + fine, tried + 1
            print(
                f"{number.name} {where}: exit {process.returncode}, {'the same' if same else 'DIFFERENT'}", flush=True
            )
            if not fine:
                print(stderr)
    print(f"{good} of {tried} signals: exit code, one line, status interrupted, and the same result after a resume")
    return good == tried


def starts(folder: Path, rng: random.Random, times: int | None) -> bool:
    """Runs that start together get separate directories."""
    # each takes half a gigabyte; the test suite starts 50 processes that only create their directories
    times = times or 12
    cwd = folder / "together"
    cwd.mkdir()
    command = [*SNNEXP, "train", "experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl"]
    started = [subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL) for _ in range(times)]
    codes = [process.wait() for process in started]
    found = [json.loads(path.read_text())["status"] for path in cwd.glob("outputs/*/*/run.json")]
    print(f"{times} runs started together: {len(found)} directories, {found.count('finished')} finished")
    return codes == [0] * times and found == ["finished"] * times


def overrides(folder: Path, rng: random.Random, times: int | None) -> bool:
    """Random overrides are composed, or rejected with a one-line error."""
    tried, refused, longest = times or 500, 0, 0.0
    for words in fuzz.overrides(tried, rng.randrange(10**6)):
        began = time.perf_counter()
        try:
            compose(words)
        except ConfigError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 200:
                print(f"{words!r}: rejected with {str(error)!r}")
                return False
        longest = max(longest, time.perf_counter() - began)
    print(
        f"{tried} random overrides: {refused} rejected in one line, {tried - refused} composed, at most {longest:.2f} s"
    )
    return True


def sweep(folder: Path, rng: random.Random, times: int | None) -> bool:
    """SIGKILL of the driver at random times, then resume; every point finishes once, or fails with its reason."""
    cwd, ways = folder / "sweep", [*faults.REASONS]
    cwd.mkdir()
    where = dict(zip(rng.sample(range(60), len(ways)), ways, strict=True))
    reasons = ",".join(f"'{where.get(point, '')}'" for point in range(60))
    environment = {**os.environ, "PYTHONPATH": str(Path(faults.__file__).parent), "SNNEXP_ALLOW_TARGETS": "faults"}
    loss = ["loss._target_=faults.Faulty", "+loss.point=${seed}", f"+loss.faults=[{reasons}]"]
    limits = ["hydra.launcher.timeout_s=10", "hydra.launcher.memory_gb=4"]
    case = [
        *("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=20", "logger=jsonl", *loss),
        *("logger.save_every_s=0", "-m", "seed=range(60)", *limits),
    ]
    command = [*SNNEXP, "train", *case]
    for kill in range(times or 5):
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
        # after more points each time
        threshold = (kill + rng.random()) * 50 / (times or 5)
        while process.poll() is None:
            found = [path.parent for path in cwd.glob("outputs/sweeps/*/*/sweep.json")]
            ended = ledger(found[0]).count("finished") if found else 0
            if ended > threshold:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
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
        f"60 points, {len(ways)} of them failing, driver killed {times or 5} times: exit {done.returncode}, "
        f"{len(finished)} finished once each, {60 - len(finished)} failed as expected, {resumed} were resumed"
    )
    return good


def stacks(folder: Path, rng: random.Random, times: int | None) -> bool:
    """SIGKILL of the driver of a stack, then resume; every member ends as in an uninterrupted stack."""
    good = tried = 0
    for name, case in STACKS.items():
        command = [*SNNEXP, "train", "-m", *STACKED, *case]
        began = time.monotonic()
        subprocess.run(command, cwd=create(folder / name), stdout=subprocess.DEVNULL, check=True)
        took_s, reference = time.monotonic() - began, members(folder / name)
        for moment in ("at random", "during the first step", "during a save", "twice in a row"):
            for index in range(times or 3):
                cwd = create(folder / f"{name}-{moment}-{index}")
                for kill in range(2 if moment == "twice in a row" else 1):
                    home = next(iter(cwd.glob("outputs/sweeps/*/*")), None)
                    again = [*SNNEXP, "resume", str(home)] if kill and home else command
                    process = subprocess.Popen(again, cwd=cwd, stdout=subprocess.DEVNULL)
                    wait_in_stack(process, cwd, moment, took_s, rng)
                    process.kill()
                    process.wait()
                    # workers end after the driver died
                    time.sleep(0.3)
                home = next(iter(cwd.glob("outputs/sweeps/*/*")), None)
                again = command if home is None else [*SNNEXP, "resume", str(home)]
                done = subprocess.run(again, cwd=cwd, capture_output=True, text=True)
                found = members(cwd) if done.returncode == 0 else {}
                steps = sorted({steps[-1] for _, steps in found.values() if steps})
                same = {point: end for point, (end, _) in found.items()} == {
                    point: end for point, (end, _) in reference.items()
                }
                good, tried = good + same, tried + 1
                print(f"{name}, {moment}, resumed at {steps}: {'the same' if same else 'DIFFERENT'}", flush=True)
                if done.returncode:
                    print(done.stdout, done.stderr)
    print(f"{good} of {tried} killed stacks ended with the same weights, optimizers and metrics in all members")
    return good == tried


def wait_in_stack(
    process: "subprocess.Popen[bytes]", cwd: Path, moment: str, took_s: float, rng: random.Random
) -> None:
    """Wait for a phase of a stack's training."""
    began = time.monotonic()
    until = rng.uniform(0.4, 1) * took_s
    while process.poll() is None:
        homes = [*cwd.glob("outputs/sweeps/*/*/runs/[0-9]*")]
        if moment == "during the first step" and homes and any((home / "checkpoints").glob("init*") for home in homes):
            break
        late = time.monotonic() - began > until
        if late and (moment != "during a save" or any(any(home.rglob(".*.tmp")) for home in homes)):
            break
        time.sleep(0.001)


def create(folder: Path) -> Path:
    folder.mkdir()
    return folder


def members(cwd: Path) -> dict[str, tuple[str, list[int]]]:
    """Return the result of each member and the steps it was resumed at, by its overrides."""
    records = {path.parent: json.loads(path.read_text()) for path in cwd.glob("outputs/sweeps/*/*/runs/*/run.json")}
    return {
        (path / "overrides.yaml").read_text(): (content(path), record.get("resumed_at_step", []))
        for path, record in records.items()
    }


def ledger(path: Path) -> list[str]:
    return [point["status"] for point in json.loads((path / "sweep.json").read_text())["points"]]


def measure(cwd: Path, case: list[str]) -> Reference:
    """Run a case without interruption, as the reference."""
    began = time.perf_counter()
    process = start(cwd, case)
    while directory(cwd) is None and process.poll() is None:
        time.sleep(0.01)
    until = time.perf_counter() - began
    path = directory(cwd)
    assert process.wait() == 0, process.communicate()[1]
    assert path is not None
    return Reference(content(path), files(path), len(rows(path)), until)


def start(cwd: Path, case: list[str]) -> subprocess.Popen[str]:
    cwd.mkdir()
    command = [*SNNEXP, "train", *case]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, **pipes, text=True, start_new_session=True)


def wait_for_random_time(
    process: subprocess.Popen[str], cwd: Path, reference: Reference, rng: random.Random, early: bool
) -> None:
    """Wait for a random time before the run directory exists, or after a random number of rows of metrics."""
    if early:
        # no signal before Python can handle it
        time.sleep(rng.uniform(0.3, reference.until_directory_s))
        return
    threshold = rng.randrange(reference.rows - 1)
    while process.poll() is None:
        path = directory(cwd)
        if path is not None and len(rows(path)) >= threshold:
            break
        time.sleep(0.002)
    # a few steps, including their saves
    time.sleep(rng.uniform(0, 0.2))


def rows(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines()


def files(path: Path) -> set[str]:
    """Return all files of a run directory except TensorBoard events, whose names contain a time and a process id."""
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.parent.name != "tensorboard"}


def directory(cwd: Path) -> Path | None:
    return next((path.parent for path in cwd.glob("outputs/*/[0-9]*/config.yaml")), None)


def resumes_equal(cwd: Path, path: Path | None, case: list[str], reference: Reference) -> tuple[bool, str]:
    """Resume, or restart without a directory; return whether the result is equal, and where it was stopped."""
    command = [*SNNEXP, "train", *case] if path is None else [*SNNEXP, "resume", str(path)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr)
        return False, "could not be resumed"
    found = directory(cwd)
    assert found is not None
    steps = json.loads((found / "run.json").read_text()).get("resumed_at_step")
    where = "had finished" if steps is None else f"resumed at step {steps[0]}"
    where = "before the directory existed" if path is None else where
    same = content(found) == reference.content and files(found) == reference.files
    same &= len(rows(found)) == reference.rows
    return same and len([*cwd.glob("outputs/*/*")]) == 1, where


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

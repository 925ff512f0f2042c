"""Write the directories of this folder, with the code of the commit in BASELINE.

tests/old/write.py      all of them again, in the place of those that are here

finished/     a run
interrupted/  the same run, stopped by SIGTERM in the middle of its third epoch
sweep/        a point that finished, failed, diverged, took too long, was interrupted, ran when the driver was
              killed, and one that was not begun
search/       two trials that finished, one that was interrupted, and one that was not begun
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TINY = (
    "experiment=regression_sqrt",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "network.hidden=[4,3]",
    "num_steps=8",
    "data.num_samples=5",
    "data.batch_size=2",
    "logger=jsonl",
    "logger.save_every_n_epochs=2",
    "logger.save_every_s=1000",
)
FAULTY = (
    "loss._target_=oldpkg.Faulty",
    "+loss.faults=['',raise,diverge,hang,wait,wait,'']",
    "+loss.calls=[]",
)
STOPPED = """
import os, signal, sys
from snnexp.cli import main
from snnexp.task import Task

step, count = Task.training_step, iter(range(100))

def stop(self, *arguments):
    if next(count) == 7:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *arguments)

Task.training_step = stop
sys.exit(main(sys.argv[1:]))
"""


def start(source: Path, cwd: Path, *command: str) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "PYTHONPATH": f"{source}:{HERE / 'parts'}", "SNNEXP_ALLOW_TARGETS": "oldpkg"}
    env |= {"OMP_NUM_THREADS": "1", "HOSTNAME": "host"}
    return subprocess.Popen([sys.executable, *command], cwd=cwd, env=env)


def run(source: Path, cwd: Path, *command: str, code: int = 0) -> None:
    process = start(source, cwd, *command)
    assert process.wait() == code, command


def wait_until(true: Callable[[], Any]) -> None:
    while not true():
        time.sleep(0.05)


def points(cwd: Path) -> list[dict[str, Any]]:
    records = [*cwd.glob("outputs/sweeps/*/*/sweep.json")]
    return json.loads(records[0].read_text())["points"] if records else []


def statuses(cwd: Path) -> list[str]:
    """Of each point; ``running`` where its run has been trained for two steps, ``starting`` before."""
    return [
        "starting" if point["status"] == "running" and not begun(cwd, point) else point["status"]
        for point in points(cwd)
    ]


def begun(cwd: Path, point: dict[str, Any]) -> bool:
    (sweep,) = cwd.glob("outputs/sweeps/*/*")
    rows = sweep / (point["run"] or "none") / "metrics.jsonl"
    return rows.exists() and len(rows.read_text().splitlines()) >= 2


def worker_of(driver: int) -> int:
    (child,) = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return int(child)


def keep(name: str, folder: Path) -> None:
    """Put a directory into the place of the one of this name; logs name the files of the machine."""
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(folder, HERE / name / folder.name, ignore=shutil.ignore_patterns(".lock", "train.log"))


def finished(source: Path, cwd: Path) -> None:
    run(source, cwd, "-m", "snnexp.cli", "train", *TINY)
    (folder,) = cwd.glob("outputs/regression_sqrt/*")
    keep("finished", folder)


def interrupted(source: Path, cwd: Path) -> None:
    run(source, cwd, "-c", STOPPED, "train", *TINY, code=143)
    (folder,) = cwd.glob("outputs/regression_sqrt/*")
    keep("interrupted", folder)


def sweep(source: Path, cwd: Path) -> None:
    launcher = ("hydra.launcher.workers=1", "hydra.launcher.threads=1", "hydra.launcher.timeout_s=8")
    driver = start(
        source,
        cwd,
        "-m",
        "snnexp.cli",
        "train",
        "-m",
        *TINY,
        *FAULTY,
        "+loss.point=range(0,7)",
        "hydra/launcher=processes",
        *launcher,
    )
    wait_until(lambda: statuses(cwd)[4:5] == ["running"])
    os.kill(worker_of(driver.pid), signal.SIGTERM)
    wait_until(lambda: statuses(cwd)[5:6] == ["running"])
    child = worker_of(driver.pid)
    driver.kill()
    driver.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    (folder,) = cwd.glob("outputs/sweeps/*/*")
    keep("sweep", folder)


def search(source: Path, cwd: Path) -> None:
    settings = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler=random",
        "hydra.launcher.workers=1",
    )
    space = ("neuron.threshold=interval(0.5,1.5)", "optimizer.lr=tag(log,interval(1e-4,1e-2))")
    driver = start(
        source,
        cwd,
        "-m",
        "snnexp.cli",
        "train",
        "-m",
        *TINY,
        *settings,
        *space,
        "trainer.max_epochs=100",
        "trainer.log_every_n_steps=50",
    )
    wait_until(lambda: statuses(cwd)[2:3] == ["running"])
    driver.send_signal(signal.SIGINT)
    driver.wait()
    (folder,) = cwd.glob("outputs/sweeps/*/*")
    keep("search", folder)


def main() -> None:
    commit = (HERE / "BASELINE").read_text().strip()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "ref"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=HERE, check=True)
        try:
            for write in (finished, interrupted, sweep, search):
                cwd = Path(folder) / write.__name__
                cwd.mkdir()
                write(tree / "src", cwd)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=HERE, check=True)


if __name__ == "__main__":
    main()

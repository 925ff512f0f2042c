"""A third-party package of parts, written from ``docs/parts.md`` alone, on the command line."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from behaviour.shell import wait_until

pytestmark = pytest.mark.slow

OUTSIDE = Path(__file__).parent / "outside"
SOURCES = Path(__file__).parents[1] / "src" / "snnexp"
CONF = ("--config-dir", str(OUTSIDE / "conf"))
RUN = ("train", *CONF, "experiment=adaptive", "logger=jsonl")
SHORT = (*RUN, "trainer.max_epochs=3")
OF_NEURONS = {"neuron.rho": (0.85, 0.95), "neuron.beta": (0.9, 1.8), "seed": (0, 1)}
GROUP_VARIABLES = {
    "optimizer.lr": (0.005, 0.01),
    "loss.scale": (5, 10),
    "encoder.keep": (0.8, 0.9),
    "surrogate.width": (1, 2),
}


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(OUTSIDE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "SNNEXP_ALLOW_TARGETS": "adaptpkg", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def snnexp(*arguments: str, cwd: Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = commands.run(arguments, cwd, environment(), timeout_s=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def only(cwd: Path, pattern: str) -> Path:
    (path,) = cwd.glob(pattern)
    return path


def only_run(cwd: Path) -> Path:
    return only(cwd, "outputs/adaptive/*/run.json").parent


def points(sweep: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((sweep / "sweep.json").read_text())["points"]
    return content


def of_point(sweep: Path, *overrides: str) -> dict[str, Any]:
    """The record of the only point with the given overrides."""
    (run,) = (
        sweep / "runs" / Path(point["run"]).name for point in points(sweep) if {*overrides} <= {*overrides_of(point)}
    )
    return record(run)


def overrides_of(point: dict[str, Any]) -> list[str]:
    overrides: list[str] = point["overrides"]
    return overrides


def test_snnexp_does_not_mention_the_package() -> None:
    assert SOURCES.is_dir()
    files = [path for path in SOURCES.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 20
    assert not [path for path in files if "adaptpkg" in path.read_text(errors="replace")]


def test_list_describes_each_argument(tmp_path: Path) -> None:
    output = snnexp("list", "neuron", "adaptive", *CONF, cwd=tmp_path).stdout.splitlines()
    rows = {line.split()[0]: line for line in output}
    assert {"neuron.beta", "neuron.alpha", "neuron.rho", "neuron.threshold", "neuron.learn_rho"} <= {*rows}
    assert re.search(r"1\.8 +a finite number from 0 to 2, or an initializer; how far", rows["neuron.beta"])
    assert re.search(r"0\.0 +a finite number from 0 to 1", rows["neuron.alpha"])
    choices = snnexp("list", "neuron", *CONF, cwd=tmp_path).stdout.splitlines()
    assert any(line.split()[:2] == ["adaptive", "Leaky"] for line in choices), "with the first line of its file"


class TestMistakes:
    """Each is reported in one line that begins with the key, before PyTorch is imported, and leaves no files."""

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("mistake", "key", "hint"),
        [
            (["neuron.bta=1"], "neuron.bta", "did you mean neuron.beta?"),
            (["neuron=adaptve"], "neuron=adaptve", "did you mean adaptive?"),
            (["surrogate.widht=2"], "surrogate.widht", "did you mean surrogate.width?"),
            (["data.noize=0"], "data.noize", "did you mean data.noise?"),
            (["optimizer.momentum=0.9"], "optimizer.momentum", "decay, lr, start, weight_decay"),
            (["+neuron.gain=2"], "neuron.gain", "rho"),
            (["neuron.beta=2.5"], "neuron.beta", "from 0 to 2"),
            (["neuron.alpha=-0.1"], "neuron.alpha", "from 0 to 1"),
            (["surrogate.width=0"], "surrogate.width", "greater than 0"),
            (["encoder.keep=1.5"], "encoder.keep", "from 0 to 1"),
            (["loss.scale=nan"], "loss.scale", "finite"),
            (["neuron.learn_beta=maybe"], "neuron.learn_beta", "true or false"),
            (["encoder=ramp"], "encoder", "sequence"),
            (["encoder=ramp", "~encoder.num_steps"], "encoder", "num_steps"),
            (["neuron.alpha=0.5", "neuron.rho=0.4"], "neuron.rho", "at least 0.5"),
            (["neuron.learn_rho=true", "neuron.beta=0"], "neuron.learn_rho", "no effect"),
            (["-m", "neuron.rho=0.9,2"], "neuron.rho", "from 0 to 1"),
            (["-m", "neuron.rho=0.9,0.5", "hydra/launcher=stacked"], "neuron.rho", "at least 0.8"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_one_line(self, tmp_path: Path, mistake: list[str], key: str, hint: str) -> None:
        done = snnexp(*RUN, *mistake, cwd=tmp_path, code=2)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"snnexp: {key}: ") or line.startswith(f"snnexp: {key}, "), line
        assert hint in line

    @pytest.mark.parametrize("mistake", ["neuron.bta=1", "neuron.beta=2.5", "neuron.rho=0.1"])
    def test_is_reported_before_torch_is_imported(self, tmp_path: Path, mistake: str) -> None:
        script = "import sys; from snnexp.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
        words = [sys.executable, "-c", script, *RUN, mistake]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2", "False"]
        assert "torch" not in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of the recipe as it is, with its figures."""
    cwd = tmp_path_factory.mktemp("finished")
    snnexp("train", *CONF, "experiment=adaptive", cwd=cwd)
    return cwd


@pytest.mark.slow
class TestRun:
    def test_learns(self, finished: Path) -> None:
        entries = record(only_run(finished))
        assert (entries["status"], entries["exit_code"]) == ("finished", 0)
        assert entries["metrics"]["test/accuracy"] > 0.6, "of three classes"

    def test_eval_gives_what_the_run_reported(self, finished: Path) -> None:
        run = only_run(finished)
        measured = json.loads(snnexp("eval", str(run), "--json", cwd=finished).stdout)
        reported = record(run)["metrics"]
        assert {"test/loss", "test/accuracy", "test/synops"} <= {*measured}
        assert measured == {name: reported[name] for name in measured}

    def test_eval_of_another_encoder_differs(self, finished: Path) -> None:
        run = only_run(finished)
        measured = json.loads(snnexp("eval", str(run), "encoder.keep=0.3", "--json", cwd=finished).stdout)
        assert measured["test/synops/hidden1"] < 0.5 * record(run)["metrics"]["test/synops/hidden1"]

    def test_a_number_that_is_in_the_checkpoint_cannot_be_changed(self, finished: Path) -> None:
        done = snnexp("eval", str(only_run(finished)), "neuron.rho=0.99", cwd=finished, code=2)
        (line,) = done.stderr.splitlines()
        assert line.startswith("snnexp: neuron.rho: ")

    def test_runs_lists_it(self, finished: Path) -> None:
        run = only_run(finished)
        head, row = snnexp("runs", cwd=finished).stdout.splitlines()
        assert head.split()[:2] == ["status", "age"]
        assert row.startswith("finished ")
        assert run.name in row
        words = ("runs", "outputs", "--json", "neuron.beta>1")
        (listed,) = json.loads(snnexp(*words, cwd=finished).stdout)
        assert listed["metrics"] == record(run)["metrics"]
        assert json.loads(snnexp("runs", "outputs", "--json", "neuron.beta<1", cwd=finished).stdout) == []

    def test_report(self, finished: Path) -> None:
        run = only_run(finished)
        snnexp("report", str(run), cwd=finished)
        page = (run / "report.html").read_text()
        assert "experiment=adaptive" in page
        assert "accuracy" in page
        assert (run / "figures" / "spike_raster.png").is_file()

    def test_beta_above_one_and_alpha_zero_are_accepted(self, tmp_path: Path) -> None:
        snnexp(*SHORT, "neuron.beta=1.8", "neuron.alpha=0", "trainer.max_epochs=1", cwd=tmp_path)
        assert re.search(r"beta: 1\.8\n", (only_run(tmp_path) / "config.yaml").read_text())


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    words = (*RUN, "trainer.max_epochs=20", "neuron.learn_beta=true")
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    snnexp(*words, cwd=tmp_path / "alone")
    here = tmp_path / "stopped"
    with commands.Command(words, here, environment()) as process:
        wait_until(lambda: any(path.stat().st_size for path in here.glob("outputs/adaptive/*/metrics.jsonl")))
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    run = only_run(here)
    assert record(run)["status"] == "interrupted"
    left = (only_run(tmp_path / "alone") / "metrics.jsonl").read_bytes()
    assert len((run / "metrics.jsonl").read_bytes()) < len(left)
    snnexp("resume", str(run), cwd=here)
    assert (run / "metrics.jsonl").read_bytes() == left
    assert record(run)["metrics"] == record(only_run(tmp_path / "alone"))["metrics"]


class TestDataset:
    """A torch Dataset of the package with random samples, without a file in ``conf``."""

    words = (
        *(
            "train",
            "data=dataset",
            "data.dataset._target_=adaptpkg.bumps.Bumps",
            "+data.dataset.noise=0.1",
            "name=bumps",
        ),
        *("network.hidden=[24]", "loss=mse_count", "num_steps=10", "optimizer.lr=0.02", "trainer=cpu", "logger=jsonl"),
        *("data.batch_size=16", "data.val_fraction=0.25"),
    )

    @pytest.mark.slow
    def test_trains_the_same_with_workers_and_after_an_interruption(self, tmp_path: Path) -> None:
        alone, stopped = tmp_path / "alone", tmp_path / "stopped"
        for folder in (alone, stopped):
            folder.mkdir()
        snnexp(*self.words, "trainer.max_epochs=40", cwd=alone)
        words = (*self.words, "trainer.max_epochs=40", "data.num_workers=2")
        with commands.Command(words, stopped, environment()) as process:
            wait_until(lambda: any(path.stat().st_size for path in stopped.glob("outputs/bumps/*/metrics.jsonl")))
            process.send_signal(signal.SIGINT)
            _, output = process.communicate(timeout=60)
        assert process.returncode == 130, output
        first, run = (only(folder, "outputs/bumps/*/run.json").parent for folder in (alone, stopped))
        left = (first / "metrics.jsonl").read_bytes()
        assert len((run / "metrics.jsonl").read_bytes()) < len(left)
        snnexp("resume", str(run), "data.num_workers=0", cwd=stopped)
        assert (run / "metrics.jsonl").read_bytes() == left
        assert record(run)["metrics"] == record(first)["metrics"]
        assert record(run)["metrics"]["test/accuracy"] > 0.6, "of three classes"
        assert record(run)["samples"] == {"train": 53, "val": 24, "test": 19}

    @pytest.mark.slow
    def test_a_stack_equals_separate_runs(self, tmp_path: Path) -> None:
        words = (*self.words, "trainer.max_epochs=2", "data.scale=standard")
        printed = snnexp(*words, "-m", "seed=0,1", "hydra/launcher=stacked", cwd=tmp_path).stdout
        assert printed.count("stack of 2") == 2
        sweep = only(tmp_path, "outputs/sweeps/bumps/*/sweep.json").parent
        snnexp(*words, "seed=1", cwd=tmp_path)
        expected = record(only(tmp_path, "outputs/bumps/*/run.json").parent)["metrics"]
        assert of_point(sweep, "seed=1")["metrics"] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow
class TestSweeps:
    def test_a_sweep(self, tmp_path: Path) -> None:
        words = ("-m", "surrogate.width=1,2", "hydra.launcher.workers=1")
        printed = snnexp(*SHORT, *words, cwd=tmp_path).stdout
        sweep = only(tmp_path, "outputs/sweeps/adaptive/*/sweep.json").parent
        assert [point["status"] for point in points(sweep)] == ["finished", "finished"]
        assert "sweep outputs/sweeps/adaptive/" in printed
        snnexp("report", str(sweep), cwd=tmp_path)
        assert "surrogate.width" in (sweep / "report.html").read_text()

    @pytest.mark.parametrize("numbers", [OF_NEURONS, GROUP_VARIABLES], ids=["neurons", "others"])
    def test_a_stack_equals_separate_runs(self, tmp_path: Path, numbers: dict[str, tuple[float, float]]) -> None:
        count = 2 ** len(numbers)
        grid = [f"{key}={','.join(map(str, values))}" for key, values in numbers.items()]
        printed = snnexp(*SHORT, "-m", "hydra/launcher=stacked", *grid, cwd=tmp_path).stdout
        sweep = only(tmp_path, "outputs/sweeps/adaptive/*/sweep.json").parent
        assert [point["status"] for point in points(sweep)] == ["finished"] * count
        assert printed.count(f"stack of {count}") == count
        losses = {of_point(sweep, *overrides_of(point))["metrics"]["test/loss"] for point in points(sweep)}
        assert len(losses) == count, "each number has an effect"
        for end in (0, 1):
            chosen = [f"{key}={values[end]}" for key, values in numbers.items()]
            alone = tmp_path / str(end)
            alone.mkdir()
            snnexp(*SHORT, *chosen, cwd=alone)
            expected = record(only_run(alone))["metrics"]
            assert of_point(sweep, *chosen)["metrics"] == pytest.approx(expected, rel=1e-5, abs=1e-5)

    def test_a_statistic_and_the_parts_that_read_it(self, tmp_path: Path) -> None:
        """A loss with its own decoder, a metric and a penalty: in a stack, and alone."""
        late = ("loss=late_entropy", "measure=[least_recall,macro_f1]", "regularizer=late_silence")
        numbers = ("loss.scale=0.5", "regularizer.late_silence.weight=0.1")
        grid = ("loss.scale=0.5,1", "regularizer.late_silence.weight=0,0.1")
        printed = snnexp(*SHORT, *late, "-m", "hydra/launcher=stacked", *grid, cwd=tmp_path).stdout
        assert printed.count("stack of 4") == 4
        sweep = only(tmp_path, "outputs/sweeps/adaptive/*/sweep.json").parent
        alone = tmp_path / "alone"
        alone.mkdir()
        shown = snnexp(*SHORT, *late, *numbers, cwd=alone).stdout
        assert "test/accuracy (late_votes)" in shown
        measured = record(only_run(alone))["metrics"]
        assert {"test/least_recall", "test/macro_f1", "test/penalty/late_silence"} <= measured.keys()
        assert of_point(sweep, *numbers)["metrics"] == pytest.approx(measured, rel=1e-5, abs=1e-5)
        evaluated = json.loads(snnexp("eval", str(only_run(alone)), "--json", cwd=alone).stdout)
        assert evaluated == {name: measured[name] for name in evaluated}
        snnexp("report", str(sweep), "--metric", "test/least_recall", cwd=tmp_path)
        assert "best first (higher is better)" in (sweep / "report.html").read_text()

    def test_a_search(self, tmp_path: Path) -> None:
        search = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "neuron.rho=interval(0.8,0.99)")
        printed = snnexp(*RUN, "trainer.max_epochs=2", *search, "hydra.launcher.workers=1", cwd=tmp_path).stdout
        sweep = only(tmp_path, "outputs/sweeps/adaptive/*/sweep.json").parent
        assert [point["status"] for point in points(sweep)] == ["finished"] * 3
        assert "val/accuracy" in printed
        drawn = [
            float(dict(word.split("=", 1) for word in overrides_of(point))["neuron.rho"]) for point in points(sweep)
        ]
        assert len({*drawn}) == 3
        assert all(0.8 <= value <= 0.99 for value in drawn)
        assert (sweep / "conf" / "experiment" / "best.yaml").is_file()

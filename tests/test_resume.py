"""Resume: an interrupted run ends bit-identical to an uninterrupted one."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import content
from kills import KilledError

from snnexp.cli import main
from snnexp.errors import CheckpointError, ConfigError, InUseError
from snnexp.experiment import compose, resume, run
from snnexp.record.run import Run
from snnexp.training.task import Task

pytestmark = pytest.mark.slow

TINY = [
    "experiment=regression_sqrt",
    "trainer=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=4",
    "network.hidden=[6,5]",
    "num_steps=8",
    "data.num_samples=5",
    "data.batch_size=2",
    "logger=jsonl",
    "logger.save_every_s=0",
]
STEPS_PER_EPOCH = 3
IMAGES = [
    "experiment=mnist_rleaky_count",
    "trainer=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=3",
    "network.hidden=[7]",
    "num_steps=5",
    "data.batch_size=8",
    "data.val_size=8",
    "logger=jsonl",
    "logger.save_every_s=0",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run a config, end it in one training step or validation batch, and return its directory."""

    def start(cfg: Any, step: int, hook: str = "training_step") -> Path:
        original = getattr(Task, hook)
        count = iter(range(10**6))

        def die(self: Task, *arguments: Any) -> Any:
            if next(count) == step:
                raise KilledError
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Task, hook, die)
            before = set(Path("outputs").rglob("run.json"))
            with pytest.raises(KilledError):
                run(cfg)
        (made,) = set(Path("outputs").rglob("run.json")) - before
        return made.parent

    return start


NEURONS = {
    "leaky": [],
    "rleaky": ["neuron=rleaky", "readout=leaky"],
    "parametrized_lif": ["neuron=parametrized_lif", "readout=leaky_integrator", "surrogate=super_spike"],
    "cosine": ["optimizer.schedule=cosine"],
    "momentum": ["optimizer=sgd"],
    # the best epoch is not the last
    "unsteady": ["optimizer.lr=0.5", "logger.save_every_n_epochs=1"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
}


@pytest.mark.slow
class TestExact:
    @pytest.mark.parametrize("kind", NEURONS)
    def test_stopped_in_any_step(self, kind: str, killed_at: Callable[..., Path]) -> None:
        cfg = compose([*TINY, *NEURONS[kind]])
        whole = run(cfg)
        # within an epoch and at its ends; for one case, at every step
        steps = range(4 * STEPS_PER_EPOCH) if kind == "leaky" else (0, 4, 5, 11)
        assert len([row for row in Run(whole.path).metrics() if "train/epoch_loss" in row]) == 4
        for step in steps:
            path = killed_at(cfg, step)
            record = resume(path)
            assert content(path) == content(whole.path), f"killed in step {step}"
            assert record.metrics == whole.metrics
            assert Run(path).read()["resumed_at_step"] == [step]

    @pytest.mark.parametrize("every_s", [0, 1000])
    @pytest.mark.parametrize("encoder", ["bernoulli", "constant"])
    @pytest.mark.usefixtures("tiny_mnist")
    def test_stopped_in_training_or_validation(
        self, encoder: str, every_s: int, killed_at: Callable[..., Path]
    ) -> None:
        cfg = compose([*IMAGES, f"encoder={encoder}", f"logger.save_every_s={every_s}"])
        whole = run(cfg)
        for hook, step in [("training_step", 2), ("training_step", 4), ("training_step", 9), ("validation_step", 1)]:
            path = killed_at(cfg, step, hook)
            record = resume(path)
            assert content(path) == content(whole.path), f"killed in {hook} {step}"
            assert record.metrics == whole.metrics

    @pytest.mark.usefixtures("tiny_mnist")
    def test_stopped_in_the_test_twice(self, killed_at: Callable[..., Path]) -> None:
        cfg = compose([*IMAGES, "encoder=bernoulli", "trainer.limit_batches=2"])
        whole = run(cfg)
        for hook, step in (("test_step", 1), ("training_step", 3)):
            path = killed_at(cfg, step, hook)
            resume(path)
            assert content(path) == content(whole.path)

    def test_stopped_repeatedly(self, killed_at: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        cfg = compose([*TINY, "trainer.max_epochs=3"])
        whole = run(cfg)
        path = killed_at(cfg, 2)
        original, calls = Task.training_step, 0

        def every_third(self: Task, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise KilledError
            return original(self, *arguments)

        monkeypatch.setattr(Task, "training_step", every_third)
        for _ in range(10):
            try:
                resume(path)
            except KilledError:
                continue
            break
        assert content(path) == content(whole.path)
        assert Run(path).read()["resumed_at_step"] == [2, 4, 6, 8]

    def test_a_different_run_compares_as_different(self, killed_at: Callable[..., Path]) -> None:
        """Another seed, or one more step, gives another result."""
        whole = run(compose([*TINY, "trainer.max_epochs=1"]))
        others = [run(compose([*TINY, *change])) for change in (["trainer.max_epochs=1", "seed=1"], [])]
        assert len({content(record.path) for record in (whole, *others)}) == 3

    def test_tensorboard_curves_are_complete(self, killed_at: Callable[..., Path]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        def curve(path: Path) -> list[tuple[int, float]]:
            events = EventAccumulator(str(path / "tensorboard"))
            events.Reload()
            assert [tag for tag in events.Tags()["scalars"] if tag == "train/loss"]
            return [(event.step, event.value) for event in events.Scalars("train/loss")]

        cfg = compose([*TINY, "logger=tensorboard", "logger.save_every_s=1000", "logger.save_every_n_epochs=2"])
        whole = run(cfg)
        path = killed_at(cfg, 10)
        # TensorBoard sorts files by the second in their names, then by process id
        time.sleep(1.1)
        resume(path)
        assert curve(path) == curve(whole.path)


class TestWhatMayChange:
    @pytest.fixture
    def stopped(self, killed_at: Callable[..., Path]) -> Path:
        return killed_at(compose(TINY), 7)

    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            ("optimizer.lr=0.5", "optimizer.lr: 0.001 -> 0.5"),
            ("seed=4", "seed: 0 -> 4"),
            ("neuron.beta=0.5", "neuron.beta: "),
            ("network.hidden=[6,6]", "network.hidden: [6, 5] -> [6, 6]"),
            ("data.batch_size=3", "data.batch_size: 2 -> 3"),
            ("kernel=reference", "kernel: auto -> reference"),
            ("trainer.max_epochs=3", "trainer.max_epochs: 4 -> 3"),
        ],
    )
    def test_keys_that_affect_the_results_may_not(self, stopped: Path, override: str, sentence: str) -> None:
        before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError) as caught:
            resume(stopped, [override])
        assert str(caught.value).startswith(sentence)
        assert caught.value.exit_code == 2
        assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            ("lr: 0.001", "lr: 0.002", "optimizer.lr: 0.001 -> 0.002, and the run so far depends on it"),
            ("- 5\n", "- 9\n", "network.hidden: [6, 5] -> [6, 9], and"),
        ],
    )
    def test_an_edited_config_is_detected(self, stopped: Path, old: str, new: str, sentence: str) -> None:
        file = stopped / "config.yaml"
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))
        with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
            resume(stopped)

    def test_logging_keys_may(self, stopped: Path) -> None:
        assert resume(stopped, ["logger.save_every_s=100", "logger.tensorboard=true"]).status == "finished"
        assert (stopped / "tensorboard").exists()

    @pytest.mark.slow
    def test_a_run_can_be_extended_before_and_after_its_end(self, stopped: Path) -> None:
        longer = run(compose([*TINY, "trainer.max_epochs=6"]))
        resume(stopped, ["trainer.max_epochs=5"])
        record = resume(stopped, ["trainer.max_epochs=6"])
        assert (stopped / "metrics.jsonl").read_bytes() == (longer.path / "metrics.jsonl").read_bytes()
        assert record.metrics == longer.metrics
        assert "max_epochs: 6" in (stopped / "config.yaml").read_text()

    @pytest.mark.slow
    def test_max_epochs_may_not_with_a_schedule_that_depends_on_it(self, killed_at: Callable[..., Path]) -> None:
        path = killed_at(compose([*TINY, "optimizer.schedule=cosine"]), 7)
        with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: 4 -> 5, and the learning rates"):
            resume(path, ["trainer.max_epochs=5"])
        resume(path)

    @pytest.mark.parametrize("override", ["optimizer=sgd", "+neuron.x=1", "~seed", "seed=1,2", "neuron.bta=1", "seed"])
    def test_only_existing_keys_may(self, stopped: Path, override: str) -> None:
        with pytest.raises(ConfigError):
            resume(stopped, [override])

    def test_a_finished_run_is_not_changed(self, capsys: pytest.CaptureFixture[str]) -> None:
        record = run(compose(TINY))
        before = {path: path.read_bytes() for path in record.path.rglob("*") if path.is_file()}
        capsys.readouterr()
        again = resume(record.path)
        assert (again.status, again.metrics) == ("finished", record.metrics)
        assert "is already finished, nothing is left to do" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in record.path.rglob("*") if path.is_file()} == before


class TestRuns:
    @pytest.mark.slow
    def test_a_run_in_use_is_not_changed(self, killed_at: Callable[..., Path]) -> None:
        path = killed_at(compose(TINY), 7)
        script = (
            "import sys; from pathlib import Path; from snnexp.record.run import Run\n"
            "run = Run.open(Path(sys.argv[1])); run.lock(); print('locked', flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InUseError) as caught:
            resume(path)
        assert caught.value.exit_code == 6
        other.communicate()
        resume(path)

    @pytest.mark.slow
    def test_a_run_moved_to_a_name_with_spaces_and_accents(
        self, killed_at: Callable[..., Path], tmp_path: Path
    ) -> None:
        whole = run(compose(TINY))
        path = killed_at(compose(TINY), 7)
        moved = tmp_path / "größere Läufe 😀" / "mein Lauf"
        moved.parent.mkdir()
        shutil.move(path, moved)
        resume(moved)
        assert content(moved) == content(whole.path)

    @pytest.mark.slow
    def test_a_run_killed_before_its_first_checkpoint(self, killed_at: Callable[..., Path]) -> None:
        whole = run(compose(TINY))
        path = killed_at(compose(TINY), 0)
        for file in (path / "checkpoints").iterdir():
            file.unlink()
        resume(path)
        assert content(path) == content(whole.path)

    def test_a_run_without_its_checkpoints_is_not_restarted(self, killed_at: Callable[..., Path]) -> None:
        path = killed_at(compose(TINY), 7)
        for file in (path / "checkpoints").iterdir():
            file.unlink()
        with pytest.raises(CheckpointError, match="no checkpoint is left"):
            resume(path)

    @pytest.mark.slow
    def test_a_run_killed_in_its_test_reports_its_last_validation(
        self, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(compose(IMAGES))

        def killed(self: Task) -> None:
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(Task, "on_test_start", killed)
            with pytest.raises(KilledError):
                run(compose(IMAGES))
        (path,) = (path for path in whole.path.parent.iterdir() if path != whole.path)
        assert resume(path).metrics == whole.metrics
        assert Run(path).read()["metrics"] == Run(whole.path).read()["metrics"]
        assert "val/loss" in whole.metrics

    @pytest.mark.slow
    def test_a_run_is_locked_until_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = (
            "import sys; from pathlib import Path; from snnexp.record.run import Run; Run(Path(sys.argv[1])).lock()"
        )
        seen = []

        def look(self: Task) -> None:
            (path,) = Path("outputs/regression_sqrt").iterdir()
            done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
            seen.append(done.stderr.splitlines()[-1])
            with pytest.raises(InUseError, match="in use by this process"):
                resume(path)

        monkeypatch.setattr(Task, "on_train_end", look)
        monkeypatch.setattr(Task, "on_test_end", look)
        run(compose(TINY))
        assert len(seen) == 2
        assert all(f"in use by process {os.getpid()}" in line for line in seen)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("metrics.jsonl", b"garbage\n"),
            ("metrics.jsonl", None),
            ("run.json", None),
            ("run.json", b"{"),
            (".lock", None),
            ("config.yaml", None),
            ("config.yaml", b"neuron: &a [*a]"),
            ("config.yaml", b"{"),
        ],
    )
    def test_a_run_from_elsewhere_with_invalid_files(
        self, name: str, content: bytes | None, killed_at: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = killed_at(compose(TINY), 7)
        (path / name).unlink()
        if content is None:
            os.mkfifo(path / name)
        else:
            (path / name).write_bytes(content)
        capsys.readouterr()
        assert main(["resume", str(path)]) in (2, 5)
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert len(line) <= 200

    def test_a_backup_of_hard_links_is_not_written_to(self, killed_at: Callable[..., Path], tmp_path: Path) -> None:
        path = killed_at(compose(TINY), 7)
        os.link(path / "metrics.jsonl", tmp_path / "backup")
        with pytest.raises(CheckpointError, match="a link"):
            resume(path)

    def test_a_changed_number_of_threads_is_reported(
        self, killed_at: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = killed_at(compose(TINY), 7)
        Run(path).update(threads=17)
        resume(path)
        assert "snnexp: threads: 17 -> 1, so results may differ in the last digits" in capsys.readouterr().err

    def test_a_resumed_diverged_run_diverges_again(self) -> None:
        from snnexp.errors import DivergedError

        cfg = compose([*TINY, "optimizer=sgd", "optimizer.lr=1e30"])
        with pytest.raises(DivergedError):
            run(cfg)
        (path,) = Path("outputs/regression_sqrt").iterdir()
        before = (path / "metrics.jsonl").read_bytes()
        with pytest.raises(DivergedError):
            resume(path)
        assert (path / "metrics.jsonl").read_bytes() == before
        assert Run(path).read()["status"] == "diverged"


class TestDisk:
    @pytest.mark.slow
    def test_a_full_disk_at_any_write_loses_nothing(
        self,
        killed_at: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        cfg = compose([*TINY, "trainer.max_epochs=3"])
        whole = run(cfg)
        stopped = killed_at(cfg, 4)
        last, write = (stopped / "checkpoints" / "last.ckpt").read_bytes(), os.write
        for number in range(20):
            path = Path(shutil.copytree(stopped, tmp_path / f"run{number}"))
            count = iter(range(10**6))

            def full(handle: int, data: bytes, count: Iterator[int] = count, number: int = number) -> int:
                if next(count) < number:
                    return write(handle, data)
                # a nearly full disk accepts part of a write
                if len(data) > 100:
                    write(handle, bytes(data[:50]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            capsys.readouterr()
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                assert main(["resume", str(path)]) == 74
            (line,) = [line for line in capsys.readouterr().err.splitlines() if "is dead" not in line]
            assert line == "snnexp: disk: No space left on device"
            if number < 5:
                assert (path / "checkpoints" / "last.ckpt").read_bytes() == last
            assert not list(path.rglob("*.tmp"))
            assert main(["resume", str(path)]) == 0
            assert content(path) == content(whole.path), f"write {number}"

    def test_a_start_on_a_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(handle: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            assert main(["train", *TINY]) == 74
        assert capsys.readouterr().err == "snnexp: disk: No space left on device\n"
        assert [path for path in Path("outputs").rglob("*") if path.is_file()] == []
        assert list(Path("outputs/regression_sqrt").iterdir()) == []


class TestCommandLine:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("typed", "code", "words"),
        [
            (["resume"], 2, "resume: the following arguments are required: RUN"),
            (["resume", "nowhere"], 2, "nowhere: no such directory"),
            (["resume", "."], 2, ".: not the directory of a run"),
            (["resume", "RUN", "optimizer.lr=0.5"], 2, "optimizer.lr: 0.001 -> 0.5"),
            (["resume", "RUN", "neuron.bta=0.5"], 2, "neuron.bta: unknown key"),
            (["resume", "RUN", "--force"], 2, "resume: unrecognized arguments: --force"),
            (["eval"], 2, "eval: the following arguments are required: RUN"),
            (["eval", "RUN", "--split", "all"], 2, "invalid choice: 'all'"),
            (["eval", "RUN", "--split", "val"], 2, "split: got val, these data have test, train"),
            (["eval", "RUN", "--ckpt", "nowhere"], 5, "nowhere: no such checkpoint"),
            (["evl", "RUN"], 2, "evl: no such command, did you mean eval?"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_errors_are_reported_in_one_line(
        self,
        typed: list[str],
        code: int,
        words: str,
        killed_at: Callable[..., Path],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = killed_at(compose(TINY), 7)
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main([word.replace("RUN", str(path)) for word in typed]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("snnexp: ")
        assert words in line
        assert len(line) <= 200
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    @pytest.mark.slow
    def test_eval_as_table_and_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        record = run(compose(TINY))
        capsys.readouterr()
        assert main(["eval", str(record.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == record.metrics
        assert main(["eval", str(record.path)]) == 0
        assert "test/relative_error" in capsys.readouterr().out

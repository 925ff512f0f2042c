"""Early stopping, and schedules that monitor a metric: single, stacked, interrupted and resumed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ends import content
from kills import KilledError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from snnexp import experiment
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose, resume, run
from snnexp.record import checkpoint as checkpoints
from snnexp.record.run import Run
from snnexp.sweeps import grouping
from snnexp.training import stacked
from snnexp.training.early_stopping import EarlyStopping
from snnexp.training.members import Member, Observer
from snnexp.training.stack import Stacked
from snnexp.training.stacked import Outcome, Point
from snnexp.training.task import Task

IMAGES = [
    *("experiment=mnist_rleaky_count", "trainer=cpu", "trainer.log_every_n_steps=2", "trainer.max_epochs=6"),
    *("network.hidden=[7]", "num_steps=5", "data.batch_size=8", "data.val_size=8", "logger=jsonl"),
    *("logger.save_every_s=0", "logger.save_every_n_epochs=4"),
]
BATCHES = 4
UNSTEADY = "optimizer.lr=0.3"
STOPPING = "trainer.early_stopping=1"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def dying(kind: type, hook: str, at: int) -> Iterator[None]:
    """Kill the process in this call of a method."""
    original, count = getattr(kind, hook), iter(range(10**6))

    def die(self: Any, *arguments: Any) -> Any:
        if next(count) == at:
            raise KilledError
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, hook, die)
        with pytest.raises(KilledError):
            yield


def killed(cfg: Any, hook: str, at: int) -> Path:
    before = {*Path("outputs").rglob("run.json")}
    with dying(Task, hook, at):
        run(cfg)
    (made,) = {*Path("outputs").rglob("run.json")} - before
    return made.parent


def checkpoint(path: Path | None, name: str = "last") -> dict[str, Any]:
    assert path is not None
    found: dict[str, Any] = torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


class TestPlateau:
    CFG = ("schedule=plateau", "schedule.patience=0", "schedule.factor=0.5", "trainer.max_epochs=4", UNSTEADY)

    def test_the_rate_follows_the_definition(self) -> None:
        """lr factor^k, with k the number of epochs that do not improve the best value by the threshold."""
        path = run(compose([*IMAGES, *self.CFG])).path
        losses = [row["val/loss"] for row in Run(path).metrics() if "val/loss" in row]
        best, rate = losses[0], 0.3
        for loss in losses[1:]:
            if loss < best * (1 - 1e-4):
                best = loss
            else:
                rate *= 0.5
        assert checkpoint(path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)
        assert rate < 0.3

    @pytest.mark.slow
    def test_resumed_within_an_epoch_and_at_its_end_it_is_bit_identical(self) -> None:
        cfg = compose([*IMAGES, *self.CFG])
        whole = run(cfg)
        for step in (BATCHES, BATCHES + 2):
            path = killed(cfg, "training_step", step)
            assert resume(path).metrics == whole.metrics
            assert content(path) == content(whole.path), f"killed in step {step}"
        with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: 4 -> 3, and a run cannot be shortened"):
            resume(killed(cfg, "training_step", 5), ["trainer.max_epochs=3"])

    @pytest.mark.parametrize(
        ("overrides", "sentence"),
        [
            (["data.val_size=0"], "schedule.measure: got val/loss, but there is no validation split"),
            (
                ["schedule.measure=val/los"],
                "schedule.measure: got val/los, must be one of train/epoch_loss, val/loss",
            ),
            (
                ["schedule.measure=val/firing_rate/hidden1"],
                "schedule.measure: got val/firing_rate/hidden1, must be one of ",
            ),
        ],
    )
    def test_a_metric_that_is_not_logged_is_rejected(self, overrides: list[str], sentence: str) -> None:
        with pytest.raises(ConfigError) as caught:
            run(compose([*IMAGES, *self.CFG, *overrides]))
        assert str(caught.value).startswith(sentence)
        assert not Path("outputs").exists()

    @pytest.mark.parametrize(("measure", "mode"), [("macro_f1", "max"), ("loss", "min"), ("undecided", "min")])
    def test_a_measure_defines_whether_higher_is_better(self, measure: str, mode: str) -> None:
        words = [*IMAGES, *self.CFG, "measure=macro_f1", f"schedule.measure=val/{measure}"]
        task = build(compose(words)).task
        made = task.make_optimizer([*task.parameters()], 1)
        assert made["lr_scheduler"]["scheduler"].mode == mode

    def test_it_is_not_stacked(self) -> None:
        obstacle = grouping.obstacle(compose([*IMAGES, *self.CFG]))
        assert obstacle == "snnexp.schedules.Plateau is not stackable"


class TestAlone:
    @pytest.fixture
    def cfg(self) -> Any:
        return compose([*IMAGES, UNSTEADY, STOPPING])

    def test_it_stops_and_reports_it(self, cfg: Any, capsys: pytest.CaptureFixture[str]) -> None:
        path = run(cfg).path
        losses = [row["val/loss"] for row in Run(path).metrics() if "val/loss" in row]
        epochs = len(losses)
        assert epochs < 6
        assert losses[-1] >= min(losses[:-1]), "the last epoch is no improvement"
        assert [*losses[:-1]] == sorted(losses[:-1], reverse=True), "all earlier ones are"
        stop = {"epoch": epochs, "step": epochs * BATCHES, "reason": "val/loss did not improve for 1 epoch"}
        assert Run(path).read()["stopped_early"] == stop
        assert Run(path).read()["status"] == "finished"
        said = f"stopped early after epoch {epochs}, step {epochs * BATCHES}: val/loss did not improve for 1 epoch"
        assert said in capsys.readouterr().out.splitlines()
        row = [*Run(path).metrics()][-1]
        assert (row["step"], row["epoch"]) == (epochs * BATCHES, epochs), "the row of the test"
        assert Run(path).read()["metrics"]["val/loss"] == losses[-1]
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        resume(path)
        resume(path, ["trainer.max_epochs=9"])
        said = capsys.readouterr().out
        assert "is already finished, nothing is left to do" in said
        assert "it stopped early, and would stop at the same step with more epochs" in said
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before

    @pytest.mark.slow
    def test_killed_anywhere_it_is_bit_identical(self, cfg: Any) -> None:
        whole = run(cfg)
        stop = Run(whole.path).read()["stopped_early"]
        for hook, at in (("training_step", stop["step"] - BATCHES), ("test_step", 0), ("test_step", 1)):
            path = killed(cfg, hook, at)
            assert resume(path).metrics == whole.metrics
            assert content(path) == content(whole.path), f"killed in {hook} {at}"
            assert Run(path).read()["stopped_early"] == stop

    @pytest.mark.slow
    def test_an_extended_run_stops_at_the_same_step(self, cfg: Any) -> None:
        whole = run(cfg)
        epochs = Run(whole.path).read()["stopped_early"]["epoch"]
        shorter = run(compose([*IMAGES, UNSTEADY, STOPPING, f"trainer.max_epochs={epochs}"]))
        assert "stopped_early" not in Run(shorter.path).read(), "it has trained all epochs"
        resume(shorter.path, ["trainer.max_epochs=6"])
        assert Run(shorter.path).read()["stopped_early"] == Run(whole.path).read()["stopped_early"]
        assert Run(shorter.path).read()["metrics"] == whole.metrics

    def test_without_a_validation_split_it_is_rejected(self) -> None:
        with pytest.raises(ConfigError, match=r"^trainer\.early_stopping: got 1, but there is no validation split"):
            compose([*IMAGES, STOPPING, "data.val_size=0"])

    @pytest.mark.slow
    def test_a_stopped_run_evaluates_data_without_a_validation_split(self) -> None:
        path = run(compose([*IMAGES, UNSTEADY, STOPPING, "schedule=plateau"])).path
        metrics = Run(path).read()["metrics"]
        for overrides in ([], ["data.val_size=0"]):
            assert experiment.evaluate(path, overrides=overrides)["test/loss"] == metrics["test/loss"]
        with pytest.raises(ConfigError, match=r"^trainer\.early_stopping: has no effect on an evaluation"):
            experiment.evaluate(path, overrides=["trainer.early_stopping=null"])

    def test_the_patience_cannot_be_changed(self, cfg: Any) -> None:
        path = killed(cfg, "training_step", 2)
        with pytest.raises(ConfigError, match=r"^trainer\.early_stopping: 1 -> 2, and the run so far depends on it"):
            resume(path, ["trainer.early_stopping=2"])


class StopAt(Callback):
    """Ends the training after n steps, like a user-defined callback."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


class TestLightningCallbacks:
    def test_early_stopping_is_recorded(self) -> None:
        cfg = compose([*IMAGES, UNSTEADY])
        path = run(cfg, watching=[LightningEarlyStopping("val/loss", patience=1)]).path
        assert Run(path).read()["stopped_early"]["reason"] == "EarlyStopping stopped it"
        own = run(compose([*IMAGES, UNSTEADY, STOPPING])).path
        assert Run(path).read()["metrics"] == Run(own).read()["metrics"]
        assert content(path) == content(own)

    @pytest.mark.slow
    def test_a_stop_within_an_epoch_leaves_a_valid_checkpoint(self) -> None:
        cfg, step = compose([*IMAGES, UNSTEADY]), BATCHES + 2
        whole = run(cfg, watching=[StopAt(step)])
        stop = {"epoch": 1, "step": step, "reason": "a callback set trainer.should_stop"}
        assert Run(whole.path).read()["stopped_early"] == stop
        assert (checkpoint(whole.path)["epoch"], checkpoint(whole.path)["batch"]) == (1, 2)
        before = {*Path("outputs").rglob("run.json")}
        with dying(Task, "test_step", 0):
            run(cfg, watching=[StopAt(step)])
        (made,) = {*Path("outputs").rglob("run.json")} - before
        assert resume(made.parent).metrics == whole.metrics
        assert content(made.parent) == content(whole.path)
        assert Run(made.parent).read()["stopped_early"] == stop


Ends = dict[int, Outcome]


class TestStack:
    def points(self, *more: str, ends: Ends | None = None) -> list[Point]:
        own = [[f"optimizer.lr={lr}", f"seed={seed}"] for lr, seed in ((0.01, 0), (0.01, 3), (1e-4, 2), (0.3, 0))]
        typed = [[*IMAGES, *more, *words] for words in own]
        runs = [None if ends is None else ends[index].run for index in range(4)]
        return [Point(compose(words), words, run=path) for words, path in zip(typed, runs, strict=True)]

    def train(self, points: Sequence[Point], folder: str) -> Ends:
        ends: Ends = {}
        stacked.train(points, Path(folder), lambda index, path: None, ends.__setitem__)
        assert {end.status for end in ends.values()} == {"finished"}
        return ends

    @pytest.mark.slow
    def test_other_members_are_unaffected_with_and_without_interruptions(self) -> None:
        """A member stops, keeps its slot, and is tested with the weights of that time."""
        usual, whole = self.train(self.points(), "usual"), self.train(self.points(STOPPING), "whole")
        stops = {index: Run(end.run or Path()).read().get("stopped_early") for index, end in whole.items()}
        assert stops[0] is not None
        others = [index for index, stop in stops.items() if stop is None]
        assert {*others} == {1, 2}
        for index in others:
            assert _bits(whole[index].run) == _bits(usual[index].run)
            assert whole[index].metrics == usual[index].metrics
        alone = experiment.run(self.points(STOPPING)[0].cfg, (), Path("alone"))
        assert Run(alone.path).read()["stopped_early"] == stops[0]
        assert whole[0].metrics == pytest.approx(alone.metrics, rel=1e-3)
        assert _names(whole[0].run) == _names(alone.path)
        later = stops[0]["step"] + 1
        for at, every_s in ((later, 0), (later, 1000), (-1, 0)):
            ends = self.interrupted(at, f"logger.save_every_s={every_s}")
            again = self.train(self.points(STOPPING, ends=ends), "stack")
            for index, end in again.items():
                assert _bits(end.run) == _bits(whole[index].run), f"member {index}, interrupted at {at}"
                assert end.metrics == whole[index].metrics
                assert Run(end.run or Path()).read().get("stopped_early") == stops[index]
            if at == later and not every_s:
                assert Run(again[1].run or Path()).read()["resumed_at_step"] == [later]

    def interrupted(self, at: int, *more: str) -> Ends:
        """Return a stack killed in a step, or in its test for -1; members that save rarely are behind a stopped one."""
        hook, original = ("test_step", Stacked.test_step) if at < 0 else ("training_step", Stacked.training_step)

        def die(self: Stacked, *arguments: Any) -> Any:
            if at < 0 or self.trainer.global_step == at:
                raise KilledError
            return original(self, *arguments)

        runs: dict[int, Path] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stacked, hook, die)
            with pytest.raises(KilledError):
                stacked.train(self.points(STOPPING, *more), Path("stack"), runs.__setitem__, lambda *_: None)
        return {index: Outcome("killed", path) for index, path in runs.items()}


def _names(path: Path | None) -> list[Any]:
    assert path is not None
    return [(row["step"], row["epoch"], [*row]) for row in Run(path).metrics()]


def _bits(path: Path | None) -> str:
    assert path is not None
    return content(path)


class Keeping(Observer):
    """An observer with a given state."""

    state_key = "keeping"
    state_types: ClassVar[Mapping[str, Any]] = {"value": float | None, "seen": list[int], "words": str}

    def __init__(self, **state: Any) -> None:
        self.state = {"value": None, "seen": [], "words": "", **state}

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return self.state


class TestObservers:
    @pytest.mark.parametrize(
        ("state", "what"),
        [
            ({}, None),
            ({"value": 0.5, "seen": [1, 2], "words": "a\nb"}, None),
            ({"value": "0.5"}, "callbacks.keeping.value is str, must be float | None"),
            ({"value": float("nan")}, "callbacks.keeping.value is float, must be float | None"),
            ({"seen": [1, 2.5]}, "callbacks.keeping.seen is list, must be list[int]"),
            ({"seen": [2**63]}, "callbacks.keeping.seen is list, must be list[int]"),
            ({"words": None}, "callbacks.keeping.words is NoneType, must be str"),
        ],
    )
    def test_a_state_has_the_declared_types(self, state: dict[str, Any], what: str | None) -> None:
        kinds = {name: checkpoints.TypeSpec(kind) for name, kind in Keeping.state_types.items()}
        found, wanted = ({"callbacks": {"keeping": each}} for each in (Keeping(**state).state, kinds))
        assert checkpoints.difference(found, wanted) == what

    def test_states_need_unique_keys(self) -> None:
        class Nameless(Keeping):
            state_key = ""

        with pytest.raises(ConfigError, match="Nameless has a state but no state_key"):
            Member(None, [Nameless()])  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="Keeping and Keeping have the same state_key keeping"):
            Member(None, [Keeping(), EarlyStopping(1), Keeping()])  # type: ignore[arg-type]

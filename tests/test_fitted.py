"""Values fitted on the training split of a run are stored, and used for other data."""

import csv
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snnexp.data import arrays_data
from snnexp.errors import ConfigError, DataError
from snnexp.experiment import Record, build, compose, evaluate, load, predict, resume, run
from snnexp.record.checkpoint import decode, read_checkpoint
from snnexp.record.checksum import write_checkpoint
from snnexp.training.stacked import Point
from snnexp.training.stacked import train as train_stacked

pytestmark = pytest.mark.slow

OUTSIDE = Path(__file__).parent / "outside"
PLAIN = [
    *["data=arrays", "data.path=own.npz", "data.batch_size=8", "network.hidden=[6]", "num_steps=4", "trainer=cpu"],
    *["trainer.max_epochs=1", "logger=jsonl", "loss=nll_max_voltage"],
]
SCALED = [*PLAIN, "data.scale=standard"]
OTHER = ["data.path=other.npz"]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("own", mean=0, deviation=1)
    write("other", mean=3, deviation=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Record:
    with chdir(tmp_path_factory.mktemp("trained")):
        write("own", mean=0, deviation=1)
        record = run(compose(SCALED))
        return replace(record, path=record.path.absolute())


@pytest.fixture
def done(trained: Record) -> Path:
    """A copy to modify."""
    return Path(shutil.copytree(trained.path, "done"))


def write(name: str, mean: float, deviation: float, features: int = 4, classes: int = 3) -> None:
    generator = np.random.default_rng(len(name))
    x = generator.normal(mean, deviation, (40, features)) * np.arange(1, features + 1)
    np.savez(f"{name}.npz", inputs=x.astype(np.float32), labels=np.arange(40) % classes)


def inputs(file: str, split: str) -> Tensor:
    samples: Any = getattr(arrays_data(file), split)
    found: Tensor = samples.inputs
    return found


def numbers(method: str = "standard") -> tuple[Tensor, Tensor]:
    """Return shift and scale of the run's training split."""
    x = inputs("own.npz", "train").double()
    if method == "standard":
        return x.mean(0), x.std(0, correction=0)
    return x.amin(0), x.amax(0) - x.amin(0)


def states(path: Path, name: str) -> Any:
    file = path / "checkpoints" / f"{name}.ckpt"
    return decode(read_checkpoint(file), file)["callbacks"]


class TestScaling:
    @pytest.mark.parametrize(("method", "in_memory"), [("standard", "true"), ("minmax", "false")])
    def test_other_data_are_scaled_as_the_training_split_of_the_run(self, method: str, in_memory: str) -> None:
        done = run(compose([*PLAIN, f"data.scale={method}", f"data.in_memory={in_memory}"])).path
        shift, scale = numbers(method)
        network, cfg = load(done)
        with torch.no_grad():
            x = (inputs("other.npz", "test") - shift) / scale
            trace = network(build(cfg).encoder(x.float()))[-1]
        with predict(done, overrides=OTHER).open(newline="") as file:
            rows = [*csv.DictReader(file)]
        scores = torch.tensor([[float(row[f"score_{k}"]) for k in range(3)] for row in rows])
        torch.testing.assert_close(scores, trace.membrane.amax(0))
        loss = torch.nn.functional.cross_entropy(trace.membrane.amax(0), arrays_data("other.npz").test[[*range(8)]][1])
        assert evaluate(done, overrides=OTHER)["test/loss"] == pytest.approx(loss.item(), rel=1e-5)

    def test_every_checkpoint_stores_it_and_external_weights_use_it(self, done: Path) -> None:
        for name in ("init", "last", "best"):
            for found, wanted in zip(states(done, name)["scaling"].values(), numbers(), strict=True):
                assert found.dtype == torch.float64
                torch.testing.assert_close(found, wanted)
        torch.save(load(done)[0].state_dict(), "weights.pt")
        assert evaluate(done, "weights.pt", overrides=OTHER) == evaluate(done, overrides=OTHER)

    def test_its_own_data_give_the_reported_metrics(self, trained: Record) -> None:
        assert evaluate(trained.path)["test/loss"] == trained.metrics["test/loss"]
        assert "scaling" not in states(run(compose(PLAIN)).path, "last")

    def test_the_config_of_a_loaded_network_includes_it(self, done: Path) -> None:
        _, cfg = load(done, overrides=OTHER)
        shift, scale = numbers()
        found: Any = build(cfg).data.test
        torch.testing.assert_close(found.inputs, ((inputs("other.npz", "test") - shift) / scale).float())

    def test_members_of_a_stack_store_it(self, tmp_path: Path) -> None:
        points = [Point(compose(words), words) for words in ([*SCALED, f"seed={seed}"] for seed in (0, 1))]
        ends: dict[int, Any] = {}
        train_stacked(points, tmp_path / "stack", lambda *_: None, ends.__setitem__)
        for end in ends.values():
            torch.testing.assert_close(states(end.run, "last")["scaling"]["shift"], numbers()[0])

    def test_given_numbers_act_like_fitted_ones(self, trained: Record) -> None:
        shift, scale = numbers()
        given = f"data.scale={{shift: {shift.tolist()}, scale: {scale.tolist()}}}"
        record = run(compose([*PLAIN, given]))
        assert record.metrics == pytest.approx(trained.metrics, rel=1e-5)
        assert evaluate(record.path, overrides=OTHER) == pytest.approx(evaluate(trained.path, overrides=OTHER))

    def test_an_older_run_is_evaluated_only_on_its_own_data(self, trained: Record, done: Path) -> None:
        for file in (done / "checkpoints").glob("*.ckpt"):
            content = torch.load(file, weights_only=True)
            del content["callbacks"]["scaling"]
            torch.save(content, "older.pt")
            write_checkpoint(file, Path("older.pt").read_bytes())
        measured = evaluate(done, overrides=["data.batch_size=4"])
        assert measured["test/loss"] == pytest.approx(trained.metrics["test/loss"])
        with pytest.raises(ConfigError, match=r"^data: .*last\.ckpt is older than .*; train again$"):
            evaluate(done, overrides=OTHER)
        resume(done, ["trainer.max_epochs=2"])
        assert "scaling" in states(done, "last")

    def test_a_run_is_not_resumed_with_other_samples(self, done: Path) -> None:
        write("own", mean=1, deviation=1)
        with pytest.raises(DataError, match=r"^data: the training samples differ from those that this run was trained"):
            resume(done, ["trainer.max_epochs=2"])

    def test_data_without_scale_are_rejected(self, done: Path) -> None:
        write("wide", mean=0, deviation=1, features=5)
        with pytest.raises(
            ConfigError, match=r"^data\.scale: got 4 numbers for shift, but the inputs have 5 features$"
        ):
            evaluate(done, overrides=["data.path=wide.npz"])
        with pytest.raises(ConfigError, match=r"^data: the inputs of this run are scaled, and mnist_data has no "):
            evaluate(done, overrides=["data=mnist"])

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"shift": [0.0] * 4}, "must be a mapping of shift and scale"),
            ({"shift": [0.0] * 4, "scale": [1.0] * 3}, "got 3 numbers for scale, but the inputs have 4 features"),
            ({"shift": [0.0] * 4, "scale": [1.0, 0.0, 1.0, 1.0]}, "got a scale of 0"),
            ({"shift": "0123", "scale": [1.0] * 4}, r"must be one of standard, minmax, or a mapping \{shift"),
        ],
    )
    def test_invalid_numbers_are_rejected(self, given: Any, sentence: str) -> None:
        with pytest.raises(ConfigError, match=f"^scale: .*{sentence}"):
            arrays_data("own.npz", scale=given)


class TestSplits:
    def test_those_of_the_run_are_evaluated(self, done: Path) -> None:
        words = ["split_seed=1", "val_fraction=0.1", "test_fraction=0.5", "stratify=true", "fold=0", "scale=minmax"]
        with pytest.raises(ConfigError) as caught:
            evaluate(done, overrides=[f"data.{word}" for word in words])
        found = [sentence.partition(": ") for sentence in caught.value.args]
        assert {key for key, _, _ in found} == {f"data.{word.partition('=')[0]}" for word in words}
        scaled = "inputs must be scaled as in training; train another run to change it"
        assert all(reason == scaled or reason.endswith("keep it, or evaluate other data") for _, _, reason in found)

    def test_training_samples_are_not_tested(self) -> None:
        np.savez("ids.npz", **np.load("own.npz"), subject=np.arange(40) // 4)
        drawn = run(compose([*PLAIN, "data.path=ids.npz"])).path
        with pytest.raises(ConfigError, match=r"^data.groups: got subject, but the run was trained with null"):
            evaluate(drawn, overrides=["data.groups=subject"])
        given = run(compose([*PLAIN, "data.path=null", "data.train=own.npz", "data.test=other.npz"])).path
        for more in ([], ["data.test_fraction=0.5"]):
            with pytest.raises(ConfigError, match=r"^data.test: got null, but the run was trained with other.npz"):
                evaluate(given, overrides=["data.test=null", *more])

    @pytest.mark.parametrize("split", ["val", "train"])
    def test_a_test_file_does_not_change_the_other_splits(self, split: str) -> None:
        path = run(compose([*PLAIN, "data.val_fraction=0.3"])).path
        with pytest.raises(ConfigError, match=rf"^split: got {split}, .* leave out data.test"):
            evaluate(path, split=split, overrides=["data.test=other.npz"])
        assert evaluate(path, split=split, overrides=["data.val=null"]) == evaluate(path, split=split)

    def test_other_data_may_have_another_split(self) -> None:
        done = run(compose(PLAIN)).path
        rows = [
            predict(done, overrides=words, output=f"{len(words)}.csv") for words in (OTHER, [*OTHER, "data.fold=1"])
        ]
        assert rows[0].read_bytes() != rows[1].read_bytes()
        words = ["data.test=other.npz", "data.test_fraction=0", "data.split_seed=0"]
        assert len(predict(done, overrides=words).read_text().splitlines()) == 41

    def test_another_dataset_needs_its_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(OUTSIDE))
        monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "adaptpkg")
        typed = ["data=dataset", "data.dataset._target_=adaptpkg.bumps.Bumps", *PLAIN[2:]]
        done = run(compose(typed)).path
        words = ["data.dataset={_target_: adaptpkg.bumps.Bumps, count: 50}", "data.split_seed=3"]
        assert len(predict(done, overrides=words).read_text().splitlines()) == 11


class TestClassWeights:
    def test_other_data_may_lack_classes(self) -> None:
        done = run(compose([*PLAIN, "loss.class_weights=balanced"])).path
        write("other", mean=0, deviation=1, classes=2)
        weights = states(done, "last")["class_weights"]["weights"].tolist()
        words = [*OTHER, "data.outputs=3"]
        found = evaluate(done, overrides=words)["test/loss"]
        assert found == evaluate(done, overrides=[*words, f"loss.class_weights={weights}"])["test/loss"]


class TestNames:
    """Names of classes and features: a network depends on their order."""

    def table(self, name: str, header: list[str], classes: str) -> None:
        rows = [[index / 30, -index, classes[index % len(classes)]] for index in range(30)]
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    def test_must_be_equal_for_other_data(self) -> None:
        self.table("own.csv", ["width", "height", "kind"], "ab")
        words = [word for word in PLAIN if not word.startswith(("data=", "data.path"))]
        path = run(compose(["data=csv", "data.path=own.csv", "data.target=kind", *words])).path
        for name, header, classes, message in (
            ("other.csv", ["width", "height", "kind"], "bc", r"^data: the classes are b, c, .* trained with a, b"),
            (
                "turned.csv",
                ["height", "width", "kind"],
                "ab",
                r"^data: the features are height, width, .* width, height",
            ),
        ):
            self.table(name, header, classes)
            with pytest.raises(ConfigError, match=message):
                evaluate(path, overrides=[f"data.path={name}"])
        self.table("same.csv", ["width", "height", "kind"], "ba")
        assert "test/accuracy" in evaluate(path, overrides=["data.path=same.csv"])


@pytest.mark.parametrize(
    "typed",
    [
        ["data.split_seed=9"],
        ["data.path=own.npz", "data.split_seed=9"],
        ["data.path=./own.npz", "data.split_seed=9"],
        # which resets the other keys
        ["data=arrays", "data.path=own.npz"],
    ],
)
def test_the_same_samples_are_not_split_again(typed: list[str]) -> None:
    path = run(compose([*PLAIN, "data.split_seed=5"])).path
    with pytest.raises(ConfigError, match=r"^data.split_seed: got [09], but the run was trained with 5"):
        evaluate(path, overrides=typed)
    assert evaluate(path, overrides=["data=arrays", "data.path=own.npz", "data.split_seed=5"]) == evaluate(path)

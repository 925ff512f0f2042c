"""Commands for a trained run: evaluation on other data, predictions, export of weights."""

import csv
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snnexp.cli import main
from snnexp.decoders import Decoder, EachStep, SpikeCount
from snnexp.errors import CheckpointError, ConfigError, InterruptedRunError
from snnexp.experiment import build, compose, evaluate, export, load, predict, run
from snnexp.losses import Loss, MSEMembrane
from snnexp.neurons import Trace
from snnexp.training import predictions
from snnexp.training.predictions import Predictions

pytestmark = pytest.mark.slow

PARTS = Path(__file__).parent / "behaviour" / "parts"
IMAGES = [
    "experiment=mnist_leaky",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "network.hidden=[7]",
    "num_steps=5",
    "data.batch_size=8",
    "data.val_size=8",
    "logger=jsonl",
    "optimizer.lr=2e-3",
]
MEMBRANE = ["loss=nll_max_voltage"]
TRACE = ["experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "network.hidden=[4]", "logger=jsonl"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_mnist: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def done() -> Path:
    return run(compose(IMAGES)).path.absolute()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def weights(path: Path, name: str) -> dict[str, Tensor]:
    state = torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("network."): value for key, value in state.items()}


class TestPredict:
    @pytest.mark.parametrize(
        ("words", "split", "ckpt"), [([], "test", "last"), ([], "val", "init"), (MEMBRANE, "train", "best")]
    )
    def test_the_accuracy_of_its_rows_equals_that_of_eval(self, words: list[str], split: str, ckpt: str) -> None:
        done = run(compose([*IMAGES, *words])).path
        file = predict(done, ckpt, split)
        assert file.name == "predictions.csv"
        found = rows(file)
        assert [*found[0]] == ["index", "target", "predicted", *(f"score_{k}" for k in range(10))]
        x, y = getattr(build(compose([*IMAGES, *words])).data, split)[[*range(len(found))]]
        assert [int(row["index"]) for row in found] == [*range({"test": 20, "val": 8, "train": 32}[split])]
        assert [int(row["target"]) for row in found] == y.tolist()
        right = sum(row["target"] == row["predicted"] for row in found)
        assert right / len(found) == pytest.approx(evaluate(done, ckpt, split)[f"{split}/accuracy"], rel=1e-6)
        network, cfg = load(done, ckpt)
        with torch.no_grad():
            trace = network(build(cfg).encoder(x))[-1]
        compared = trace.membrane.amax(0) if words else trace.spikes.sum(0)
        scores = torch.tensor([[float(row[f"score_{k}"]) for k in range(10)] for row in found])
        torch.testing.assert_close(scores, compared)
        assert [int(row["predicted"]) for row in found] == scores.argmax(-1).tolist()

    def test_a_regression_has_a_row_per_step(self, capsys: pytest.CaptureFixture[str]) -> None:
        done = run(compose([*TRACE, "num_steps=8", "data.num_samples=5", "data.batch_size=2"])).path
        capsys.readouterr()
        assert main(["predict", str(done), "--output", "there.csv"]) == 0
        assert capsys.readouterr().out == "there.csv\n"
        found = rows(Path("there.csv"))
        assert [*found[0]] == ["index", "step", "target_0", "output_0"]
        assert [(int(row["index"]), int(row["step"])) for row in found] == [(s, t) for s in range(5) for t in range(8)]
        errors = [abs(float(row["target_0"]) - float(row["output_0"])) for row in found]
        assert sum(errors) / len(errors) == pytest.approx(evaluate(done)["test/l1"], rel=1e-5)

    def test_an_interruption_does_not_change_the_file(self, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = predict(done, "init").read_bytes()
        files = {*done.rglob("*")}
        write = predictions.write_all

        def interrupted(handle: int, content: bytes) -> None:
            write(handle, content)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(predictions, "write_all", interrupted)
        with pytest.raises(InterruptedRunError):
            predict(done)
        assert (done / "predictions.csv").read_bytes() == before
        assert {*done.rglob("*")} == files
        with pytest.raises(InterruptedRunError):
            predict(done, output="elsewhere.csv")
        assert not [*Path().glob("*elsewhere*")]

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--split", "val", "data.val_size=0"], "split: got val, these data have test, train"),
            (["--output", "there.csv"], "--output: there.csv exists"),
            (["--output", "nowhere/there.csv"], "--output: nowhere is not a folder"),
            (["--config-dir", "nowhere"], "--config-dir: nowhere is not a folder"),
        ],
    )
    def test_invalid_arguments_are_rejected(
        self, words: list[str], sentence: str, done: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("there.csv").write_text("mine")
        before = {*Path().rglob("*")}
        assert main(["predict", str(done), *words]) == 2
        assert capsys.readouterr().err.startswith(f"snnexp: {sentence}")
        assert {*Path().rglob("*")} == before
        assert Path("there.csv").read_text() == "mine"


class TestExport:
    def test_writes_the_weights_of_each_checkpoint(self, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
        network, _ = load(done)
        shutil.rmtree("data")
        torch.save({f"network.{name}": value for name, value in weights(done, "init").items()}, "weights.pt")
        for ckpt, name in (("last", "last"), ("best", "best"), ("init", "init"), ("weights.pt", "init")):
            capsys.readouterr()
            assert main(["export", str(done), "--to", "state_dict", "--ckpt", ckpt]) == 0
            file = Path(capsys.readouterr().out.strip())
            assert file == done / "export" / "network.pt"
            state = torch.load(file, weights_only=True)
            network.load_state_dict(state)
            assert all(torch.equal(state[name], value) for name, value in weights(done, name).items())
        assert [path.name for path in file.parent.iterdir()] == ["network.pt"]

    def test_invalid_arguments_are_rejected(self, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export", str(done), "--to", "onnx"]) == 2
        assert "choose from" in capsys.readouterr().err
        assert main(["export", str(done)]) == 2
        torch.save({"fc.weight": torch.ones(2)}, "other.pt")
        with pytest.raises(CheckpointError, match=r"no layers\.hidden1"):
            export(done, "other.pt")
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            export(done, "nowhere.pt")
        assert not (done / "export").exists()
        (done / "export").write_text("a file is in the way")
        assert main(["export", str(done), "--to", "state_dict"]) == 74


class TestOtherData:
    def test_a_choice_equals_its_keys(self, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
        standardized = evaluate(done, overrides=["data.mean=0.1307", "data.std=0.3081"])
        assert standardized != evaluate(done)
        # with its own batch size
        capsys.readouterr()
        assert main(["eval", str(done), "data=mnist_standardized", "data.batch_size=8", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == standardized
        network, cfg = load(done, "best", ["data=mnist_standardized", "num_steps=3"])
        assert (cfg.data.mean, cfg.data.val_size, cfg.data.seed, cfg.num_steps) == (0.1307, 0, 0, 3)
        assert all(torch.equal(value, weights(done, "best")[name]) for name, value in network.state_dict().items())
        assert len(network(build(cfg).encoder(build(cfg).data.test[[0]][0]))[-1].membrane) == 3

    @pytest.mark.parametrize("function", [evaluate, load, predict])
    def test_inputs_that_do_not_fit_are_reported_with_both_shapes(
        self, function: Any, done: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(PARTS))
        monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")
        sentence = r"^data: inputs \[16\] and 4 outputs do not fit .* inputs \[1, 28, 28\] and 10 outputs$"
        with pytest.raises(ConfigError, match=sentence):
            function(done, overrides=["data=blobs"], folders=[PARTS / "conf"])
        assert not (done / "predictions.csv").exists()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["data=minst"], "data=minst: no such choice, did you mean mnist?"),
            (["data=mnist", "data.meen=1"], "data.meen: unknown key"),
            (["data=mnist", "data.std=0"], "data.std: got 0"),
            (["data=linear"], "loss: CEMembrane compares with labels"),
            (["network=conv"], "network: cannot choose another part of an existing run"),
            (["init_from.freeze=[hidden1]"], "init_from.freeze: has no effect on an evaluation"),
        ],
    )
    def test_invalid_arguments_are_rejected(self, words: list[str], sentence: str, done: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            evaluate(done, overrides=words)
        assert [str(each).startswith(sentence) for each in caught.value.args[:1]] == [True], caught.value.args


@dataclass(frozen=True)
class LastStep(Loss):
    """A loss that reads only the last step."""

    targets = ("values", "trace")
    reads = "last_membrane"


class TestRows:
    """The rows of predictions for each kind of target."""

    T, B, K = 3, 2, 2

    def rows(self, path: Path, decoder: Decoder | None, loss: Loss, target: Tensor) -> list[dict[str, float]]:
        membrane = torch.arange(12.0).view(self.T, self.B, self.K)
        outputs = {"traces": [Trace((membrane > 5).float(), membrane, None)]}
        handle = os.open(path, os.O_CREAT | os.O_WRONLY)
        predictions = Predictions(handle, decoder, loss)
        for _ in range(2):
            predictions.on_test_batch_end(None, None, outputs, target)  # type: ignore[arg-type]
        os.close(handle)
        with path.open() as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def test_a_constant_target_is_repeated_for_every_step(self, tmp_path: Path) -> None:
        found = self.rows(tmp_path / "a.csv", None, MSEMembrane(), torch.tensor([[0.5, 1.5], [2.5, 3.5]]))
        assert list(found[0]) == ["index", "step", "target_0", "target_1", "output_0", "output_1"]
        assert [(row["index"], row["step"]) for row in found] == [(b, t) for b in range(4) for t in range(3)]
        assert [*found[4].values()] == [1, 1, 2.5, 3.5, 6, 7]

    def test_a_loss_of_the_last_step_has_a_row_per_sample(self, tmp_path: Path) -> None:
        found = self.rows(tmp_path / "a.csv", None, LastStep(), torch.tensor([[0.5, 1.5], [2.5, 3.5]]))
        assert [[*row.values()] for row in found[:2]] == [[0, 0.5, 1.5, 8, 9], [1, 2.5, 3.5, 10, 11]]
        assert len(found) == 4

    def test_labels_of_each_step(self, tmp_path: Path) -> None:
        found = self.rows(tmp_path / "a.csv", EachStep(), LastStep(), torch.tensor([[0, 1], [1, 0], [1, 1]]))
        assert list(found[0]) == ["index", "step", "target", "predicted", "score_0", "score_1"]
        assert [*found[5].values()] == [1, 2, 1, 1, 10, 11]

    def test_a_label(self, tmp_path: Path) -> None:
        found = self.rows(tmp_path / "a.csv", SpikeCount(), MSEMembrane(), torch.tensor([1, 0]))
        assert [[*row.values()] for row in found[2:]] == [[2, 1, 0, 1, 1], [3, 0, 0, 2, 2]]

"""Damaged, foreign and malicious checkpoints are detected, and no payload executes."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snnexp.cli import main
from snnexp.errors import CheckpointError
from snnexp.experiment import build, compose, evaluate, resume, run
from snnexp.record import checkpoint as checkpoints
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.checksum import write_checkpoint
from snnexp.record.run import Run

TINY = [
    "experiment=regression_sqrt",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=4",
    "network.hidden=[6,5]",
    "num_steps=8",
    "logger=jsonl",
    "logger.save_every_n_epochs=1",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run."""
    return run(compose([*TINY, f"logger.root={tmp_path_factory.mktemp('whole')}"])).path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def find(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Checkpoint | None]:
    """Find the checkpoint to resume from, with the arguments that ``resume`` passes for this run."""
    captured: list[Any] = []
    original = checkpoints.find
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "find", lambda *arguments: captured.extend(arguments) or original(*arguments))
        resume(copied)
    return lambda: original(Run(copied), *captured[1:])


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def save(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    change(checkpoint)
    return save(checkpoint)


WEIGHT = "network.layers.hidden2.synapse.weight"
BETA = "network.layers.hidden1.neuron.beta"


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """``put(a, b, value)`` sets ``checkpoint[a][b]``."""

    def change(checkpoint: Any) -> None:
        *parents, leaf, value = path
        for parent in parents:
            checkpoint = checkpoint[parent]
        checkpoint[leaf] = value(checkpoint[leaf]) if callable(value) else value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: Any) -> None:
        for parent in path[:-1]:
            checkpoint = checkpoint[parent]
        del checkpoint[path[-1]]

    return change


def one(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = number
        return tensor

    return change


# valid files with valid checksums that are not checkpoints of this run
WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "NaN weight": put("state_dict", WEIGHT, one(float("nan"))),
    "infinite weight": put("state_dict", WEIGHT, one(float("inf"))),
    "minus infinite beta": put("state_dict", BETA, one(float("-inf"))),
    "NaN in the optimizer": put("optimizer_states", 0, "state", 0, "exp_avg", one(float("nan"))),
    "infinity in the optimizer": put("optimizer_states", 0, "state", 1, "exp_avg_sq", one(float("inf"))),
    "NaN learning rate": put("optimizer_states", 0, "param_groups", 0, "lr", float("nan")),
    "NaN sums": put("callbacks", "epoch_loss", "sums", one(float("nan"))),
    "wider weight": put("state_dict", WEIGHT, torch.zeros(6, 6)),
    "transposed weight": put("state_dict", WEIGHT, lambda weight: weight.T.contiguous()),
    "flat weight": put("state_dict", WEIGHT, lambda weight: weight.flatten()),
    "double weight": put("state_dict", WEIGHT, lambda weight: weight.double()),
    "half weight": put("state_dict", WEIGHT, lambda weight: weight.half()),
    "whole numbers": put("state_dict", WEIGHT, lambda weight: weight.long()),
    "complex weight": put("state_dict", WEIGHT, lambda weight: weight.to(torch.complex64)),
    "sparse weight": put("state_dict", WEIGHT, lambda weight: weight.to_sparse()),
    "list for a weight": put("state_dict", WEIGHT, [1.0, 2.0]),
    "nothing for a weight": put("state_dict", WEIGHT, None),
    "missing weight": drop("state_dict", WEIGHT),
    "one weight too many": put("state_dict", "extra", torch.zeros(1)),
    "renamed weights": put("state_dict", lambda state: {f"x{name}": value for name, value in state.items()}),
    "no weights": drop("state_dict"),
    "no optimizer": drop("optimizer_states"),
    "no place": drop("batch"),
    "no config": drop("config"),
    "no metrics": drop("metrics"),
    "something more": put("extra", 1),
    "two optimizers": put("optimizer_states", lambda states: states * 2),
    "optimizer of another kind": drop("optimizer_states", 0, "state", 0, "exp_avg"),
    "state of a 99th weight": put("optimizer_states", 0, "state", 99, {}),
    "optimizer with a text": put("optimizer_states", 0, "param_groups", 0, "lr", "1e-3"),
    "epoch that is a text": put("epoch", "4"),
    "epoch of a fraction": put("epoch", 4.0),
    "negative epoch": put("epoch", -1),
    "epoch beyond the steps": put("epoch", 400),
    "batch that is not there": put("batch", 7),
    "huge step": put("global_step", 2**70),
    "true for a number": put("global_step", True),
    "config that is none": put("config", "{"),
    "config that is a list": put("config", "[]"),
    "config that is deep": put("config", "[" * 100_000),
    "metrics of another run": put("metrics", "sha256", "0" * 64),
    "more metrics than there are": put("metrics", "bytes", 10**9),
}


def foreign() -> dict[str, bytes]:
    """Files that are not checkpoints of this run at all."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"garbage")
    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), scripted)
    other = {"state_dict": nn.Linear(3, 2).state_dict(), "epoch": 1}
    return {
        "nothing": b"",
        "a text": b"not a checkpoint\n",
        "zeros": bytes(1000),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "an empty archive": b"PK\x05\x06" + bytes(18),
        "an archive of garbage": archive.getvalue(),
        "a program": scripted.getvalue(),
        "a pickle": pickle.dumps({"state_dict": {}}),
        "a tensor": save(torch.zeros(3)),
        "a list": save([1, 2]),
        "another network": save(other),
        "an empty mapping": save({}),
    }


def damaged(good: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """More than 100 cases: a name, the content, and True if its checksum is valid."""
    draw = random.Random(0)
    for index in range(36):
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        flipped = bytearray(good)
        flipped[position] ^= 1 << bit
        yield f"bit {bit} of byte {position} ({index})", bytes(flipped), False
    for length in sorted(draw.sample(range(len(good)), 12)):
        yield f"cut to {length} bytes", good[:length], False
    yield "one byte more", good + b"\0", False
    for name, content in foreign().items():
        yield name, content, True
    for name, change in WRONG.items():
        yield name, changed(good, change), True


class TestDamaged:
    @pytest.mark.slow
    def test_a_hundred_of_them_are_detected_and_replaced_by_the_previous_one(
        self, copied: Path, find: Callable[[], Checkpoint | None], caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = copied / "checkpoints"
        last, previous = folder / "last.ckpt", folder / "previous.ckpt"
        good, count = last.read_bytes(), 0
        found = find()
        assert found is not None
        assert (found.path, found.step) == (last, 4)
        for name, content, checksum in damaged(good):
            caplog.clear()
            if checksum:
                write_checkpoint(last, content)
            else:
                last.write_bytes(content)
            found = find()
            assert found is not None, name
            assert (found.path, found.step) == (previous, 3), name
            (warning,) = caplog.messages
            assert str(last) in warning, name
            assert warning.endswith("continuing from previous.ckpt, step 3")
            if not checksum and count % 5 == 0:
                with pytest.raises(CheckpointError) as caught:
                    evaluate(copied)
                assert caught.value.exit_code == 5
            write_checkpoint(last, good)
            count += 1
        assert count >= 100

    @pytest.mark.parametrize("name", ["NaN weight", "metrics of another run", "cut"])
    def test_a_run_resumes_from_the_previous_one_to_the_same_end(self, copied: Path, whole: Path, name: str) -> None:
        last = copied / "checkpoints" / "last.ckpt"
        if name == "cut":
            last.write_bytes(last.read_bytes()[:-100])
        else:
            write_checkpoint(last, changed(last.read_bytes(), WRONG[name]))
        Run(copied).update(status="running")
        resume(copied)
        assert (copied / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        ours, theirs = (load(path / "checkpoints" / "last.ckpt") for path in (copied, whole))
        assert all(torch.equal(weight, theirs["state_dict"][name]) for name, weight in ours["state_dict"].items())

    def test_a_run_with_only_damaged_ones_is_not_restarted(self, copied: Path) -> None:
        Run(copied).update(status="running")
        for name in ("last", "previous", "best", "init"):
            (copied / "checkpoints" / f"{name}.ckpt").write_bytes(b"damaged")
        before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=r"last\.ckpt: checkpoint is damaged, its checksum differs"):
            resume(copied)
        assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before

    @pytest.mark.slow
    def test_deleted_ones_are_not_needed(self, copied: Path, whole: Path) -> None:
        before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
        for name in ("last", "previous"):
            (copied / "checkpoints" / f"{name}.ckpt").unlink()
            del before[copied / "checkpoints" / f"{name}.ckpt"]
        # as by a user who keeps only best.ckpt
        assert resume(copied).metrics == Run(whole).read()["metrics"]
        assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
        for _kept in ("best", "init"):
            Run(copied).update(status="running")
            resume(copied)
            assert (copied / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
            for name in ("last", "previous", "best"):
                (copied / "checkpoints" / f"{name}.ckpt").unlink(missing_ok=True)

    def test_a_checkpoint_has_only_plain_values(self, whole: Path) -> None:
        def plain(value: Any) -> bool:
            if isinstance(value, dict):
                return all(isinstance(key, (str, int)) and plain(part) for key, part in value.items())
            if isinstance(value, (list, tuple)):
                return all(map(plain, value))
            return type(value) in (torch.Tensor, int, float, bool, str, type(None))

        checkpoint = load(whole / "checkpoints" / "last.ckpt")
        assert plain(checkpoint)
        assert json.loads(checkpoint["config"])["optimizer"]["lr"] == 1e-3
        rows = (whole / "metrics.jsonl").read_bytes()[: checkpoint["metrics"]["bytes"]]
        assert hashlib.sha256(rows).hexdigest() == checkpoint["metrics"]["sha256"]
        assert [json.loads(row)["epoch"] for row in rows.splitlines() if b"epoch_loss" in row] == [0, 1, 2, 3]


class Attack:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def packed(good: bytes, size: int) -> bytes:
    """Return a small checkpoint, each of whose tensors expands to ``size`` bytes when it is loaded."""
    archive = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(good)) as source,
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry) if "data/" not in entry.filename else bytes(size))
    return archive.getvalue()


def brackets(good: bytes) -> bytes:
    """Return a checkpoint whose pickle is a hundred megabytes of nested lists."""
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(archive, "w") as target:
        for entry in source.infolist():
            pickled = entry.filename.endswith(".pkl")
            target.writestr(entry.filename, b"]" * 60_000_000 if pickled else source.read(entry))
    return archive.getvalue()


def laughing(levels: int = 40) -> list[Any]:
    value: list[Any] = ["ha"]
    for _ in range(levels):
        value = [value] * 10
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["state_dict"] = value
    return value


def hostile(good: bytes, marker: Path) -> dict[str, bytes]:
    shell = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    huge = torch.zeros(1).expand(10**9, 10**6)
    with pytest.warns(UserWarning, match="Sparse"):
        sparse = torch.sparse_csr_tensor(
            torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), torch.tensor([]), (1, 9)
        )
    attacks = {
        "os.system": Attack(os.system, shell),
        "os.popen": Attack(os.popen, shell),
        "subprocess": Attack(subprocess.call, ["touch", str(marker)]),
        "eval": Attack(eval, code),
        "exec": Attack(exec, code),
        "open": Attack(open, str(marker), "w"),
        "a method": Attack(Path.touch, marker),
        "an import": Attack(__import__, "this"),
        "getattr": Attack(getattr, "", "join"),
        "another torch.load": Attack(torch.load, str(marker)),
        "a numpy loader": Attack(__import__("numpy").load, str(marker)),
    }
    content = {name: save({"state_dict": {WEIGHT: attack}}) for name, attack in attacks.items()}
    content |= {f"{name} as a bare pickle": pickle.dumps(attacks[name]) for name in ("os.system", "exec")}
    buffer = io.BytesIO()
    torch.save({"state_dict": attacks["os.system"]}, buffer, _use_new_zipfile_serialization=False)
    return content | {
        "os.system in the old format": buffer.getvalue(),
        "a module": save(nn.Linear(2, 2)),
        "a module for weights": save({"state_dict": nn.Linear(2, 2)}),
        "a bomb of zeros": packed(good, 5_000_000),
        "a tensor that would need a petabyte": changed(good, put("state_dict", WEIGHT, huge)),
        "a compressed tensor": changed(good, put("state_dict", WEIGHT, sparse)),
        "lists that would need all memory": changed(good, put("state_dict", laughing())),
        "lists in place of a number": changed(good, put("epoch", laughing())),
        "a mapping within itself": save(cyclic()),
        "brackets that would need all memory": brackets(good),
        "a name that talks to the terminal": changed(good, put("state_dict", "\x1b]0;pwned\x07\n", torch.zeros(1))),
        "a config that is a program": changed(good, put("config", "__import__('os').system('x')")),
    }


class TestHostile:
    @pytest.mark.slow
    def test_no_payload_executes(self, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        last, marker = copied / "checkpoints" / "last.ckpt", tmp_path / "attacked"
        good = last.read_bytes()
        files = hostile(good, marker)
        assert len(files) >= 20
        Run(copied).update(status="running")
        own = [copied / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous", "best", "init")]
        for name, content in files.items():
            for path in own:
                write_checkpoint(path, content)
            # an evaluation reads no config
            if "config" not in name:
                with pytest.raises(CheckpointError):
                    evaluate(copied)
            assert main(["resume", str(copied)]) == 5, name
            (line,) = capsys.readouterr().err.splitlines()
            assert line.isprintable()
            assert len(line) <= 200
            (tmp_path / "foreign.ckpt").write_bytes(content)
            if "config" not in name and "number" not in name:
                with pytest.raises(CheckpointError):
                    evaluate(copied, tmp_path / "foreign.ckpt")
            assert not marker.exists(), name

    def test_the_payload_executes_with_an_unsafe_load(self, tmp_path: Path) -> None:
        marker = tmp_path / "attacked"
        torch.load(io.BytesIO(save({"state_dict": Attack(os.system, f"touch {marker}")})), weights_only=False)
        assert marker.exists(), "otherwise the test above proves nothing"

    @pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
    def test_pipes_folders_and_devices_are_rejected(self, copied: Path, kind: str) -> None:
        last = copied / "checkpoints" / "last.ckpt"
        for path in (copied / "checkpoints").glob("*.ckpt"):
            path.unlink()
        if kind == "device":
            last = Path("/dev/zero")
        else:
            os.mkfifo(last) if kind == "pipe" else last.mkdir()
            with pytest.raises(CheckpointError):
                resume(copied)
        with pytest.raises(CheckpointError):
            evaluate(copied, last)


class TestEvaluate:
    def test_returns_the_reported_metrics_and_writes_nothing(self, whole: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
        measured = evaluate(whole)
        assert measured == Run(whole).read()["metrics"]
        assert {"test/loss", "test/l1", "test/relative_error", "test/seed_mean_loss", "test/synops"} <= measured.keys()
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before

    @pytest.mark.slow
    @pytest.mark.usefixtures("tiny_mnist")
    @pytest.mark.parametrize("encoder", ["constant", "bernoulli"])
    def test_images_by_split(self, encoder: str, tmp_path: Path) -> None:
        images = [
            "experiment=mnist_rleaky_count",
            "trainer=cpu",
            "network.hidden=[7]",
            "num_steps=5",
            "data.val_size=12",
        ]
        root = f"logger.root={tmp_path}"
        record = run(compose([*images, f"encoder={encoder}", "data.batch_size=8", "trainer.max_epochs=2", root]))
        validated = [row for row in Run(record.path).metrics() if "val/loss" in row][-1]
        last = {name: value for name, value in validated.items() if name.startswith("val/")}
        assert {**last, **evaluate(record.path)} == record.metrics
        measured = evaluate(record.path, split="val")
        assert {name: measured[name] for name in last} == last
        assert evaluate(record.path, split="train")["train/accuracy"] >= 0

    @pytest.mark.slow
    @pytest.mark.usefixtures("tiny_mnist")
    def test_uses_the_batch_limit_of_the_split(self, tmp_path: Path) -> None:
        words = ["experiment=mnist_leaky", "trainer=cpu", "network.hidden=[7]", "num_steps=2", "data.val_size=12"]
        limits = ["trainer.limit_batches=2", "trainer.limit_test_batches=1", "data.batch_size=4"]
        record = run(compose([*words, *limits, "trainer.max_epochs=1", f"logger.root={tmp_path}"]))
        again = evaluate(record.path) | evaluate(record.path, split="val")
        assert {name: again[name] for name in record.metrics} == record.metrics

    def test_ignores_the_optimizer_state(self, whole: Path) -> None:
        """Older checkpoints have a single parameter group."""
        path = whole / "checkpoints" / "best.ckpt"
        content = load(path)
        content["optimizer_states"][0]["param_groups"] *= 2
        buffer = io.BytesIO()
        torch.save(content, buffer)
        other = whole / "checkpoints" / "init.ckpt"
        kept = other.read_bytes()
        try:
            write_checkpoint(other, buffer.getvalue())
            assert evaluate(whole, "init") == evaluate(whole, "best")
        finally:
            write_checkpoint(other, kept)

    def test_of_other_checkpoints(self, whole: Path, tmp_path: Path) -> None:
        first = evaluate(whole, "init")
        assert first["test/loss"] > evaluate(whole, "best")["test/loss"]
        foreign = tmp_path / "elsewhere.ckpt"
        foreign.write_bytes((whole / "checkpoints" / "init.ckpt").read_bytes())
        measured = evaluate(whole, foreign)
        assert measured == {name: first[name] for name in first if name != "test/seed_mean_loss"}
        # a bare state_dict saved by other code
        weights = load(whole / "checkpoints" / "init.ckpt")["state_dict"]
        torch.save(weights, foreign)
        assert evaluate(whole, foreign) == measured
        # its checksum file is checked
        write_checkpoint(foreign, foreign.read_bytes())
        foreign.write_bytes(foreign.read_bytes() + b"\0")
        with pytest.raises(CheckpointError, match="checksum differs"):
            evaluate(whole, foreign)

    @pytest.mark.parametrize(
        ("checkpoint", "split", "words"),
        [
            ("first", "test", "no such checkpoint; use last, best, init, or a file"),
            ("nowhere.ckpt", "test", "no such checkpoint"),
            ("last", "val", "split: got val, these data have test, train"),
            ("last", "all", "split: got all"),
        ],
    )
    def test_missing_files_are_reported(self, whole: Path, checkpoint: str, split: str, words: str) -> None:
        with pytest.raises((CheckpointError, ValueError), match=words) as caught:
            evaluate(whole, checkpoint, split)
        assert caught.value.exit_code == (5 if split == "test" else 2)

    def test_of_weights_with_other_names_lists_the_expected_ones(self, whole: Path, tmp_path: Path) -> None:
        parts, extra = build(compose(TINY)), {"fc1.weight": torch.ones(3)}
        mixed = {**parts.task.state_dict(), BETA.removeprefix("network."): torch.ones(())}
        del mixed[BETA]
        for weights, words in (
            (extra, "no layers.hidden1.synapse.weight"),
            ({}, "no layers.hidden1.synapse.weight"),
            (parts.network.state_dict() | extra, "unknown fc1.weight"),
            (parts.task.state_dict() | {1: torch.ones(3)}, "unknown 1"),
            (mixed, "only some names have the prefix network"),
        ):
            torch.save(weights, tmp_path / "other.ckpt")
            with pytest.raises(CheckpointError, match=f"{words}, there are layers.hidden1.neuron.beta, layers.hidden1"):
                evaluate(whole, tmp_path / "other.ckpt")

    def test_of_another_network(self, whole: Path, tmp_path: Path) -> None:
        torch.save(build(compose([*TINY, "network.hidden=[7,5]"])).task.state_dict(), tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=r"hidden1.* is \[7.*must be \[6"):
            evaluate(whole, tmp_path / "other.ckpt")

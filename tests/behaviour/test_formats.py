"""Files carry a format; one that is newer is refused with one line, and ends no list."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from shell import OUTSIDE, Shell, record, rows

from snnexp.experiment import compose, run

WORDS = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=2", "logger=jsonl", "network.hidden=[4]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; tests take copies."""
    return run(compose([*WORDS, f"logger.root={tmp_path_factory.mktemp('trained')}"])).path


@pytest.fixture
def finished(snnexp: Shell, trained: Path) -> Path:
    return Path(shutil.copytree(trained, snnexp.folder / "outputs" / "regression_sqrt" / trained.name))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_files_say_their_format(finished: Path) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert record(finished)["format"] == checkpoint["format"] >= 2


@pytest.mark.parametrize("format", [99, "two", 0, None, True])
def test_a_record_of_another_format_is_refused_and_listed(snnexp: Shell, finished: Path, format: object) -> None:
    change(finished / "run.json", format=format)
    ended = snnexp("resume", str(finished), "trainer.max_epochs=3")
    assert (ended.code, len(ended.err)) == (5, 1)
    ended = snnexp("runs", ".", "--json")
    (listed,) = json.loads("\n".join(ended.out))
    assert (ended.code, listed["status"]) == (0, "damaged")


def test_a_record_of_a_newer_format_ends_no_report(snnexp: Shell, finished: Path) -> None:
    change(finished / "run.json", format=99)
    assert snnexp("report", str(finished)).code == 0


def test_a_record_of_the_same_format_is_not_refused(snnexp: Shell, finished: Path) -> None:
    change(finished / "run.json", format=record(finished)["format"])
    assert snnexp("resume", str(finished), "trainer.max_epochs=3").code == 0
    (listed,) = json.loads("\n".join(snnexp("runs", ".", "--json").out))
    assert listed["status"] == "finished"


def test_a_checkpoint_of_a_newer_format_is_refused(snnexp: Shell, finished: Path) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    last.with_name("last.ckpt.sha256").unlink()
    measure = ("eval", str(finished), "--ckpt", str(last))
    torch.save(content, last)
    assert snnexp(*measure).code == 0
    torch.save({**content, "format": 99}, last)
    ended = snnexp(*measure)
    assert (ended.code, len(ended.err), ended.out) == (5, 1, [])


def test_a_sweep_of_a_newer_format_is_refused(snnexp: Shell) -> None:
    (old,) = (Path(__file__).parents[1] / "old" / "sweep").iterdir()
    sweep = snnexp.folder / old.name
    shutil.copytree(old, sweep)
    # nothing of it is left to be run
    change(sweep / "sweep.json", points=json.loads((sweep / "sweep.json").read_text())["points"][:1])
    assert snnexp("resume", str(sweep)).code == 0
    change(sweep / "sweep.json", format=99)
    ended = snnexp("resume", str(sweep))
    assert (ended.code, len(ended.err)) == (5, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shorter", "longer", "words"),
    [
        (3, 5, ("logger.save_every_n_epochs=4", "optimizer.lr=0.5")),
        (73, 100, ("optimizer.lr=0.05", "experiment=regression_linear")),
    ],
)
def test_a_run_that_became_longer_is_the_longer_run(
    snnexp: Shell, shorter: int, longer: int, words: tuple[str, ...]
) -> None:
    words = (*WORDS, *words, "data.num_samples=3", "data.batch_size=2", "num_steps=10")
    assert snnexp("train", *words, f"trainer.max_epochs={longer}").code == 0
    (whole,) = snnexp.runs()
    assert snnexp("train", *words, f"trainer.max_epochs={shorter}").code == 0
    (part,) = set(snnexp.runs()) - {whole}
    assert snnexp("resume", str(part), f"trainer.max_epochs={longer}").code == 0
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


class TestLimits:
    BLOBS = ("train", *OUTSIDE, "data=blobs", "data.val=20", "network.hidden=[4]", "num_steps=3", "trainer=cpu")

    def test_training_is_limited_without_the_test(self, snnexp: Shell) -> None:
        assert snnexp(*self.BLOBS, "logger=jsonl", "trainer.limit_batches=1").code == 0
        assert record(snnexp.run())["samples"] == {"train": 16, "val": 16, "test": 32}
        assert max(row["step"] for row in rows(snnexp.run()) if "train/epoch_loss" in row) == 0

    def test_the_test_is_limited_by_a_key_of_its_own(self, snnexp: Shell) -> None:
        assert snnexp(*self.BLOBS, "logger=jsonl", "trainer.limit_test_batches=1").code == 0
        assert record(snnexp.run())["samples"] == {"train": 64, "val": 20, "test": 16}

    @pytest.mark.slow
    def test_one_batch_of_everything_is_enough_to_look(self, snnexp: Shell) -> None:
        assert snnexp(*self.BLOBS, "debug=batch").code == 0
        assert record(snnexp.run())["samples"] == {"train": 16, "val": 16, "test": 16}

    @pytest.mark.slow
    def test_an_evaluation_goes_over_what_the_test_went_over(self, snnexp: Shell) -> None:
        assert snnexp(*self.BLOBS, "logger=jsonl", "trainer.limit_batches=1", "trainer.max_epochs=2").code == 0
        path = snnexp.run()
        again = json.loads("\n".join(snnexp("eval", str(path), "--json").out))
        assert again.keys() >= {"test/loss", "test/accuracy", "test/synops"}
        assert again == {name: record(path)["metrics"][name] for name in again}

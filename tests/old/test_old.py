"""Runs, sweeps and searches that earlier code has written are resumed, measured, listed and reported; see write.py."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from shell import Shell, record, rows

HERE = Path(__file__).parent
PARTS = str(HERE / "parts")
DONE = {"finished", "pruned"}


@pytest.fixture
def old(snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command line in this process, which knows the parts that the old sweep was made of."""
    monkeypatch.syspath_prepend(PARTS)
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "oldpkg")
    return snnexp


def copy(name: str, folder: Path) -> Path:
    """A copy of the only directory of that name; its id stays."""
    (found,) = (HERE / name).iterdir()
    return Path(shutil.copytree(found, folder / name / found.name))


def test_a_finished_run_is_measured_as_it_reported(old: Shell) -> None:
    run = copy("finished", old.folder)
    reported = record(run)["metrics"]
    ended = old("eval", str(run), "--json")
    assert ended.code == 0
    measured = json.loads("\n".join(ended.out))
    assert measured.keys() >= reported.keys()
    # its means were summed in float32, see DIFFERENCES.md
    assert {name: measured[name] for name in reported} == pytest.approx(reported, rel=1e-6)


def test_a_finished_run_stays_as_it_is(old: Shell) -> None:
    run = copy("finished", old.folder)
    before = (run / "metrics.jsonl").read_bytes()
    assert old("resume", str(run)).code == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_an_interrupted_run_ends_as_the_one_that_was_left_alone(old: Shell) -> None:
    run, whole = copy("interrupted", old.folder), copy("finished", old.folder)
    assert old("resume", str(run)).code == 0
    assert record(run)["status"] == "finished"
    assert record(run)["resumed_at_step"] == [8]
    # written on another machine, and PyTorch rounds as the CPU lets it; on one machine, test_resume compares bits
    *trained, tested = rows(whole)
    *again, tested_again = rows(run)
    assert again == [pytest.approx(row, rel=1e-6) for row in trained]
    # its means were summed in float32, see DIFFERENCES.md
    assert {name: tested_again[name] for name in tested} == pytest.approx(tested, rel=1e-6)
    one, other = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, whole))
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=1e-6, atol=1e-7)


def test_a_finished_run_can_become_longer(old: Shell) -> None:
    run = copy("finished", old.folder)
    assert old("resume", str(run), "trainer.max_epochs=6").code == 0
    assert record(run)["status"] == "finished"
    assert [row["epoch"] for row in rows(run) if "train/epoch_loss" in row] == [*range(6)]


def test_runs_are_listed(old: Shell) -> None:
    for name in ("finished", "interrupted"):
        copy(name, old.folder)
    ended = old("runs", ".", "--json")
    assert ended.code == 0
    listed = {run["status"]: run for run in json.loads("\n".join(ended.out))}
    assert listed.keys() == {"finished", "interrupted"}
    assert listed["finished"]["metrics"]["test/l1"] == record(next((HERE / "finished").iterdir()))["metrics"]["test/l1"]
    assert listed["finished"]["seed"] == 0


@pytest.mark.parametrize(
    "name", ["finished", "sweep", *(pytest.param(name, marks=pytest.mark.slow) for name in ("interrupted", "search"))]
)
def test_is_reported(old: Shell, name: str) -> None:
    folder = copy(name, old.folder)
    ended = old("report", str(folder), "--out", str(old.folder / "page"))
    assert (ended.code, ended.err) == (0, [])
    assert "</html>" in (old.folder / "page" / "report.html").read_text()
    assert [*(old.folder / "page").rglob("*.png")]


@pytest.mark.slow
def test_a_sweep_is_resumed_to_its_end(old: Shell) -> None:
    sweep = copy("sweep", old.folder)
    before = json.loads((sweep / "sweep.json").read_text())["points"]
    words = [point["status"] for point in before]
    assert words == ["finished", "failed", "diverged", "timeout", "interrupted", "running", "pending"]
    ended = old("resume", str(sweep), SNNEXP_ALLOW_TARGETS="oldpkg", OLD_FAULTS="mended", PYTHONPATH=PARTS)
    assert ended.code == 0
    after = json.loads((sweep / "sweep.json").read_text())["points"]
    assert {point["status"] for point in after} == {"finished"}
    assert json.loads((sweep / "sweep.json").read_text())["format"] >= 2
    assert after[0]["run"] == before[0]["run"]
    with (sweep / "summary.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 7
    # what had been trained for some steps was not begun again
    assert [after[index]["run"] for index in (4, 5)] == [before[index]["run"] for index in (4, 5)]


@pytest.mark.slow
def test_a_search_is_resumed_to_its_end(old: Shell) -> None:
    search = copy("search", old.folder)
    before = json.loads((search / "sweep.json").read_text())["points"]
    assert [point["status"] for point in before] == ["finished", "finished", "interrupted"]
    assert old("resume", str(search)).code == 0
    after = json.loads((search / "sweep.json").read_text())["points"]
    assert [point["status"] for point in after] == ["finished"] * 4
    assert [point["overrides"] for point in after[:3]] == [point["overrides"] for point in before]
    # what it went by was not recorded then
    assert json.loads((search / "sweep.json").read_text())["search"]["settings"]["metric"] == "test/l1"


@pytest.mark.parametrize(
    "change", ["hydra.launcher.workers=010", "hydra.launcher.timeout_s=[", "hydra.launcher.threads=x"]
)
def test_a_setting_that_is_none_is_refused(old: Shell, change: str) -> None:
    sweep = copy("sweep", old.folder)
    before = json.loads((sweep / "sweep.json").read_text())
    ended = old("resume", str(sweep), change)
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.key.startswith(change.partition("=")[0])
    after = json.loads((sweep / "sweep.json").read_text())
    assert after.pop("format") >= 2
    # the point that was running when the driver was killed; that it is not is settled first
    before["points"][5] |= {"status": "interrupted", "reason": after["points"][5]["reason"]}
    assert after == before

"""Pages about runs: what their tables hold."""

import csv
import html
import re

import pytest
from shell import OUTSIDE, Shell, rows, typed


@pytest.mark.slow
def test_the_layers_of_a_run_with_a_validation_split_are_layers(snnexp: Shell) -> None:
    words = ("data=blobs", "data.val=16", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl")
    assert snnexp("train", *OUTSIDE, *words).code == 0
    run = snnexp.run()
    assert snnexp("report", str(run)).code == 0
    (layers,) = run.rglob("layers.csv")
    with layers.open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["hidden1", "readout"]
    (result,) = run.rglob("result.csv")
    with result.open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} >= {"val/loss", "test/loss", "test/accuracy"}


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [(), ("-m", "hydra.launcher.workers=1")], ids=["run", "point of a sweep"])
def test_what_was_run_can_be_typed_again(
    snnexp: Shell, monkeypatch: pytest.MonkeyPatch, sweep: tuple[str, ...]
) -> None:
    words = ("data=blobs", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl", "logger.root=of mine")
    assert snnexp("train", *sweep, *OUTSIDE, *words).code == 0
    (run,) = [path.parent for path in snnexp.folder.rglob("run.json")]
    page = run / "report.html"
    assert snnexp("report", str(run)).code == 0
    monkeypatch.delenv("SNNEXP_ALLOW_TARGETS")
    monkeypatch.chdir(snnexp.folder.parent)
    (command,) = re.findall(r">([^<]*snnexp train [^<]*)<", page.read_text())
    words, variables = typed(html.unescape(command))
    assert snnexp(*words, f"logger.root={snnexp.folder / 'again'}", **variables).code == 0
    (again,) = snnexp.folder.glob("again/*/*")
    assert rows(again) == rows(run)


LINEAR = ("experiment=regression_linear", "trainer.max_epochs=2", "network.hidden=[4]", "logger=jsonl")


@pytest.mark.slow
def test_a_page_about_all_experiments_has_an_overview(snnexp: Shell) -> None:
    for words in ((*LINEAR, "seed=1"), (*LINEAR, "seed=2"), (*LINEAR, "name=another")):
        assert snnexp("train", *words).code == 0
    assert snnexp("report", "outputs").code == 0
    with (snnexp.folder / "outputs" / "figures" / "experiments.csv").open() as file:
        found = {row["experiment"]: (row["runs"], row["n"]) for row in csv.DictReader(file)}
    assert found == {"regression_linear": ("2", "2"), "another": ("1", "1")}


@pytest.mark.slow
def test_a_page_about_several_paths_lies_beside_the_first(snnexp: Shell) -> None:
    for seed in (1, 2):
        assert snnexp("train", *LINEAR, f"seed={seed}").code == 0
    first, second = snnexp.runs()
    ended = snnexp("report", str(first), str(second))
    page = first.parent / "report" / "report.html"
    assert page.is_file()
    assert ended.out == [f"report {page}"]
    ended = snnexp("report", "outputs", "--metric", "test/looss")
    assert (ended.code, ended.key) == (2, "--metric")
    assert "test/loss" in ended.err[0]

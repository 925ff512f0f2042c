"""The verbs of ``snnexp.experiment``, as a notebook or another program calls them."""

import re
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from shell import Shell

from snnexp.experiment import build, compose, evaluate, run

WORDS = ["experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl", "network.hidden=[4]"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_can_be_measured_again() -> None:
    done = run(compose(WORDS))
    assert done.status == "finished"
    again = evaluate(done.path)
    assert again.keys() >= {"test/loss", "test/l1", "test/relative_error", "test/synops"}
    assert again == {name: done.metrics[name] for name in again}


def test_composing_leaves_another_application_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("x: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose(WORDS)
        assert GlobalHydra.instance().hydra is before


def test_a_path_may_be_a_text() -> None:
    done = run(compose(WORDS))
    assert evaluate(str(done.path)) == evaluate(done.path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("nonsense", 3), ("name", "../evil")])
def test_a_changed_config_is_checked(key: str, value: object, tmp_path: Path) -> None:
    cfg = compose(WORDS)
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ValueError, match=f"^{re.escape(key)}: "):
        run(cfg)
    assert [*tmp_path.iterdir()] == []


def test_the_command_line_and_a_notebook_give_the_same(snnexp: Shell) -> None:
    done = run(compose(WORDS))
    assert snnexp("train", *WORDS).code == 0
    (other,) = set(snnexp.runs()) - {done.path.resolve(), snnexp.folder / done.path}
    assert (other / "metrics.jsonl").read_bytes() == (done.path / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("tiny_mnist")
def test_changed_data_of_an_experiment_are_not_those_of_the_next() -> None:
    cfg = compose(["experiment=mnist_leaky", "trainer=cpu", "data.batch_size=8", "network.hidden=[4]"])
    first = build(cfg).data
    before = [tensor.clone() for tensor in first.train[[*range(8)]]]
    for split in (first.train, first.test):
        split.images.zero_()
        split.labels.fill_(7)
    assert not first.train[[0]][0].any()
    after = build(cfg).data.train[[*range(8)]]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_what_is_shown_of_objects_is_short_and_holds_no_values() -> None:
    cfg = compose([*WORDS, "neuron=rleaky", "readout=leaky", "logger.root=elsewhere"])
    parts = build(cfg)
    x, _ = parts.data.train[[0]]
    with torch.no_grad():
        trace = parts.network(parts.encoder(x))[-1]
    shape = list(trace.membrane.shape)
    for shown in (repr(trace), repr(trace.reduced())):
        assert type(trace).__name__ in shown or "Reduced" in shown
        assert f"float32{shape}" in shown or f"float32{shape[1:]}" in shown
        assert "tensor" not in shown
    done = run(cfg)
    assert str(done.path) in repr(done)
    for thing in (trace, trace.reduced(), parts, done):
        assert len(repr(thing)) < 400
        assert "\n" not in repr(thing)

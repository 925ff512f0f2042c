"""The verbs of ``snnexp.experiment``, as a notebook or another program calls them."""

import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from shell import Shell, record

from snnexp.experiment import build, compose, evaluate, load, resume, run, runs, sweep

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


def snapshot() -> dict[str, Any]:
    """What belongs to the whole process, by name."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "hydra": id(GlobalHydra.instance().hydra),
        "hydra version": VersionBase.instance().version_base,
        "hydra config": id(HydraConfig.instance().cfg),
        "hydra sources": {**SourcesRegistry.instance().types},
        "resolvers": {**BaseContainer._resolvers},
        "random": (random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "numbers": (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "loggers": {
            logger.name: (logger.level, [*logger.handlers], [*logger.filters], logger.propagate, logger.disabled)
            for logger in loggers
            if isinstance(logger, logging.Logger)
        },
        "warnings": ([*warnings.filters], warnings.showwarning, logging._warnings_showwarning),  # type: ignore[attr-defined]
        "signals": ({number: signal.getsignal(number) for number in signal.valid_signals()}, wakeup),
        "environment": {**os.environ},
        "arguments": (id(sys.argv), [*sys.argv]),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "places": (os.getcwd(), [*sys.path]),
        "streams": [(id(stream), getattr(stream, "errors", None)) for stream in (sys.stdout, sys.stderr)],
        "rank": getattr(rank_zero_only, "rank", None),
    }


def traces(before: dict[str, Any]) -> dict[str, Any]:
    """What has changed in the process since."""
    after = snapshot()
    # what was imported meanwhile has made loggers of its own
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
    return {name: value for name, value in after.items() if value != before[name]}


class OtherApplication:
    """An application with a Hydra, flags, loggers and names of its own, which runs in this process too."""

    def __init__(self, folder: Path) -> None:
        (folder / "theirs.yaml").write_text("x: ${new_run_id:}\ny: ${now:%Y}\n")

    def config(self) -> Any:
        return OmegaConf.to_container(hydra.compose("theirs"), resolve=True)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherApplication]:
    for name, value in (("PL_GLOBAL_SEED", "5"), ("PYTORCH_NVML_BASED_CUDA_CHECK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    # which no run of this process has found
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    monkeypatch.setattr(BaseContainer, "_resolvers", {**BaseContainer._resolvers})
    monkeypatch.setitem(SourcesRegistry.instance().types, "file", FileConfigSource)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    theirs = OtherApplication(tmp_path)
    torch.use_deterministic_algorithms(False)
    logging.captureWarnings(True)
    logger, level = logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.pytorch").level
    logger.setLevel(logging.CRITICAL)
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        OmegaConf.register_new_resolver("new_run_id", lambda: "mine", replace=True)
        OmegaConf.register_new_resolver("now", lambda pattern: f"their {pattern}", replace=True)
        yield theirs
    logger.setLevel(level)
    logging.captureWarnings(False)


class Unlucky(Callback):
    """Fails in the middle of a run."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        torch.rand(3), np.random.rand(3), random.random()
        logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
        # as Lightning does where a run has several processes
        torch.set_num_threads(torch.get_num_threads() + 1)
        raise LookupError("unlucky")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished."""
    return run(compose([*WORDS, f"logger.root={tmp_path_factory.mktemp('done')}"])).path


def refused(verb: Callable[..., object], *arguments: Any, error: type[Exception], **named: Any) -> None:
    with pytest.raises(error):
        verb(*arguments, **named)


VERBS: dict[str, Callable[[Path], object]] = {
    "compose": lambda done: compose(WORDS),
    "compose, refused": lambda done: refused(compose, ["experiment=nonsense"], error=ValueError),
    "build": lambda done: build(compose(WORDS)),
    "run": lambda done: run(compose(WORDS)),
    "run, failed": lambda done: refused(run, compose(WORDS), watching=[Unlucky()], error=LookupError),
    "resume": lambda done: resume(shutil.copytree(done, "copied"), ["trainer.max_epochs=2"]),
    "evaluate": lambda done: evaluate(done),
    "load": lambda done: load(done),
    "load, refused": lambda done: refused(load, done, "nonsense", error=Exception),
    "runs": lambda done: runs(done.parent),
    "sweep, refused": lambda done: refused(sweep, [*WORDS, "seed=1,x"], error=ValueError),
    "evaluate, refused": lambda done: refused(evaluate, done, "nonsense", error=Exception),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leaves_no_trace_in_the_process(verb: str, done: Path, theirs: OtherApplication) -> None:
    config, before = theirs.config(), snapshot()
    assert config == {"x": "mine", "y": "their %Y"}
    VERBS[verb](done)
    assert traces(before) == {}
    assert theirs.config() == config


@pytest.mark.slow
def test_a_sweep_from_a_notebook(theirs: OtherApplication, tmp_path: Path) -> None:
    before = snapshot()
    points = sweep([*WORDS, "hydra.launcher.workers=1", "optimizer.lr=1e-3,1e30"])
    assert traces(before) == {}
    assert theirs.config() == {"x": "mine", "y": "their %Y"}
    good, bad = points
    assert (good["status"], good["exit_code"]) == ("finished", 0)
    assert (bad["status"], bad["exit_code"]) == ("diverged", 3)
    assert [point["overrides"][-1] for point in points] == ["optimizer.lr=0.001", "optimizer.lr=1e+30"]
    assert good["metrics"] == record(Path(good["path"]))["metrics"]
    listed = {found["path"]: found for found in runs(tmp_path / "outputs")}
    assert good.keys() == listed[str(Path(good["path"]).absolute())].keys()


@pytest.mark.slow
def test_a_sweep_from_a_thread(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(sweep([*WORDS, "hydra.launcher.workers=1", "seed=3"])))
    thread.start()
    thread.join()
    assert [point["status"] for point in found] == ["finished"]


def test_runs_are_listed_as_the_command_line_does(snnexp: Shell) -> None:
    done = run(compose(WORDS))
    ended = snnexp("runs", "--json")
    found = runs()
    assert found == json.loads("\n".join(ended.out))
    assert [Path(known["path"]) for known in found] == [done.path]
    with pytest.raises(ValueError, match="nowhere"):
        runs("nowhere")


def test_a_run_records_what_was_changed_after_composing(done: Path) -> None:
    assert [known["overrides"][:-1] for known in runs(done)] == [WORDS]
    cfg = compose([*WORDS, "seed=2", "neuron.beta=0.9"])
    cfg.seed, cfg.neuron.beta, cfg.network.hidden, cfg.logger.root, cfg.published = 3, 0.75, [5], "a b", {}
    (known,) = runs(run(cfg.copy()).path)
    # data have drawn with the seed of before, and that is told too
    changed = {"seed=3", "data.seed=2", "network.hidden=[5]", "neuron.beta=0.75", "logger.root='a b'"}
    assert set(known["overrides"]) == {*WORDS[:-1], *changed}
    # what was recorded can be typed
    assert {**compose(known["overrides"]), "published": {}} == cfg


class TestLoad:
    @pytest.mark.parametrize("ckpt", ["last", "best", "init"])
    def test_gives_the_trained_network(self, ckpt: str, done: Path) -> None:
        network, cfg = load(str(done), checkpoint=ckpt)
        assert not network.training
        assert cfg == OmegaConf.load(done / "config.yaml")
        saved = torch.load(done / "checkpoints" / f"{ckpt}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[f"network.{name}"], value) for name, value in network.state_dict().items())

    @pytest.mark.usefixtures("tiny_mnist")
    def test_measures_as_the_run_did(self) -> None:
        words = ["experiment=mnist_rleaky_count", "trainer=cpu", "data.batch_size=8", "network.hidden=[9]"]
        done = run(compose([*words, "trainer.max_epochs=1", "logger=jsonl"]))
        network, cfg = load(done.path)
        parts = build(cfg)
        x, y = parts.data.test[[*range(20)]]
        with torch.no_grad():
            counts = network(parts.encoder(x))[-1].spikes.sum(0)
        assert (counts.argmax(1) == y).float().mean().item() == pytest.approx(done.metrics["test/accuracy"])

    @pytest.mark.slow
    @pytest.mark.usefixtures("tiny_mnist")
    def test_of_a_run_of_another_machine_gives_what_can_be_built_here(self, tmp_path: Path) -> None:
        words = ["experiment=mnist_leaky", "data.batch_size=8", "network.hidden=[4]", "trainer=cpu", "logger=jsonl"]
        done = run(compose(words)).path
        saved = OmegaConf.load(done / "config.yaml")
        root, saved.data.root = saved.data.root, "/nowhere"
        saved.kernel = "triton"
        saved.trainer.accelerator, saved.trainer.devices, saved.trainer.strategy = "gpu", 8, "ddp"
        OmegaConf.save(saved, done / "config.yaml")
        with pytest.raises(Exception, match="nowhere"):
            load(done)
        network, cfg = load(done, overrides=[f"data.root={root}"])
        x, _ = build(cfg).data.train[[0]]
        assert network(build(cfg).encoder(x))[-1].membrane.isfinite().all()
        with pytest.raises(ValueError, match=r"^data\.rooot: "):
            load(done, overrides=["data.rooot=x"])

    def test_takes_weights_from_elsewhere(self, done: Path, tmp_path: Path) -> None:
        network, _ = load(done)
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        again, _ = load(done, tmp_path / "weights.pt")
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())

    def test_refuses_as_evaluate_does(self, done: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(done, tmp_path / "copied")
        (copied / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
        for path, ckpt in ((tmp_path / "nowhere", "last"), (done, "nowhere.ckpt"), (copied, "last")):
            codes = []
            for verb in (load, evaluate):
                with pytest.raises(Exception) as caught:  # noqa: PT011
                    verb(path, ckpt)
                codes.append((type(caught.value), caught.value.exit_code))
            assert codes[0] == codes[1]


@pytest.mark.slow
def test_data_workers_leave_no_trace_in_the_process(theirs: OtherApplication) -> None:
    before = snapshot()
    run(compose([*WORDS, "data.num_workers=1"]))
    assert traces(before) == {}


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


@pytest.mark.slow
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
        traces = parts.network(parts.encoder(x))
    for trace in traces:
        unread = repr(trace)
        shape = list(trace.membrane.shape)
        for shown in (unread, repr(trace), repr(trace.reduced())):
            assert "Trace" in shown or "Reduced" in shown
            assert f"float32{shape}" in shown or f"float32{shape[1:]}" in shown
            assert "tensor" not in shown
    done = run(cfg)
    assert str(done.path) in repr(done)
    for thing in (*traces, traces[-1].reduced(), parts, done):
        assert len(repr(thing)) < 400
        assert "\n" not in repr(thing)


@pytest.mark.usefixtures("tiny_mnist")
def test_what_is_shown_of_traces_is_not_computed_for_it() -> None:
    parts = build(compose(["experiment=mnist_leaky", "trainer=cpu", "data.batch_size=8", "network.hidden=[4, 5]"]))
    x, _ = parts.data.train[[0, 1]]
    traces = parts.network(parts.encoder(x))
    before = [repr(trace) for trace in traces]
    assert all(
        f"spikes=float32{list(trace.spikes.shape)}" in shown for trace, shown in zip(traces, before, strict=True)
    )
    assert [repr(trace) for trace in traces] == before

"""Runs that start from the weights of another: loading, freezing and rejected configs."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ends import content
from kills import KilledError
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from snnexp import config
from snnexp.cli import main
from snnexp.config.overrides import points
from snnexp.errors import CheckpointError, ConfigError
from snnexp.experiment import build, compose, load, resume, run
from snnexp.record.run import Run
from snnexp.sweeps import grouping
from snnexp.training import stacked
from snnexp.training.initial import freeze
from snnexp.training.probe import snapshot
from snnexp.training.stacked import Outcome, Point

pytestmark = pytest.mark.slow

TINY = [
    "experiment=regression_sqrt",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
    "network.hidden=[6,5]",
    "num_steps=8",
    "data.num_samples=5",
    "data.batch_size=2",
    "logger=jsonl",
    "logger.save_every_s=0",
    "optimizer.weight_decay=0.1",
]
OUTSIDE = Path(__file__).parent / "outside"
HIDDEN = "network.layers.hidden1."
FROZEN = "init_from.freeze=[hidden1,hidden2.neuron,readout.synapse.bias]"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return run(compose([*TINY, f"logger.root={folder}"])).path


@pytest.fixture
def first(kept: Path, tmp_path: Path) -> Path:
    """A run to start from, identified by its id."""
    return shutil.copytree(kept, tmp_path / "outputs" / "first" / kept.name)


def weights(path: Path, name: str = "last") -> dict[str, Tensor]:
    return torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def is_frozen(name: str) -> bool:
    return name.startswith((HIDDEN, "network.layers.hidden2.neuron.")) or name.endswith("readout.synapse.bias")


class Stop(Callback):
    """Interrupts a run before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KilledError


def test_frozen_parameters_stay_and_the_rest_is_trained(first: Path) -> None:
    """Weight decay does not act on frozen parameters, and figures do not show them as trained."""
    # outside of its domain: a trained parameter would be projected
    state = weights(first)
    state[f"{HIDDEN}neuron.beta"].fill_(1.5)
    torch.save(state, "weights.pt")
    done = run(compose([*TINY, "seed=7", FROZEN, "init_from.ckpt=weights.pt"])).path
    begin, end = weights(done, "init"), weights(done)
    assert all(torch.equal(begin[name], value) for name, value in state.items())
    learned = {f"network.{name}" for name, _ in build(compose(TINY)).network.named_parameters()}
    assert {name for name in learned if torch.equal(begin[name], end[name])} == {*filter(is_frozen, learned)}
    assert all(torch.equal(begin[name], end[name]) for name in state.keys() - learned)
    parts = build(compose([*TINY, FROZEN]))
    seen = snapshot(parts.task, parts.data.train[[0]], None)
    assert {name.partition(".")[0] for name in seen if name.startswith("norm/")} == {"norm/hidden2", "norm/readout"}
    assert {name for name in seen if name.startswith("gradient/")} == {"gradient/hidden2", "gradient/readout"}


@pytest.mark.parametrize("kernel", ["fused", "reference"])
def test_freezing_does_not_change_other_gradients(first: Path, kernel: str) -> None:
    found = []
    for words in ([], [FROZEN]):
        parts = build(compose([*TINY, f"init_from={first}", f"kernel={kernel}", *words]))
        x, y = parts.data.train[[0, 1]]
        parts.loss(parts.network(parts.encoder(x))[-1], y).backward()
        found.append({name: weight.grad for name, weight in parts.task.named_parameters()})
    for name, gradient in found[1].items():
        assert gradient is None if is_frozen(name) else torch.equal(gradient, found[0][name]), name


@pytest.mark.parametrize(
    ("typed", "ckpt"), [(lambda path: path.name[-4:], "last"), (lambda path: f"{path}/", "best"), (str, "init")]
)
def test_a_run_is_identified_as_for_eval_and_recorded_by_path(
    first: Path, typed: Callable[[Path], str], ckpt: str
) -> None:
    cfg = compose([*TINY, f"init_from={typed(first)}", f"init_from.ckpt={ckpt}", "seed=7"])
    assert cfg.init_from == {"run": str(first), "ckpt": ckpt, "freeze": []}
    state = build(cfg).task.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights(first, ckpt).items())
    # a shared config does not need the initial run
    first.rename("elsewhere")
    assert config.check(cfg) == cfg


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4])
def test_a_run_resumes_bit_identical_without_the_initial_run(first: Path, step: int, tmp_path: Path) -> None:
    words = [*TINY, f"init_from={first.relative_to(tmp_path)}", FROZEN, "seed=7"]
    whole = run(compose(words)).path.absolute()
    with pytest.raises(KilledError):
        run(compose(words), parent=tmp_path / "stopped", watching=[Stop(step)])
    (stopped,) = (path.parent for path in (tmp_path / "stopped").glob("*/run.json"))
    if step:
        first.rename("gone")
    else:
        (stopped / "checkpoints" / "init.ckpt").unlink()
        (stopped / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    os.chdir("/")
    assert resume(stopped).status == "finished"
    assert content(stopped) == content(whole)
    network, cfg = load(stopped)
    assert torch.equal(network.state_dict()["layers.hidden1.synapse.weight"], weights(whole)[f"{HIDDEN}synapse.weight"])
    # the initial run may be deleted
    assert build(cfg).network.layers["hidden1"].synapse.weight.requires_grad is False
    with pytest.raises(ConfigError, match=r"^init_from\.freeze: "):
        resume(stopped, ["init_from.freeze=[hidden1]"])


def test_without_init_from_weights_are_drawn(first: Path) -> None:
    text = (first / "config.yaml").read_text()
    begin, end = text.index("init_from:"), text.index("data:")
    (first / "config.yaml").write_text(text[:begin] + text[end:])
    assert config.load(first / "config.yaml").init_from == {"run": None, "ckpt": "last", "freeze": []}
    assert resume(first, ["trainer.max_epochs=3"]).status == "finished"


def parallel(words: Sequence[Sequence[str]]) -> list[Point]:
    return [Point(compose([*TINY, *more]), [*TINY, *more]) for more in words]


def test_members_of_a_stack_start_from_different_runs(first: Path, tmp_path: Path) -> None:
    second = run(compose([*TINY, "seed=3"])).path
    starts = [f"init_from.run={first}", f"init_from.run={second}"]
    members = parallel([[start, FROZEN, f"seed={seed}"] for seed, start in enumerate(starts)])
    ends: dict[int, Outcome] = {}
    stacked.train(members, tmp_path / "stack", lambda index, path: None, ends.__setitem__)
    assert [end.reason for end in ends.values()] == ["", ""]
    for index, start in enumerate((first, second)):
        path = ends[index].run
        assert path is not None
        begin, end, alone = weights(start), weights(path), weights(run(members[index].cfg).path)
        assert Run(path).read()["stack"]["members"] == 2
        for name, value in begin.items():
            assert torch.equal(end[name], value) or not is_frozen(name), name
            torch.testing.assert_close(end[name], alone[name], rtol=1e-4, atol=1e-5)


def test_which_points_share_a_stack(first: Path) -> None:
    keys = [
        grouping.key(compose([*TINY, *words]))
        for words in ([], [f"init_from={first}"], [f"init_from={first}", FROZEN], [FROZEN])
    ]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_a_sweep_over_runs_keeps_ids_that_look_like_numbers() -> None:
    assert [*points(["init_from=5193,12e4,null,a/b"])] == [
        ["init_from.run='5193'"],
        ["init_from.run='12e4'"],
        ["init_from.run=null"],
        ["init_from.run=a/b"],
    ]
    assert config.compose_unchecked(["init_from=0012"])[0].init_from.run == "0012"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["init_from=nowhere"], "init_from.run: nowhere: no such directory"),
        (["init_from=outputs/first"], "init_from.run: outputs/first is not a run directory"),
        (["init_from=/nowhere"], "init_from.run: /nowhere: not the directory of a run"),
        (["init_from.ckpt=best"], "init_from.ckpt: got best"),
        (["init_from.freeze=hidden1"], "init_from.freeze: got hidden1, must be a list"),
        (["init_from.freeze=[hiden1]"], "init_from.freeze: hiden1 matches no parameter, there are hidden1, hidden2"),
        (["init_from.freeze=[hidden]"], "init_from.freeze: hidden matches no parameter, there are hidden1, hidden2"),
        (
            ["init_from.freeze=[readout.beta]"],
            "init_from.freeze: readout.beta matches no parameter, there are hidden1.",
        ),
        (["init_from.freeze=[hidden1,hidden2,readout]"], "init_from.freeze: every parameter is frozen"),
        (["init_from.run=RUN", "readout.threshold=0.5"], "init_from: readout.neuron.threshold is 1 in the weights"),
    ],
)
def test_invalid_configs_are_rejected(words: list[str], key: str, first: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(compose([*TINY, *(word.replace("RUN", str(first)) for word in words)]))
    assert str(caught.value).startswith(key)
    assert [path.name for path in Path("outputs").iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["network.hidden=[6]"], "unknown layers.hidden2.synapse.weight"),
        (["network.hidden=[6,5,4]"], "no layers.hidden3.synapse.weight"),
        (["network.hidden=[6,4]"], r"layers.hidden2.synapse.weight is \[5, 6\].*, must be \[4, 6\].*; layers.readout"),
        (["init_from.ckpt=nowhere.pt"], "nowhere.pt: no such checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_named(words: list[str], sentence: str, first: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        run(compose([*TINY, f"init_from={first}", *words]))
    assert caught.value.exit_code == 5
    assert [path.name for path in Path("outputs").iterdir()] == ["first"]


@pytest.mark.parametrize(("network", "layer"), [("skip", "maps"), ("plain", "front")])
def test_freezing_includes_buffers_of_other_networks(
    network: str, layer: str, monkeypatch: pytest.MonkeyPatch, tiny_mnist: Path
) -> None:
    """Batch norm and pooling in a graph, and a plain module."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "adaptpkg")
    words = ["trainer=cpu", "debug=batch", "logger=jsonl", "num_steps=3", "data.batch_size=8", "loss=nll_max_voltage"]
    train = ["train", "--config-dir", str(OUTSIDE / "conf"), f"network={network}", *words]
    assert main(train) == 0
    (first,) = (path.parent for path in Path("outputs").glob("*/*/run.json"))
    assert main([*train, "seed=5", f"init_from={first}", f"init_from.freeze=[{layer}]"]) == 0
    (second,) = {path.parent for path in Path("outputs").glob("*/*/run.json")} - {first}
    before, begin, end = weights(first), weights(second, "init"), weights(second)
    assert all(torch.equal(begin[name], value) for name, value in before.items())
    moved = {name for name, value in begin.items() if not torch.equal(end[name], value)}
    assert moved
    frozen = (f"network.layers.{layer}.", f"network.module.{layer}.")
    assert any(name.startswith(frozen) for name in begin)
    assert not any(name.startswith(frozen) for name in moved)


def test_dropout_in_a_frozen_layer_keeps_its_mode() -> None:
    network = build(compose(TINY)).network
    synapse = nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    cast(Any, network.layers["hidden1"]).synapse = synapse
    freeze(network, ["hidden2"])
    assert [module.training for module in synapse] == [True, True, True]
    freeze(network, ["hidden1.synapse.1"])
    assert [weight.requires_grad for weight in synapse.parameters()] == [True, True, False, False]
    freeze(network, ["hidden1"])
    assert [module.training for module in synapse] == [True, False, True]
    assert not any(weight.requires_grad for weight in synapse.parameters())


def test_a_parameter_stored_as_logarithm_is_frozen_by_its_name(tiny_mnist: Path) -> None:
    words = ["experiment=mnist_parametrized_lif", "network.hidden=[4]", "neuron.log_tau=true"]
    parts = build(compose([*words, "init_from.freeze=[hidden1.neuron.tau_mem_inv]"]))
    frozen = [name for name, weight in parts.task.named_parameters() if not weight.requires_grad]
    assert frozen == ["network.layers.hidden1.neuron.parametrizations.tau_mem_inv.original"]

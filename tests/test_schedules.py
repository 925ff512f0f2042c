"""Schedules and optimizers: the config group, the earlier key ``optimizer.schedule``, and user-defined parts."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ends
import pytest
import torch
from kills import killed_and_resumed
from torch import nn

from snnexp import config, experiment, optimizers, schedules
from snnexp.config import compose, compose_unchecked, plain
from snnexp.errors import ConfigError
from snnexp.experiment import build, resume, run
from snnexp.optimizers import NamedParameter, Parameters
from snnexp.record import upgrade
from snnexp.sweeps import grouping
from snnexp.training import stacked
from snnexp.training.stacked import Outcome, Point

RECIPE = "experiment=regression_sqrt"
CONSTANT = {"_target_": "snnexp.schedules.Constant"}
COSINE = {"_target_": "snnexp.schedules.Cosine", "unit": "step", "T_max": None, "eta_min": 0.0}
PART = """
from dataclasses import dataclass
from typing import Any

import torch

from snnexp.optimizers import OptimizerFactory, Parameters
from snnexp.schedules import Schedule
from snnexp.spec.annotations import Positive, Stackable


@dataclass(frozen=True)
class ByRole(OptimizerFactory):
    stackable = True
    lr: Stackable[Positive] = 1e-2

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        return torch.optim.Adamax(parameters.by_role(neuron={"lr": self.lr / 10}), self.lr)


@dataclass(frozen=True)
class Steps(Schedule):
    stackable = True
    unit = "epoch"
    depends_on_length = False
    gamma: float = 0.5

    def __call__(self, optimizer: Any, total: int) -> Any:
        assert total in (1, 3)
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, self.gamma)


@dataclass(frozen=True)
class WarmUp(OptimizerFactory):
    lr: Positive = 1e-2
    schedule: str = "linear"

    def __call__(self, parameters: Any, total_steps: int) -> dict[str, Any]:
        optimizer = torch.optim.Adamax(parameters, self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config folder, next to a package."""
    (tmp_path / "ownopt.py").write_text(PART)
    for name in ("ByRole", "WarmUp"):
        file = tmp_path / "conf" / "optimizer" / f"{name.lower()}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"_target_: ownopt.{name}\nlr: 0.01\n")
    (tmp_path / "conf" / "schedule").mkdir()
    (tmp_path / "conf" / "schedule" / "steps.yaml").write_text("_target_: ownopt.Steps\n")
    (tmp_path / "conf" / "experiment").mkdir()
    recipe = "# @package _global_\ndefaults: [regression_sqrt]\noptimizer:\n  schedule: cosine\n"
    (tmp_path / "conf" / "experiment" / "old.yaml").write_text(recipe)
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "ownopt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ownopt", raising=False)
    return tmp_path / "conf"


def of(folder: Path, *overrides: str) -> dict[str, object]:
    cfg = config.check(compose_unchecked(overrides, [folder])[0])
    nodes = plain(cfg)
    return {"schedule": nodes["schedule"], "own": nodes["optimizer"].get("schedule")}


class TestEarlierKey:
    def test_override_selects_the_choice(self) -> None:
        assert plain(compose([RECIPE, "optimizer.schedule=cosine"])) == plain(compose([RECIPE, "schedule=cosine"]))
        cfg = compose(
            [RECIPE, "optimizer.schedule=plateau", "schedule.measure=train/epoch_loss", "schedule.patience=3"]
        )
        assert (cfg.schedule._target_, cfg.schedule.patience) == ("snnexp.schedules.Plateau", 3)

    def test_sweep_selects_the_choices(self) -> None:
        points = [*config.points([RECIPE, "optimizer.schedule=constant,cosine", "seed=1,2"])]
        composer = config.Composer()
        actual = [plain(config.check(composer.point(point)[0]))["schedule"] for point in points]
        assert actual == [CONSTANT, CONSTANT, COSINE, COSINE]

    def test_overrides_take_precedence_over_the_key_in_a_file(self, folder: Path) -> None:
        assert of(folder, "experiment=old") == {"schedule": COSINE, "own": None}
        assert of(folder, "experiment=old", "schedule=constant") == {"schedule": CONSTANT, "own": None}
        assert of(folder, "experiment=old", "optimizer.schedule=constant") == {"schedule": CONSTANT, "own": None}

    def test_an_optimizer_can_have_an_argument_schedule(self, folder: Path) -> None:
        actual = of(folder, RECIPE, "optimizer=warmup", "optimizer.schedule=other")
        assert actual == {"schedule": CONSTANT, "own": "other"}

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                ["optimizer.schedule=sawtooth"],
                "schedule=sawtooth: no such choice, there are constant, cosine, exponential",
            ),
            (["optimizer.schedule=3"], "optimizer.schedule: unknown key, L2Adam has no such argument"),
            (["optimizer.schedule=cosine", "schedule=cosine"], "optimizer.schedule: is the former name of schedule"),
        ],
    )
    def test_refuses_other_values(self, overrides: Sequence[str], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            compose([RECIPE, *overrides])
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(("text", "node"), [("constant", CONSTANT), ("cosine", COSINE)])
    def test_saved_configs_are_upgraded(self, text: str, node: dict[str, str]) -> None:
        now = plain(compose([RECIPE, f"schedule={text}"]))
        saved = {name: value for name, value in now.items() if name != "schedule"}
        saved["optimizer"] = {**now["optimizer"], "schedule": text}
        saved["trainer"] = {name: value for name, value in now["trainer"].items() if name != "early_stopping"}
        assert upgrade.config(saved) == {**now, "schedule": {"_target_": node["_target_"]}}
        assert [*upgrade.config(saved)] == [*now], "in the current order"

    def test_a_saved_config_is_changed(self) -> None:
        saved = compose([RECIPE])
        changed = plain(config.change_all(saved, ["optimizer.schedule=cosine"]))["schedule"]
        assert changed == {"_target_": COSINE["_target_"]}


@pytest.mark.parametrize(
    ("schedule", "extends"),
    [
        ("constant", True),
        ("step", True),
        ("cosine", False),
        ("cosine schedule.T_max=50", True),
        ("linear", False),
        ("linear schedule.length=3", True),
        ("one_cycle", False),
        ("warmup", True),
        ("warmup schedule.then=cosine", False),
    ],
)
def test_a_run_can_be_extended_where_rates_do_not_depend_on_its_length(schedule: str, extends: bool) -> None:
    before, now = (plain(compose([RECIPE, *f"schedule={schedule}".split(), f"trainer.max_epochs={n}"])) for n in (4, 5))
    if extends:
        config.require_same(before, now)
        return
    with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: 4 -> 5, and the learning rates so far depend on it"):
        config.require_same(before, now)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", ["cosine schedule.T_max=5", "linear schedule.length=5", "warmup schedule.length=5"]
)
def test_an_extended_run_equals_a_longer_one(schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, *f"schedule={schedule}".split(), "trainer.log_every_n_steps=1"]
    short, long = (run(compose([*words, f"trainer.max_epochs={n}"])).path for n in (2, 4))
    resume(short, ["trainer.max_epochs=4"])
    first, second = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (short, long))
    torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(first["lr_schedulers"], second["lr_schedulers"], rtol=0, atol=0)


LR, TOTAL = 0.5, 10


def cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.Cosine(), lambda t: LR * cosine(t / TOTAL)),
        (schedules.Cosine(T_max=4, eta_min=0.1), lambda t: 0.1 + (LR - 0.1) * cosine(t / 4)),
        (schedules.Linear(), lambda t: LR * (1 - t / TOTAL)),
        (schedules.Linear(end_factor=0.2, length=5), lambda t: LR * (1 - 0.8 * min(t, 5) / 5)),
        (schedules.Step(step_size=3, gamma=0.5), lambda t: LR * 0.5 ** (t // 3)),
        (schedules.Exponential(gamma=0.9), lambda t: LR * 0.9**t),
        (schedules.WarmUp(length=4), lambda t: LR * min(t + 1, 4) / 4),
        (schedules.WarmUp(length=1), lambda t: LR),
        (schedules.WarmUp(length=4, then="cosine"), lambda t: LR * ((t + 1) / 4 if t < 4 else cosine((t - 4) / 6))),
        (schedules.WarmUp(length=4, then="linear"), lambda t: LR * ((t + 1) / 4 if t < 4 else 1 - (t - 4) / 6)),
        (schedules.WarmUp(length=20), lambda t: LR * (t + 1) / 20),
        (
            schedules.OneCycle(pct_start=0.5, div_factor=10, final_div_factor=5),
            # rises in the first 5 of 10 steps; the last step is 9
            lambda t: LR * (0.1 + 0.9 * (1 - cosine(t / 4)) if t <= 4 else 0.02 + 0.98 * cosine((t - 4) / 5)),
        ),
    ],
)
def test_learning_rate_curve(schedule: schedules.Schedule, expected: Callable[[int], float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
    scheduler = schedule(optimizer, TOTAL)
    assert scheduler is not None
    for step in range(TOTAL):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected(step), abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_one_cycle_changes_the_first_beta_inversely() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = schedules.OneCycle(pct_start=0.5)(optimizer, TOTAL)
    assert scheduler is not None
    betas = []
    for _ in range(TOTAL):
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    assert betas[0] == pytest.approx(0.95)
    assert min(betas) == betas[4] == pytest.approx(0.85)
    with pytest.raises(
        ConfigError, match=r"^schedule: OneCycle does not support this optimizer: optimizer must support momentum"
    ):
        schedules.OneCycle()(torch.optim.Adagrad([nn.Parameter(torch.zeros(1))]), TOTAL)


def test_one_cycle_refuses_a_rise_of_one_step() -> None:
    """PyTorch divides by pct_start total - 1."""
    with pytest.raises(ConfigError, match=r"^schedule\.pct_start: got 0\.5 of 2 steps, which is a single step"):
        schedules.OneCycle(pct_start=0.5)(torch.optim.SGD([nn.Parameter(torch.zeros(1))], momentum=0.9), 2)


class TestParameters:
    @pytest.fixture
    def named(self) -> list[NamedParameter]:
        roles = (("a.weight", "weight"), ("a.bias", "bias"), ("a.neuron.beta", "neuron"), ("b.weight", "weight"))
        return [NamedParameter(name, role, nn.Parameter(torch.zeros(1))) for name, role in roles]  # type: ignore[arg-type]

    def test_groups_by_role(self, named: list[NamedParameter]) -> None:
        weight, bias, beta, other = (each.value for each in named)
        plain = Parameters(named)
        assert [*map(id, plain)] == [*map(id, (weight, bias, beta, other))]
        optimizer = torch.optim.SGD(plain.by_role(neuron={"lr": 0.1}, bias={"momentum": 0.5}), lr=1.0)
        actual = [([*map(id, group["params"])], group["lr"], group["momentum"]) for group in optimizer.param_groups]
        assert actual == [([id(weight), id(other)], 1.0, 0), ([id(bias)], 1.0, 0.5), ([id(beta)], 0.1, 0)]

    def test_neurons_have_no_weight_decay(self, named: list[NamedParameter]) -> None:
        for groups in (decayed := Parameters(named, 0.1)), decayed.by_role(bias={"lr": 2.0}):
            optimizer = torch.optim.AdamW(groups, 1.0, weight_decay=0.1)
            decays = {id(x): group["weight_decay"] for group in optimizer.param_groups for x in group["params"]}
            assert [decays[id(each.value)] for each in named] == [0.1, 0.1, 0.0, 0.1]

    def test_names_and_roles_of_a_task(self) -> None:
        task = build(compose(["experiment=regression_sqrt", "network.hidden=[6,5]"])).task
        seen: list[Parameters] = []
        task.optimizer = lambda parameters: seen.append(parameters) or torch.optim.SGD(parameters, 0.1)  # type: ignore[func-returns-value]
        task.make_optimizer([*task.parameters()], 1)
        roles = {name.rpartition(".")[2]: role for name, role, _ in seen[0].named}
        assert roles == {"weight": "weight", "bias": "bias", "beta": "neuron"}
        assert all(name in dict(task.network.named_parameters()) for name, *_ in seen[0].named)


class TestUserParts:
    TINY = (RECIPE, "trainer=cpu", "trainer.max_epochs=3", "network.hidden=[6,5]", "num_steps=8", "logger=jsonl")

    def test_an_optimizer_with_its_own_schedule(self, folder: Path) -> None:
        task = build(config.check(compose_unchecked([*self.TINY, "optimizer=warmup"], [folder])[0])).task
        made = task.make_optimizer([*task.parameters()], 10)
        assert type(made["lr_scheduler"]["scheduler"]).__name__ == "LinearLR"
        both = config.check(compose_unchecked([*self.TINY, "optimizer=warmup", "schedule=cosine"], [folder])[0])
        with pytest.raises(ConfigError, match=r"^schedule: WarmUp has its own schedule; use schedule=constant"):
            build(both)

    def test_learning_rates_by_role_in_a_stack(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        points = []
        for lr in ("0.01", "0.02"):
            words = [*self.TINY, "optimizer=byrole", f"optimizer.lr={lr}", "schedule=cosine"]
            points.append(Point(config.check(compose_unchecked(words, [folder])[0]), words))
        outcomes: dict[int, Outcome] = {}
        stacked.train(points, Path("stack"), lambda *_: None, outcomes.__setitem__)
        for index, lr in ((0, 0.01), (1, 0.02)):
            path = outcomes[index].run
            assert path is not None
            content = torch.load(path / "checkpoints" / "init.ckpt", weights_only=True)
            rates = [group["lr"] for group in content["optimizer_states"][0]["param_groups"]]
            assert rates == pytest.approx([lr, lr / 10])

    @pytest.mark.slow
    @pytest.mark.parametrize("step", [3, 4])
    def test_epoch_schedule_resumes_exactly(
        self, step: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed and resumed at the end of an epoch and within an epoch."""
        monkeypatch.chdir(tmp_path)
        data = ["data.num_samples=5", "data.batch_size=2", "logger.save_every_s=0"]
        cfg = config.check(compose_unchecked([*self.TINY, *data, "schedule=steps"], [folder])[0])
        assert grouping.obstacle(cfg) is None
        whole = experiment.run(cfg).path
        content = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
        assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(cfg.optimizer.lr / 8)
        path = killed_and_resumed(cfg, step, tmp_path / "killed")
        assert ends.content(path) == ends.content(whole)


EACH = [
    "optimizer=adam schedule=one_cycle optimizer.neuron_lr=0.01",
    "optimizer=adamw schedule=warmup schedule.length=3 schedule.then=cosine",
    "optimizer=adamax schedule=linear optimizer.weight_decay=0.1",
    "optimizer=sgd optimizer.lr=1e-3 optimizer.nesterov=true schedule=step schedule.step_size=1",
    "optimizer=rmsprop schedule=exponential optimizer.momentum=0.5 optimizer.neuron_lr=0.001",
    "optimizer=torch optimizer._target_=torch.optim.NAdam schedule=cosine schedule.unit=epoch schedule.T_max=2",
    "optimizer=sgd optimizer.lr=1e-3 trainer.gradient_clip=0.01 trainer.accumulate=2 data.num_samples=9",
    "optimizer=adamax trainer.gradient_clip=0.001",
    "optimizer=adam schedule=plateau schedule.measure=train/epoch_loss schedule.patience=0 schedule.threshold=0.5",
]
ALONE = {"one_cycle", "warmup", "plateau", "torch", "trainer.accumulate"}
"""Choices that cannot be stacked."""
SMALL = [RECIPE, "trainer=cpu", "trainer.max_epochs=3", "network.hidden=[6,5]", "num_steps=8", "logger=jsonl"]
SMALL += ["data.num_samples=5", "data.batch_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize("words", EACH)
def test_resumes_exactly(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within an epoch, then resumed."""
    monkeypatch.chdir(tmp_path)
    cfg = compose([*SMALL, "logger.save_every_s=0", *words.split()])
    whole = experiment.run(cfg).path
    path = killed_and_resumed(cfg, 4, tmp_path / "killed")
    assert ends.content(path) == ends.content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [words for words in EACH if not {"one_cycle", "warmup", "plateau", "torch"} & {*re.split("[ =]", words)}]
)
def test_members_of_a_stack_equal_single_runs(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [[*SMALL, *words.split(), f"optimizer.lr={lr}"] for lr in ("0.001", "0.002")]
    points = [Point(compose(overrides), overrides) for overrides in typed]
    outcomes: dict[int, Outcome] = {}
    stacked.train(points, Path("stack"), lambda *_: None, outcomes.__setitem__)
    for index, overrides in enumerate(typed):
        path = outcomes[index].run
        assert path is not None
        alone = experiment.run(compose(overrides), parent=tmp_path / "alone").path
        contents = [torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (path, alone)]
        one, other = (content["state_dict"] for content in contents)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        rates = [[group["lr"] for group in content["optimizer_states"][0]["param_groups"]] for content in contents]
        assert rates[0] == pytest.approx(rates[1])


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 0.05), (3, None), (3, 0.05)])
def test_a_run_equals_a_pytorch_training_loop(
    accumulate: int, clip: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 samples in batches of 2: with 3 accumulated batches, the second step has 3 samples."""
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "data.num_samples=9", "kernel=reference", f"trainer.accumulate={accumulate}"]
    cfg = compose([*words, f"trainer.gradient_clip={'null' if clip is None else clip}"])
    record = experiment.run(cfg)
    actual = torch.load(record.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    parts = build(cfg)
    task, network = parts.task, parts.network
    optimizer = torch.optim.Adam(network.parameters(), cfg.optimizer.lr)
    batches = parts.data.train_dataloader()
    assert len(batches) == math.ceil(9 / 2 / accumulate)
    for epoch in range(cfg.trainer.max_epochs):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for values, target in batches:
            optimizer.zero_grad()
            parts.loss(network(parts.encoder(values))[-1], target).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            for neuron in network.neurons().values():
                neuron.project()
    torch.testing.assert_close(actual, {name: each.detach() for name, each in task.state_dict().items()})


def test_build_optimizer_takes_both_protocols() -> None:
    parameters = Parameters([NamedParameter("w", "weight", nn.Parameter(torch.zeros(1)))])
    assert [*optimizers.build_optimizer(optimizers.SGD(), parameters, 5)] == ["optimizer"]
    made = optimizers.build_optimizer(lambda given, steps: {"optimizer": (given, steps)}, parameters, 5)
    assert made == {"optimizer": (parameters, 5)}

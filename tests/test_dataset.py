"""Map-style datasets: inference of shapes, random transforms, splits, scaling, and errors."""

import random
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from snnexp.config import check as check_config
from snnexp.config import compose, compose_unchecked, describe_choice, targets
from snnexp.data import DataModule, Description, from_dataset
from snnexp.data.check import check
from snnexp.data.splits import split
from snnexp.errors import ConfigError, DataError, PartError
from snnexp.experiment import build
from snnexp.losses import MSEMembrane
from snnexp.neurons import Trace
from snnexp.search.settings import Settings, objective
from snnexp.spec import parts, rules
from snnexp.sweeps import grouping
from snnexp.training.stacked_data import StackedDataset

pytestmark = pytest.mark.slow

OUTSIDE = Path(__file__).parent / "outside"
BUMPS = ["data=dataset", "data.dataset._target_=adaptpkg.bumps.Bumps", "network.hidden=[4]", "trainer=cpu"]


class Made(Dataset[Any]):
    """A dataset whose samples are made by a function of the index."""

    def __init__(self, make: Callable[[int], Any], count: int = 40, **attributes: Any) -> None:
        self.make, self.count, self.read = make, count, list[int]()
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.make(index)


def drawn(index: int) -> tuple[Tensor, int]:
    """Return a sample with a random number from each global generator."""
    return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random(), float(index)]), index % 3


def plain(index: int) -> tuple[Tensor, int]:
    return torch.arange(4.0) + index, index % 3


def batches(data: DataModule, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [(x.clone(), y.clone()) for x, y in loader]


def read_all(data: DataModule) -> None:
    try:
        for loader in (data.train_dataloader(), data.test_dataloader()):
            for _ in loader:
                pass
    finally:
        # the traceback keeps the loader alive
        data.end_workers()


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


class TestSamples:
    @pytest.mark.parametrize(
        ("x", "y", "sequences", "kind", "shapes"),
        [
            (torch.rand(4), 2, False, "labels", ([5, 4], [5])),
            (np.ones((2, 3), "uint8"), np.int64(1), False, "labels", ([5, 2, 3], [5])),
            (1.5, torch.tensor([2]), False, "labels", ([5, 1], [5])),
            (torch.rand(4), 0.5, False, "values", ([5, 4], [5, 1])),
            (torch.rand(7, 4), np.ones(3), True, "values", ([7, 5, 4], [5, 3])),
            (torch.rand(4), torch.rand(7, 3), False, "trace", ([5, 4], [7, 5, 3])),
            (torch.rand(7), torch.arange(7), True, "step_labels", ([7, 5, 1], [7, 5])),
            (torch.rand(7, 4), True, True, "labels", ([7, 5, 4], [5])),
        ],
    )
    @pytest.mark.parametrize("in_memory", [False, True])
    def test_become_batches(
        self, x: Any, y: Any, sequences: bool, kind: str, shapes: tuple[list[int], list[int]], in_memory: bool
    ) -> None:
        outputs = 8 if kind in ("labels", "step_labels") else None
        dataset = Made(lambda _: (x, y), 10)
        data = from_dataset(dataset, sequences=sequences, outputs=outputs, in_memory=in_memory, batch_size=5)
        values, target = data.train[[0, 1, 2, 3, 4]]
        assert (data.target, data.num_steps) == (kind, 7 if sequences else None)
        assert ([*values.shape], [*target.shape]) == shapes
        assert values.dtype == torch.float32
        assert target.dtype == (torch.int64 if outputs else torch.float32)
        assert data.inputs == tuple(shapes[0][1 + sequences :])
        assert data.outputs == (outputs or shapes[1][-1])
        check(data, num_steps=7)

    @pytest.mark.parametrize(
        ("sample", "settings", "message"),
        [
            ((torch.rand(4), torch.arange(3)), {}, r"^target: got null, .* int64, shape \[3\]"),
            ((torch.rand(4), torch.rand(2, 2, 2)), {}, r"^target: got null"),
            ((torch.rand(4), 0.5), {"target": "labels"}, r"^target: got labels, .* float32"),
            ((torch.rand(4), torch.rand(3)), {"target": "step_labels"}, r"^target: .* whole numbers"),
            ((1.0, 2), {"sequences": True}, r"^sequences: "),
            ((torch.rand(4), 2), {}, r"^outputs: the number of classes is unknown"),
            ((torch.rand(4), 0.5), {"outputs": 3}, r"^outputs: got 3, but targets have 1"),
        ],
    )
    def test_contradictions_of_the_config_are_refused(
        self, sample: Any, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            from_dataset(Made(lambda _: sample), **settings)

    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            (torch.rand(4), "is a Tensor, must be a pair"),
            (([1.0], 1), "has an input of type list"),
            ((np.array(["a"]), 1), "has an input of type ndarray of <U1"),
            ((torch.rand(4), "cat"), "has a target of type str"),
            ((torch.rand(5), 1), r"has an input of shape \[5\], must be \[4\]"),
            ((torch.rand(4), torch.tensor([1, 2])), r"has a target of shape \[2\], must be \[\]"),
            ((torch.rand(4), 1.0), "has a target of float32, must be whole numbers"),
            ((torch.full((4,), torch.nan), 1), "has values that are NaN or infinite"),
            ((torch.rand(4), 3), "has the label 3, must be from 0 to 2"),
            ((torch.rand(4), -1), "has the label -1, must be from 0 to 2"),
        ],
    )
    def test_checked_when_read(self, odd: Any, message: str) -> None:
        data = from_dataset(Made(lambda index: odd if index == 17 else plain(index)), outputs=3, batch_size=4)
        with pytest.raises(DataError, match=f"^data: sample 17 of dataset {message}"):
            read_all(data)

    def test_images_need_a_transform(self) -> None:
        image = pytest.importorskip("PIL.Image").new("L", (3, 2), 51)
        dataset = Made(lambda _: (image, 1))
        with pytest.raises(ConfigError, match=r"^transform: .* torchvision\.transforms\.ToTensor"):
            from_dataset(dataset, outputs=2)
        data = from_dataset(dataset, outputs=2, transform=[np.asarray, lambda x: x / 255])
        assert torch.equal(data.train[[0]][0], torch.full((1, 2, 3), 0.2))

    def test_classes_are_named_or_counted(self) -> None:
        named = from_dataset(Made(plain, classes=["a", "b", "c", "d"]))
        assert (named.outputs, named.description.classes) == (4, ["a", "b", "c", "d"])
        assert from_dataset(Made(plain), in_memory=True).outputs == 3
        with pytest.raises(ConfigError, match=r"^outputs: got 5, .* 4 class names"):
            from_dataset(Made(plain, classes=["a", "b", "c", "d"]), outputs=5)

    def test_only_map_style_datasets_are_accepted(self) -> None:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                yield plain(0)

        for wrong in (Stream(), object()):
            with pytest.raises(ConfigError, match=r"^dataset: got a "):
                from_dataset(wrong)
        with pytest.raises(DataError, match="test has no samples"):
            from_dataset(Made(plain), test=Made(plain, 0))

    def test_only_the_first_batch_of_a_lazy_dataset_is_read_before_the_run(self) -> None:
        dataset = Made(plain, 10_000)
        check(from_dataset(dataset, outputs=3, batch_size=8), num_steps=5)
        assert len({*dataset.read}) < 40


@pytest.mark.parametrize("columns", [1, 8])
def test_targets_that_do_not_match_the_samples_are_not_labels(columns: int) -> None:
    targets = torch.arange(40).reshape(-1, 1) % 2 + 100 * torch.arange(columns)
    made = Made(lambda index: (torch.rand(4), targets[index, 0]), targets=targets, target_transform=None)
    data = from_dataset(made, outputs=2)
    assert sum(data.class_counts() or ()) == len(data.train)
    assert from_dataset(made, outputs=2, stratify=True, test_fraction=0.5).class_counts() == [10, 10]


class TestDraws:
    """Random numbers of samples depend only on the seed, the epoch and the index."""

    def test_do_not_depend_on_workers(self) -> None:
        runs = [
            [
                batches(from_dataset(Made(drawn), outputs=3, batch_size=8, num_workers=workers), epoch)
                for epoch in (0, 1)
            ]
            for workers in (0, 2)
        ]
        assert same(runs[0][0], runs[1][0])
        assert same(runs[0][1], runs[1][1])
        seen = {number for run in runs[0] for x, _ in run for number in x[:, :3].flatten().tolist()}
        assert len(seen) == 2 * 32 * 3, "epochs and generators differ"
        other = batches(from_dataset(Made(drawn), outputs=3, batch_size=8, seed=1))
        assert not seen & {number for x, _ in other for number in x[:, :3].flatten().tolist()}

    def test_do_not_change_on_resume(self) -> None:
        whole = batches(from_dataset(Made(drawn), outputs=3, batch_size=8), epoch=2)
        resumed = from_dataset(Made(drawn), outputs=3, batch_size=8)
        resumed.begin = (2, 3)
        assert same(batches(resumed, epoch=2), whole[3:])

    def test_are_fixed_in_evaluation(self) -> None:
        data = from_dataset(Made(drawn), outputs=3, batch_size=8)
        first = [*data.test_dataloader()]
        batches(data, epoch=4)
        assert same(first, [*data.test_dataloader()])

    def test_preserve_the_global_generators(self) -> None:
        def after(read: Callable[[], object]) -> tuple[float, ...]:
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(5)
            read()
            return torch.rand(()).item(), np.random.rand(), random.random()

        whole = after(lambda: from_dataset(Made(drawn), outputs=3, scale="standard").train[[0, 1]])
        assert whole == after(lambda: None)

    def test_other_generators_are_refused(self) -> None:
        own = np.random.default_rng(0)
        with pytest.raises(DataError, match="differs when it is read twice"):
            from_dataset(Made(lambda index: (own.random(4), 1)), outputs=2)


class TestSplits:
    def test_depend_only_on_split_seed(self) -> None:
        found = split(100, {"test": 0.2, "val": 0.1}, 0)
        assert {name: len(indices) for name, indices in found.items()} == {"test": 20, "val": 10, "train": 70}
        assert sorted(chain.from_iterable(found.values())) == [*range(100)]
        assert split(100, {"test": 0.2}, 0)["test"] == found["test"], "independent of the validation split"
        assert split(100, {"test": 0.2}, 1)["test"] != found["test"]
        data = [from_dataset(Made(plain), outputs=3, seed=seed).test[[*range(8)]] for seed in (0, 1)]
        assert torch.equal(data[0][0], data[1][0]), "independent of the seed of the run"

    def test_keep_groups_together(self) -> None:
        groups = [index // 7 for index in range(100)]
        found = split(100, {"test": 0.2, "val": 0.2}, 0, groups)
        held = {name: {groups[index] for index in indices} for name, indices in found.items()}
        assert sum(map(len, held.values())) == len({*groups})
        assert 20 <= len(found["test"]) < 27
        data = from_dataset(Made(plain, subject=[index // 4 for index in range(40)]), outputs=3, groups="subject")
        assert data.description.groups is not None
        assert not {*data.description.groups["train"]} & {*data.description.groups["test"]}
        check(data, num_steps=1)

    def test_a_group_in_two_splits_is_refused(self) -> None:
        subject = [0] * 40
        data = from_dataset(
            Made(plain, subject=subject), test=Made(plain, subject=subject), outputs=3, groups="subject"
        )
        with pytest.raises(DataError, match="group 0 has samples in the train and the test split"):
            check(data, num_steps=1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"val_fraction": 0.001}, r"^val_fraction: got 0\.001, which is less than one"),
            ({"val_fraction": 0.9}, r"^val_fraction: got 0\.9, which leaves none"),
            ({"val_fraction": 0.5, "test_fraction": 0.6}, r"^test_fraction: got 0\.6, must be at most"),
            ({"test_fraction": 0}, r"^test_fraction: got 0, but every run requires a test split"),
            ({"test": Made(plain), "test_fraction": 0.5}, r"^test_fraction: got 0\.5, but data\.test is set"),
            ({"groups": "subject"}, r"^groups: got subject, but dataset has no such attribute"),
        ],
    )
    def test_invalid_arguments_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            from_dataset(Made(plain), outputs=3, **settings)


class TestScaling:
    @pytest.mark.parametrize("in_memory", [False, True])
    @pytest.mark.parametrize("sequences", [False, True])
    def test_is_fitted_on_the_training_split(self, in_memory: bool, sequences: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (60, 5, 3) if sequences else (60, 3, 2, 2)
        values = 4 * torch.rand(shape, generator=generator) - 1
        channels = values[..., 0] if sequences else values[:, 0]
        channels.fill_(2)
        dataset = TensorDataset(values, torch.zeros(60, dtype=torch.int64))
        for scale in ("standard", "minmax"):
            data = from_dataset(
                dataset, outputs=2, sequences=sequences, in_memory=in_memory, scale=scale, batch_size=7, split_seed=3
            )
            of_train = values[split(60, {"test": 0.2}, 3)["train"]]
            axes = (0, 1) if sequences else (0, 2, 3)
            low, high = of_train.amin(axes), of_train.amax(axes)
            mean, deviation = of_train.mean(axes), of_train.std(axes, correction=0)
            shift, unit = (mean, deviation) if scale == "standard" else (low, high - low)
            tail = () if sequences else (1, 1)
            unit = torch.where(unit > 0, unit, 1)
            found = data.test[[*range(12)]][0]
            of_test = values[split(60, {"test": 0.2}, 3)["test"]]
            expected = (of_test - shift.reshape(-1, *tail)) / unit.reshape(-1, *tail)
            torch.testing.assert_close(found, expected.transpose(0, 1) if sequences else expected)
            inputs = data.train[[*range(48)]][0]
            if scale == "minmax":
                assert (inputs.min(), inputs.max()) == (0, 1), "no rounding error outside [0, 1]"


class TestProtocol:
    def test_step_labels_are_checked(self) -> None:
        class Steps:
            def __init__(self, label: int, steps: int) -> None:
                self.label, self.steps = label, steps

            def __len__(self) -> int:
                return 6

            def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
                labels = torch.full((self.steps, len(indices)), self.label, dtype=torch.int32)
                return torch.rand(5, len(indices), 3), labels

        description = Description((3,), 4, "step_labels", sequences=True, num_steps=5)
        data = DataModule(Steps(3, 5), Steps(3, 5), description=description)  # type: ignore[arg-type]
        check(data, num_steps=5)
        assert data.train[[0, 1]][1].dtype == torch.int64
        for wrong, message in (
            (Steps(4, 5), "labels from 4 to 4"),
            (Steps(3, 4), r"labels of shape \[4, B\], must be"),
        ):
            with pytest.raises(DataError, match=message):
                check(DataModule(wrong, wrong, description=description), num_steps=5)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="use num_steps=5"):
            check(data, num_steps=6)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [({"target": "classes"}, "target"), ({"classes": ["a"]}, "classes: got 1 names"), ({"outputs": 0}, "outputs")],
    )
    def test_a_description_is_checked(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{message}"):
            Description(**{"inputs": (3,), "outputs": 4, **wrong})

    def test_losses_accept_values(self) -> None:
        membrane, values = torch.rand(6, 5, 3), torch.rand(5, 3)
        trace = Trace(membrane, membrane, None)
        expected = sum(((step - values) ** 2).mean() for step in membrane) / 6
        torch.testing.assert_close(MSEMembrane()(trace, values), expected)

    @pytest.mark.parametrize(
        ("target", "shape"), [("values", (4, 2)), ("step_labels", (7, 4)), ("trace", (7, 4, 2)), ("labels", (4,))]
    )
    def test_stacks_support_all_kinds_of_target(self, target: Any, shape: tuple[int, ...]) -> None:
        description = Description((3,), 2, target, sequences=True)
        axis = int(description.is_timed)

        class Own:
            def __init__(self, target: Tensor) -> None:
                self.target = target

            def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
                chosen = self.target[:, indices] if axis else self.target[indices]
                return torch.zeros(7, len(indices), 3), chosen

            def to(self, device: torch.device) -> "Own":
                return self

        members = [Own(torch.rand(shape)), Own(torch.rand(shape))]
        feed = StackedDataset(members, True, description.is_timed, torch.device("cpu"))
        _, found, at = feed[[0, 1, 2], [3, 2, 1]]
        assert at == axis + 1
        for member, own, order in zip(members, found.unbind(at), ([0, 1, 2], [3, 2, 1]), strict=True):
            assert torch.equal(own, member[order][1])


@pytest.fixture
def bumps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "adaptpkg")
    return BUMPS


class TestConfig:
    def test_the_class_is_required(self) -> None:
        with pytest.raises(ConfigError, match=r"^data\.dataset\._target_: has no value, add data\.dataset\._target_="):
            compose(["data=dataset"])
        rows = {key: (value, about) for key, value, _, about in describe_choice("data", "dataset")[0]}
        assert rows["data.dataset._target_"] == ("???", rows["data.dataset._target_"][1])
        assert "training samples" in rows["data.dataset._target_"][1]

    def test_arguments_are_checked_and_passed(self, bumps: list[str]) -> None:
        data = build(compose([*bumps, "+data.dataset.count=50", "data.val_fraction=0.2", "data.groups=subjects"])).data
        assert (data.inputs, data.outputs) == ((16,), 3)
        assert len(data.train) + len(data.val) + len(data.test) == 50
        with pytest.raises(ConfigError, match=r"^data\.dataset\.cuont: .*did you mean count"):
            compose([*bumps, "+data.dataset.cuont=50"])
        with pytest.raises(ConfigError, match=r"^data\.dataset\.count: unknown key, \+data\.dataset\.count="):
            compose([*bumps, "data.dataset.count=50"])

    def test_transforms_are_one_or_a_list(self, bumps: list[str]) -> None:
        one, other = (f"{{_target_: adaptpkg.bumps.Scaled, factor: {factor}}}" for factor in (2, 5))
        plain, once, twice = (
            build(compose([*bumps, *overrides])).data.test[[0]][0]
            for overrides in ([], [f"data.transform={one}"], [f"data.transform=[{one}, {other}]"])
        )
        assert torch.equal(once, 2 * plain)
        assert torch.equal(twice, 5 * once)
        # a module in a list is built, and not treated as a layer of a network
        relu = build(compose([*bumps, "data.transform=[{_target_: torch.nn.ReLU}]"])).data.test[[0]][0]
        assert torch.equal(relu, plain.relu())
        with pytest.raises(ConfigError, match=r"^data\.transform\.1\.fcator: unknown key"):
            compose([*bumps, f"data.transform=[{one}, {other.replace('factor', 'fcator')}]"])
        with pytest.raises(ConfigError, match=r"^data\.transform\.0\._target_: os\.system is not from"):
            compose([*bumps, "data.transform=[{_target_: os.system}]"])

    def test_items_of_a_list_are_checked(self, bumps: list[str]) -> None:
        listed = [{"_target_": "snnexp.surrogates.ATan"}]
        targets.require_targets({"_target_": "adaptpkg.bumps.Scaled", "factor": listed}, "data.transform", "")
        with pytest.raises(ConfigError, match=r"^network\.hidden\.0\._target_: no part is allowed here"):
            targets.require_targets({"_target_": "snnexp.network.MLP", "hidden": listed}, "network", "network")

    @pytest.mark.parametrize("at", [0, 30])
    def test_errors_of_its_code_are_part_errors(self, bumps: list[str], at: int) -> None:
        overrides = [*bumps, f"+data.dataset.fault_at={at}", "data.batch_size=4"]
        for more in ("data.in_memory=true", "data.num_workers=0", "data.num_workers=1"):
            with pytest.raises(PartError, match=r"^data: adaptpkg\.bumps\.Bumps raised KeyError") as caught:
                read_all(build(compose([*overrides, more])).data)
            assert caught.value.exit_code == 8

    @pytest.mark.parametrize("workers", [0, 1])
    def test_values_out_of_the_range_of_an_encoder_are_refused_when_read(self, bumps: list[str], workers: int) -> None:
        overrides = [*bumps, "+data.dataset.noise=0", "+data.dataset.jitter=0", f"data.num_workers={workers}"]
        overrides += ["data.batch_size=4", "encoder=bernoulli", "+data.dataset.peak_at=30"]
        with pytest.raises(ConfigError, match=r"^encoder: requires values from 0 to 1, .* to 9"):
            read_all(build(compose(overrides)).data)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data.target=values"], "loss: CEMembrane compares with labels, these data have values; use loss=mse_mem"),
            (["data.target=step_labels"], "loss: CEMembrane compares with labels, these data have a label for each"),
            (
                ["data.sequences=true", "encoder=constant"],
                "encoder: Constant does not fit these data; use encoder=sequence",
            ),
            (["data.val_fraction=0.5", "data.test_fraction=0.6"], r"data\.test_fraction: got 0\.6, must be at most"),
        ],
    )
    def test_overrides_are_checked_before_data_are_read(
        self, bumps: list[str], overrides: list[str], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{message}"):
            compose([*bumps, *overrides])

    def test_sequences_must_have_the_length_of_the_run(self) -> None:
        regression = parts.of("snnexp.data.regression_data")
        rules.require_steps(rules.Facts(regression, {"num_steps": 7}), 7)
        rules.require_steps(rules.Facts(regression), 7)
        with pytest.raises(ConfigError, match=r"^data: these sequences have 7 steps, .* use num_steps=7"):
            rules.require_steps(rules.Facts(regression, {"num_steps": 7}), 8)

    def test_any_dataset_can_be_stacked(self, bumps: list[str]) -> None:
        cfgs = [compose([*bumps, f"seed={seed}"]) for seed in (0, 1)]
        assert grouping.obstacle(cfgs[0]) is None
        assert grouping.key(cfgs[0]) == grouping.key(cfgs[1])

    def test_a_search_needs_a_validation_split(self, bumps: list[str]) -> None:
        settings = Settings(n_trials=1)
        for word in ("data.val_fraction=0.2", "data.val={_target_: adaptpkg.bumps.Bumps}"):
            cfg = check_config(compose_unchecked([*bumps, word, "data.target=labels"])[0])
            assert objective(settings, cfg) == ("val/accuracy", "maximize")
        with pytest.raises(ConfigError, match=r"^data\.val_fraction: got null, a search needs a validation split"):
            objective(settings, compose(bumps))

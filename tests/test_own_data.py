"""Own data from file to report: training, resume, stacks, evaluation and prediction."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ends import content
from kills import KilledError
from test_folders import picture
from test_vision import mnist_like

from snnexp.cli import main
from snnexp.experiment import build, compose, evaluate, predict, resume, run, sweep
from snnexp.training.task import Task

RANDOM = np.random.default_rng(0)
TINY = [
    *("trainer=cpu", "network.hidden=[6]", "data.batch_size=8", "data.val_fraction=0.2", "trainer.max_epochs=3"),
    *("logger=jsonl", "logger.save_every_s=0", "trainer.log_every_n_steps=2", "optimizer.lr=0.02"),
]
LABELS = np.arange(40) % 3


def table(path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = [[index / 40, np.sin(index), ["low", "high"][index % 2]] for index in range(40)]
        csv.writer(file).writerows([["time", "height", "kind"], *rows])


def files(folder: Path) -> None:
    x, sequences = RANDOM.normal(size=(40, 5)), RANDOM.normal(size=(40, 7, 5))
    np.savez(folder / "still.npz", inputs=x, labels=LABELS)
    np.savez(folder / "sequences.npz", inputs=sequences, labels=LABELS, groups=np.arange(40) // 4)
    np.savez(folder / "trace.npz", inputs=sequences, labels=RANDOM.normal(size=(40, 7, 2)))
    np.savez(folder / "images.npz", inputs=RANDOM.integers(0, 256, (40, 1, 9, 9), dtype=np.uint8), labels=LABELS)
    table(folder / "table.csv")
    mnist_like(folder, "KMNIST")
    for index in range(40):
        picture(folder / "photos" / ["cat", "dog"][index % 2] / f"{index}.png", (9, 9, 3))


SOURCES = {
    "still": ["data=arrays", "data.path=still.npz", "data.scale=standard", "num_steps=5"],
    "sequences": ["data=arrays", "data.path=sequences.npz", "data.sampling=balanced", "loss.class_weights=balanced"],
    "mapped": ["data=arrays", "data.path=sequences.npz", "data.in_memory=false", "data.scale=minmax"],
    "trace": ["data=arrays", "data.path=trace.npz", "loss=mse_membrane"],
    "images": [
        "data=arrays",
        "data.path=images.npz",
        "data.scale=minmax",
        "network=conv",
        "network.channels=[3]",
        "num_steps=4",
    ],
    "rows": ["data=csv", "data.path=table.csv", "data.target=kind", "data.stratify=true", "num_steps=5"],
    "windows": [
        *("data=csv", "data.path=table.csv", "data.target=height", "data.drop=[kind]", "data.window=4"),
        "loss=mse_membrane",
    ],
    "augmented": [
        *("data=arrays", "data.path=images.npz", "data.scale=standard", "network=conv", "network.channels=[3]"),
        *("num_steps=4", "data.augment={_target_: torchvision.transforms.v2.RandomHorizontalFlip}"),
    ],
    "folder": [
        *("data=folder", "data.path=photos", "data.scale=standard", "network=conv", "network.channels=[3]"),
        "num_steps=4",
    ],
    "torchvision": ["data=torchvision", "data.name=KMNIST", "data.root=.", "data.stratify=true", "num_steps=3"],
    "dataset": [
        *("data=dataset", "data.dataset._target_=adaptpkg.bumps.Bumps", "+data.dataset.count=40", "num_steps=5"),
        *("data.scale=minmax", "data.num_workers=2"),
    ],
    "digits": ["data=digits", "num_steps=3", "trainer.limit_batches=4", "trainer.limit_test_batches=2"],
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "outside"))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "adaptpkg")
    files(tmp_path)


def words(source: str) -> list[str]:
    return [
        *SOURCES[source],
        *(word for word in TINY if "network=conv" not in SOURCES[source] or not word.startswith("network.")),
    ]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], Path]:
    """Run a config, kill it in a training step, and return its directory."""

    def start(cfg: Any, step: int) -> Path:
        original, count = Task.training_step, iter(range(10**6))

        def die(self: Task, *arguments: Any) -> Any:
            if next(count) == step:
                raise KilledError
            return original(self, *arguments)

        before = {*Path("outputs").rglob("run.json")}
        with monkeypatch.context() as patch:
            patch.setattr(Task, "training_step", die)
            with pytest.raises(KilledError):
                run(cfg)
        (made,) = {*Path("outputs").rglob("run.json")} - before
        return made.parent

    return start


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_killed_run_resumes_bit_for_bit(source: str, killed: Callable[[Any, int], Path]) -> None:
    cfg = compose(words(source))
    whole = run(cfg)
    path = killed(cfg, 4)
    assert resume(path).metrics == whole.metrics
    assert content(path) == content(whole.path)
    again = evaluate(whole.path)
    assert again == {name: value for name, value in whole.metrics.items() if name in again}
    assert any(name.startswith("test/") for name in again)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["sequences", "augmented"])
def test_a_stack_matches_single_runs(source: str) -> None:
    points = sweep([*words(source), "seed=0,1", "hydra/launcher=stacked"])
    for seed, point in enumerate(points):
        alone = run(compose([*words(source), f"seed={seed}"]))
        assert point["status"] == "finished"
        assert point["metrics"]["test/loss"] == pytest.approx(alone.metrics["test/loss"], rel=1e-4)


def test_sequences_are_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    path = run(compose([*words("sequences"), "logger=tensorboard", "trainer.max_epochs=1"])).path
    assert "no figures" not in capfd.readouterr().err
    figures = {file.stem for file in (path / "figures").glob("*.png")}
    assert "spike_raster" in figures
    assert "predictions" not in figures


def test_folds_cover_all_samples() -> None:
    still = [*words("still"), "data.scale=null", "data.folds=4"]
    tests = [build(compose([*still, f"data.fold={fold}"])).data.test for fold in range(4)]
    tested = torch.cat([samples[[*range(len(samples))]][0] for samples in tests])
    assert sorted(tested.tolist()) == sorted(np.load("still.npz")["inputs"].astype(np.float32).tolist())


def test_evaluation_on_another_file_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    made = run(compose(words("rows")))
    table(Path("other.csv"))
    measured = evaluate(made.path, overrides=["data.path=null", "data.train=table.csv", "data.test=other.csv"])
    assert "test/accuracy" in measured
    lines = predict(made.path).read_text().splitlines()
    assert lines[0].startswith("index,target,predicted,")
    assert len(lines) == 1 + 8
    assert main(["report", str(made.path)]) == 0
    assert "table.csv" in (made.path / "report.html").read_text()


BAD = {
    "missing key": (["data.path=still.npz", "data.y=classes"], 4, r"set data.y to one of its arrays: inputs \[40, 5\]"),
    "other lengths": (["data.path=short.npz"], 4, "short.npz has inputs [40, 5] and 39 labels, must be one for each"),
    "not a number": (["data.path=nan.npz"], 4, "sample 3 of nan.npz has values that are NaN or infinite"),
    "one class": (["data.path=class.npz"], 4, "all 24 training samples have the label 1"),
    "one sample": (["data.path=one.npz"], 2, "data.test_fraction: got 0.2, which is less than one of the 1 samples"),
    "0 bytes": (["data.path=empty.npz"], 4, "empty.npz is empty, 0 bytes"),
    "truncated": (["data.path=cut.npz"], 4, "cut.npz is damaged, or not a .npz file"),
    "missing": (["data.path=stil.npz"], 4, "did you mean still.npz"),
    "none": ([], 2, "data.path: set either data.path, the file of all samples"),
    "another T": (["data.path=sequences.npz", "num_steps=9"], 2, "use num_steps=7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_reported_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = RANDOM.normal(size=(40, 5))
    np.savez("short.npz", inputs=x, labels=LABELS[:39])
    np.savez("nan.npz", inputs=np.where(np.arange(40)[:, None] == 3, np.nan, x), labels=LABELS)
    np.savez("class.npz", inputs=x, labels=np.ones(40, dtype=int))
    np.savez("one.npz", inputs=x[:1], labels=LABELS[:1])
    Path("empty.npz").touch()
    Path("cut.npz").write_bytes(Path("still.npz").read_bytes()[:700])
    typed, code, said = BAD[case]
    assert main(["train", "data=arrays", *typed, *TINY]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("\\", "") in line
    assert not Path("outputs").exists()

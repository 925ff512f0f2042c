"""The comparison with earlier commits: differences and the list of expected ones."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from same_bits import RECIPES, Difference, differences, match_expected, parse_expected  # noqa: E402

TABLE = """# Differences

| recipe | names | from step | reason |
|---|---|---|---|
| `regression_sqrt` | `train/*`, weights | 4 | projected |
| all | test/accuracy | 0 | counted |
"""


def run(path: Path, losses: list[float | None], weight: float = 1.0) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    rows = [{"step": step, "epoch": 0, "train/loss": loss} for step, loss in enumerate(losses)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.save({"global_step": 9, "state_dict": {"w": torch.tensor([weight])}}, path / "checkpoints" / "last.ckpt")
    return path


def test_equal_runs_have_no_difference(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [0.1, None, 0.3]), run(tmp_path / "other", [0.1, None, 0.3])
    assert differences("r", one, other) == []


def test_the_last_bit_of_a_metric_is_a_difference(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [0.1, 0.2, 0.3]), run(tmp_path / "other", [0.1, 0.2, 0.30000000000000004])
    (found,) = differences("r", one, other)
    assert (found.name, found.step) == ("train/loss", 2)


@pytest.mark.parametrize("losses", [[0.1, 0.2], [0.1, 0.2, None]])
def test_a_missing_row_or_value_is_a_difference(tmp_path: Path, losses: list[float | None]) -> None:
    one, other = run(tmp_path / "one", [0.1, 0.2, 0.3]), run(tmp_path / "other", losses)
    (found,) = differences("r", one, other)
    assert (found.name, found.step) == ("train/loss", 2)


def test_a_metric_of_only_one_side_is_not_a_difference(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [0.1]), run(tmp_path / "other", [0.1])
    with (other / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "epoch": 0, "test/undecided": 0.5}) + "\n")
    assert differences("r", one, other) == []


def test_weights_are_compared(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [0.1]), run(tmp_path / "other", [0.1], weight=1 + 2**-23)
    assert differences("r", one, other) == [Difference("r", "weights", 9, 2**-23)]


def test_only_listed_differences_are_expected() -> None:
    listed = parse_expected(TABLE)
    found = [Difference("regression_sqrt", "train/loss", 5, 1.0), Difference("ddp", "test/accuracy", 50, 1.0)]
    assert match_expected(found, listed) == ([], [])
    others = [
        Difference("regression_sqrt", "train/loss", 3, 1.0),
        Difference("regression_linear", "train/loss", 5, 1.0),
        Difference("regression_sqrt", "test/l1", 5, 1.0),
    ]
    assert match_expected([*found, *others], listed) == (others, [])


def test_an_unused_line_is_reported() -> None:
    listed = parse_expected(TABLE)
    unlisted, stale = match_expected([Difference("regression_sqrt", "weights", 9, 1.0)], listed)
    assert unlisted == []
    assert stale == listed[1:]


def test_every_line_names_known_recipes() -> None:
    listed = parse_expected((ROOT / "tests" / "old" / "DIFFERENCES.md").read_text())
    assert listed
    for line in listed:
        assert line.recipes == "*" or line.recipes in RECIPES
        assert line.names

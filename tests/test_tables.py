"""Data from CSV files: rows and windows, classes and values, and errors."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import whole

from snnexp.data import csv_data
from snnexp.errors import ConfigError, DataError

ROWS = [[index, index / 8, ["cat", "ant"][index % 2], index % 3, -index / 4] for index in range(30)]
HEADER = ["id", "width", "name", "kind", "loss"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path, [HEADER, *ROWS])


def write(folder: Path, rows: Any, name: str = "table.csv", **dialect: Any) -> str:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, **dialect).writerows(rows)
    return str(path)


class TestRows:
    def test_all_other_columns_are_features(self, file: str) -> None:
        data = csv_data(file, target="loss", drop=["id", "name"])
        x, y = (torch.cat(parts) for parts in zip(whole(data, "train"), whole(data, "test"), strict=True))
        assert (data.inputs, data.outputs, data.target, data.sequences) == ((2,), 1, "values", False)
        assert sorted(x.tolist()) == sorted([row[1], row[3]] for row in ROWS)
        assert torch.equal(y[:, 0], -2 * x[:, 0])

    def test_classes_are_named_by_text_or_whole_numbers(self, file: str) -> None:
        data = csv_data(file, target="name", drop=["id", "loss"])
        assert (data.target, data.description.classes) == ("labels", ["ant", "cat"])
        x, y = whole(data, "train")
        assert torch.equal(y, 1 - (8 * x[:, 0]).long() % 2)
        assert csv_data(file, target="kind", drop=["name"]).description.classes == ["0", "1", "2"]
        assert csv_data(file, target="kind", drop=["name"], classify=False).target == "values"
        assert csv_data(file, target=["kind", "loss"], drop=["name"]).outputs == 2

    def test_labels_need_not_start_at_0(self, tmp_path: Path) -> None:
        file = write(tmp_path, [["a", "b"], *([index, [-1, 10, 2][index % 3]] for index in range(30))])
        data = csv_data(file, target="b")
        assert data.description.classes == ["-1", "2", "10"]
        x, y = whole(data, "train")
        assert y.tolist() == [[0, 2, 1][int(value) % 3] for value in x[:, 0]]

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (["1_0", "10"], ["10", "1_0"]),
            (["1.0", "0.0"], ["0", "1"]),
            (["a 1", '"b"'], ["a 1", "b"]),
        ],
    )
    def test_fields_are_read_exactly(self, tmp_path: Path, labels: list[str], names: list[str]) -> None:
        path = tmp_path / "a.csv"
        path.write_text(
            "x, y \n" + "".join(f"{index}, {labels[index % 2]}\n" for index in range(20)).replace(', "', ',"')
        )
        data = csv_data(str(path), target="y")
        assert data.description.classes == names
        x, y = whole(data, "train")
        wanted = [labels[int(value) % 2].strip('"').removesuffix(".0") for value in x[:, 0]]
        assert [names[label] for label in y] == wanted

    def test_files_with_the_same_name_are_distinct(self, tmp_path: Path) -> None:
        for folder, kinds in (("a", "xy"), ("b", "yz")):
            (tmp_path / folder).mkdir()
            write(tmp_path / folder, [["v", "kind"], *([index, kinds[index % 2]] for index in range(8))])
        data = csv_data(train=f"{tmp_path}/a/table.csv", test=f"{tmp_path}/b/table.csv", target="kind")
        assert data.description.classes == ["x", "y", "z"]
        assert [whole(data, split)[1][:2].tolist() for split in ("train", "test")] == [[0, 1], [1, 2]]

    def test_groups_and_splits_are_columns(self, tmp_path: Path) -> None:
        names = ["train", "train", "val", "test"]
        rows = [[index, index % 2, f"p{index // 4}", names[index % 4]] for index in range(24)]
        file = write(tmp_path, [["a", "b", "patient", "part"], *rows])
        data = csv_data(file, target="b", split="part", drop=["patient"])
        assert sorted(whole(data, "test")[0].flatten().tolist()) == [3, 7, 11, 15, 19, 23]
        data = csv_data(file, target="b", groups="patient", drop=["part"])
        groups = data.description.groups
        assert groups is not None
        assert not {*groups["train"]} & {*groups["test"]}

    def test_other_delimiters_quotes_and_byte_order_marks(self, tmp_path: Path) -> None:
        file = Path(write(tmp_path, [['a "b"', "c;d"], *([index, index / 8] for index in range(10))], delimiter=";"))
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\r\n")
        data = csv_data(str(file), target="c;d", delimiter=";")
        assert len(data.train) + len(data.test) == 10


class TestWindows:
    def test_are_chronological_sequences_of_rows(self, file: str) -> None:
        data = csv_data(file, target="loss", drop=["id", "name", "kind"], window=4, horizon=2, val_fraction=0.2)
        assert (data.num_steps, data.inputs, data.target) == (4, (2,), "values")
        for split, begin, count in (("train", 0, 18), ("val", 18, 6), ("test", 24, 6)):
            x, y = whole(data, split)
            first = begin + torch.arange(count - 5)
            steps = first + torch.arange(4)[:, None]
            assert torch.equal(x, torch.stack([steps / 8, -steps / 4], -1))
            assert torch.equal(y[:, 0], -(first + 5) / 4)

    def test_the_target_may_be_the_only_column(self, tmp_path: Path) -> None:
        file = write(tmp_path, [["y"], *([index / 2] for index in range(40))])
        data = csv_data(file, target="y", window=4)
        x, y = whole(data, "train")
        assert (data.inputs, data.description.features) == ((1,), ["y"])
        assert torch.equal(y, x[-1] + 0.5)

    def test_a_dropped_target_is_not_a_feature(self, file: str) -> None:
        settings: dict[str, Any] = {"target": "loss", "window": 3}
        assert csv_data(file, drop=["name"], **settings).description.features == ["id", "width", "kind", "loss"]
        assert csv_data(file, drop=["name", "loss"], **settings).description.features == ["id", "width", "kind"]

    def test_neither_classes_nor_a_target_of_the_same_row_are_features(self, file: str) -> None:
        assert csv_data(file, target="kind", drop=["name"], window=3).inputs == (3,)
        data = csv_data(file, target="loss", drop=["name", "id", "kind"], window=3, horizon=0, stride=2)
        x, y = whole(data, "train")
        assert data.inputs == (1,)
        assert torch.equal(y, -2 * x[-1])
        assert x[0, :, 0].tolist() == [index / 4 for index in range(11)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, r"^target: must name a column of table.csv: id, width, name"),
            ({"target": "los"}, r"^target: table.csv has no column los, did you mean loss"),
            ({"target": "loss"}, r"^drop: table.csv has text in name, .*'data.drop=\[name\]'"),
            ({"target": "loss", "drop": ["idd"]}, r"^drop: .* no column idd, did you mean id"),
            ({"target": "id", "drop": ["name"]}, r"^classify: the target has 30 different whole numbers in 30 rows"),
            ({"target": "loss", "drop": ["name"], "classify": True}, r"^classify: got true"),
            ({"target": "name", "classify": False}, r"^classify: got false, but the target in table.csv is text"),
            ({"target": "loss", "drop": ["name", "id", "width", "kind"]}, r"^drop: leaves no feature"),
            ({"target": "loss", "drop": ["name"], "delimiter": ";"}, r"^target: .* use 'data.delimiter=\",\"'"),
            ({"target": ["loss", "loss"]}, r"^target: got loss, loss, must name each column once"),
            (
                {"target": "loss", "drop": ["name"], "window": 40},
                r"24 rows of table.csv are too few for a sample, .* require 41",
            ),
            ({"target": "loss", "drop": ["name"], "window": 4, "fold": 0}, r"^fold: got 0, but splits of a time"),
        ],
    )
    def test_of_what_was_typed(self, file: str, settings: Any, message: str) -> None:
        with pytest.raises((ConfigError, DataError), match=message):
            csv_data(file, **settings)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty, 0 bytes"),
            ("a,b\n", "has a header but no rows"),
            ("\n\n", "has no header with the names of its columns"),
            ("1,2\n3,4\n", "the first row of bad.csv has numbers"),
            ("a,b\n1,2\n3\n", "sample 1 of bad.csv has 1 fields, the header has 2"),
            ("a,b\n1,2\n,4\nNA,5\n", "2 of 3 fields in column a of bad.csv are missing, the first in sample 1"),
            ("a,a\n1,2\n", "two columns of the same name"),
            ("a,b\ninf,2\n1,3.5\n2,1\n3,1\n4,1\n5,1\n", "NaN or infinite"),
            ('a,b\n"1,2\n', "cannot be read as CSV"),
        ],
    )
    def test_of_damaged_files(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "bad.csv"
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            csv_data(str(path), target="b", classify=False)
        path.write_text("a,b\n1,inf\n" + "2,1\n" * 9)
        with pytest.raises(DataError, match="NaN or infinite"):
            csv_data(str(path), target="b")
        with pytest.raises(DataError, match="is a folder, must be a file"):
            csv_data(str(tmp_path), target="b")
        path.write_text("".join(["a,b\n", *(f"{i},{2**53 + i % 3}\n" for i in range(60))]))
        with pytest.raises(ConfigError, match=r"^classify: .* 2\^53 or more"):
            csv_data(str(path), target="b")
        with pytest.raises(DataError, match="there is no file /"):
            csv_data(str(tmp_path / "other.csv"), target="b")
        with pytest.raises(DataError, match=r"there is no file /.*~nobody-here/other.csv"):
            csv_data("~nobody-here/other.csv", target="b")
        path.write_bytes(b"a,b\n\xff,2\n")
        with pytest.raises(DataError, match="cannot be read as CSV"):
            csv_data(str(path), target="b")


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"test_fraction": 0.01}, "test_fraction: got 0.01, which is less than one of the 30 rows"),
        ({"val_fraction": 0.01}, "val_fraction: got 0.01, which is less than one of the 30 rows"),
        ({"val_fraction": 0.8}, "val_fraction: got 0.8, which leaves none of 30 rows for training"),
        ({"val_fraction": 0.9}, "val_fraction: got 0.9, which leaves none of 30 rows for training"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction: got 0.5, which leaves none of 30 rows"),
    ],
)
def test_no_split_of_a_time_series_is_empty(file: str, fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        csv_data(file, target="loss", drop=["name"], window=2, **fractions)


def test_names_of_splits_must_be_text(file: str) -> None:
    with pytest.raises(ConfigError, match=r"^split: got 0.0, 1.0, 2.0, must be train, val or test"):
        csv_data(file, target="loss", drop=["name"], split="kind")


def test_large_tables_are_exact(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(2000, 3))
    file = write(tmp_path, [["a", "b", "c"], *([repr(float(value)) for value in row] for row in numbers)])
    data = csv_data(file, target="c", test_fraction=0.5)
    x = torch.cat([whole(data, split)[0] for split in ("train", "test")])
    assert sorted(x.tolist()) == sorted(numbers[:, :2].astype(np.float32).tolist())


class TestOtherFiles:
    def test_have_the_features_of_the_training_file_in_any_order(self, tmp_path: Path) -> None:
        def columns(name: str, *order: int) -> str:
            return write(tmp_path, [[row[at] for at in order] for row in [HEADER, *ROWS]], name)

        train = columns("train.csv", 0, 1, 3, 4)
        data = csv_data(train=train, test=columns("test.csv", 4, 3, 2, 1, 0), target="loss")
        assert data.description.features == ["id", "width", "kind"]
        assert torch.equal(whole(data, "test")[0], whole(data, "train")[0])
        with pytest.raises(DataError, match=r"less.csv has no column kind, but the training samples do"):
            csv_data(train=train, test=columns("less.csv", 0, 1, 4), target="loss")

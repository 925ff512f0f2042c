"""``snnexp runs``: selection, order and format of the table."""

import csv
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from snnexp.cli import main
from snnexp.cli.rows import Row, matches
from snnexp.cli.table import table
from snnexp.record.facts import Facts
from snnexp.record.find import find_runs
from snnexp.record.run import Run

CONFIG = {"neuron": {"beta": 0.8, "learn_beta": True}, "network": {"hidden": [256, 128]}, "data": {"root": "here"}}
HEAVY = {"torch", "lightning", "hydra", "omegaconf", "matplotlib", "subprocess", "importlib.metadata", "numpy"}


def make(
    parent: Path, number: int, config: dict | None = None, overrides: list[str] | None = None, **facts: object
) -> Path:
    """A run that started at 12:00 and ``number`` seconds."""
    path = parent / f"20261120-12{number // 60:02d}{number % 60:02d}-{number:04x}"
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config or CONFIG))
    (path / "overrides.yaml").write_text(yaml.safe_dump(overrides or []))
    (path / "metrics.jsonl").write_text('{"step": 9, "epoch": 0, "train/loss": 2.5}\n')
    record = {"status": "finished", "exit_code": 0, "seed": number, "experiment": "x", "wall_s": {"total": 300.0}}
    (path / "run.json").write_text(json.dumps({**record, "metrics": {}, **facts}))
    return path


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    stop = {"epoch": 3, "step": 12, "reason": "val/loss did not improve"}
    row = Row(Run(make(tmp_path, 1, stopped_early=stop)).facts(), 1.8e9)
    assert table([row]).endswith("stopped early after epoch 3, step 12: val/loss did not improve")
    assert row.value("stopped_early.epoch") == 3


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of all kinds in the working directory."""
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    accurate = {"test/loss": 0.25, "test/accuracy": 0.875}
    make(outputs / "mnist", 3, overrides=["experiment=x", "seed=3", "neuron.beta=0.8"], metrics=accurate)
    make(outputs / "sweeps" / "mnist" / "1" / "runs", 1, {"neuron": {"beta": 0.5}}, metrics={"test/accuracy": 0.5})
    make(outputs / "curve", 2, experiment="curve", metrics={"test/loss": 3.0, "test/l1": 0.0625}, device="1 x cpu")
    make(outputs / "mnist", 4, status="failed", exit_code=1, reason="[bold]no\x1b[31m\nway")
    make(outputs / "mnist", 5, status="running", exit_code=None)
    (make(outputs / "mnist", 6) / "run.json").write_text('{"status": "fin')
    return outputs


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["runs", *arguments]) == code
    captured = capsys.readouterr()
    assert (captured.err == "") == (code == 0)
    return captured.err if code else captured.out


def seconds(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    """The listed runs, by the number given to :func:`make`."""
    return [int(run["id"][-4:], 16) for run in json.loads(output(capsys, *arguments, "--json"))]


class TestFind:
    def test_newest_last_in_any_folder(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert seconds(capsys) == seconds(capsys, "outputs") == seconds(capsys, ".") == [1, 2, 3, 4, 5, 6]
        assert seconds(capsys, "outputs/sweeps") == [1]
        assert seconds(capsys, str(next(zoo.glob("curve/*")))) == [2]

    def test_shown_paths_can_be_used_as_arguments(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for run in json.loads(output(capsys, "outputs", "--json")):
            assert Path(run["path"], "config.yaml").is_file()

    def test_the_folder_may_be_the_run_itself(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(next(zoo.glob("curve/*")))
        (run,) = json.loads(output(capsys, ".", "--json"))
        assert (run["path"], run["id"], run["experiment"]) == (".", Path.cwd().name, "curve")

    def test_links_hidden_folders_and_folders_in_runs_are_skipped(self, tmp_path: Path) -> None:
        run = make(tmp_path / "runs", 1)
        make(run / "checkpoints", 2)
        make(tmp_path / "runs" / ".new-abc", 3)
        make(tmp_path / "elsewhere", 4)
        (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
        (tmp_path / "runs" / "conf").mkdir()
        (tmp_path / "runs" / "conf" / "config.yaml").write_text("a: 1")
        assert list(find_runs(tmp_path / "runs")) == [run]

    def test_without_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = str(tmp_path)
        assert output(capsys, folder) == f"there are no runs below {folder}\n"
        assert output(capsys, folder, "foo=1", "--sort", "bar") == f"there are no runs below {folder}\n"
        assert json.loads(output(capsys, folder, "--json")) == []
        assert output(capsys, folder, "--csv").startswith("path,id,status,")

    def test_without_the_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "outputs: there is no such folder" in output(capsys, code=2)
        assert "none: no such directory" in output(capsys, "none", code=2)
        Path("file").touch()
        assert "file: there is no such folder" in output(capsys, "file", code=2)

    def test_an_unreadable_folder_is_reported_and_the_others_are_listed(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scandir = os.scandir

        def refuse(path: Path) -> Iterator[os.DirEntry]:
            if path.name == "curve":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert main(["runs", "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == "snnexp: outputs/curve: Permission denied\n"
        assert len(json.loads(captured.out)) == 5


class TestConditions:
    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            (["status=failed"], [4]),
            (["status=killed"], [5]),
            (["status=damaged"], [6]),
            (["status!=finished"], [4, 5, 6]),
            (["experiment=curve"], [2]),
            (["seed=3"], [3]),
            (["seed=3.0"], [3]),
            (["seed>=3", "seed<5"], [3, 4]),
            (["seed<=2"], [1, 2]),
            (["test/accuracy>0.5"], [3]),
            (["accuracy<0.875"], [1]),
            (["test/accuracy!=0.5"], [2, 3, 4, 5, 6]),
            (["metric<0.1"], [2]),
            (["neuron.beta=0.5"], [1]),
            (["neuron.beta=.8", "seed=3"], [3]),
            (["neuron.learn_beta=true", "seed<4"], [2, 3]),
            (["neuron.learn_beta=1"], []),
            (["network.hidden=[256,128]", "status=failed"], [4]),
            (["data.root=here", "status=failed"], [4]),
            (["device=1 x cpu"], [2]),
            (["wall_s.total=5min", "seed=1"], [1]),
            (["duration<1h", "status=finished"], [1, 2, 3]),
            (["duration>5min", "status=finished"], []),
            (["age>1s", "id<20261120-120003"], [1, 2]),
            (["started>2026-11-20T12:00:05"], [5, 6]),
            (["overrides=seed=3 neuron.beta=0.8"], [3]),
            (["status>1"], [1, 2, 3, 4, 5, 6]),
        ],
    )
    def test_all_conditions_must_hold(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], conditions: list[str], expected: list[int]
    ) -> None:
        assert seconds(capsys, *conditions) == seconds(capsys, "outputs", *conditions) == expected

    def test_nothing_matches(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert output(capsys, "seed=987654") == "none of 6 runs below outputs matches\n"
        assert "curve?" in output(capsys, "experiment=curv")

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["nueron.beta=1"], "nueron.beta: no run has such a column, metric or key, did you mean neuron.beta?"),
            (
                ["--sort", "test/acuracy"],
                "test/acuracy: no run has such a column, metric or key, did you mean test/accuracy?",
            ),
            (["--metric", "statsu"], "statsu: no run has such a column, metric or key, did you mean status?"),
            (["seed>many"], "seed: got many, must be a number"),
            (["outputs", "curve"], "curve: not a condition; use KEY=VALUE"),
            (["--limit", "0"], "runs: --limit: got 0, must be at least 1"),
            (["--limit", "x"], "runs: argument --limit: invalid int value: 'x'"),
            (["--frobnicate"], "runs: unrecognized arguments: --frobnicate"),
            (["--csv", "--json"], "runs: argument --json: not allowed with argument --csv"),
        ],
    )
    def test_invalid_arguments_are_reported(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
    ) -> None:
        assert output(capsys, *arguments, code=2).startswith(f"snnexp: {sentence}")

    @given(value=st.floats(allow_nan=False, allow_infinity=False), other=st.floats(allow_nan=False))
    def test_numbers_are_compared_as_numbers(self, value: float, other: float) -> None:
        def true(operator: str) -> bool:
            return matches(value, operator, repr(other), "key")

        assert (true("<"), true("="), true(">")) == (value < other, value == other, value > other)
        assert (true(">="), true("!="), true("<=")) == (not true("<"), not true("="), not true(">"))

    def test_an_unreadable_config_is_reported(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (next(zoo.glob("curve/*")) / "config.yaml").write_text("[" * 10**5)
        assert main(["runs", "neuron.beta=0.8", "--json"]) == 0
        captured = capsys.readouterr()
        assert re.fullmatch(r"snnexp: outputs/curve/.*/config\.yaml: .*damaged.*\n", captured.err)
        assert [run["seed"] for run in json.loads(captured.out)] == [3, 4, 5, None]

    def test_configs_are_read_only_if_needed(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Run, "config", lambda self: pytest.fail("read"))
        assert seconds(capsys, "test/accuracy>0.5", "--sort", "duration", "--metric", "test/loss") == [3]


class TestOrder:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--sort", "test/loss"], [1, 4, 5, 6, 3, 2]),
            (["--sort", "age"], [6, 5, 4, 3, 2, 1]),
            (["--sort", "neuron.beta"], [1, 2, 3, 4, 5, 6]),
            (["--sort", "experiment", "status=finished"], [2, 1, 3]),
            (["--reverse"], [6, 5, 4, 3, 2, 1]),
            (["--limit", "2"], [5, 6]),
            (["--limit", "99"], [1, 2, 3, 4, 5, 6]),
            (["--sort", "accuracy", "--limit", "2"], [1, 3]),
            (["--sort", "accuracy", "--reverse", "--limit", "1"], [1]),
        ],
    )
    def test_sorted(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[int]
    ) -> None:
        assert seconds(capsys, *arguments) == expected


class TestForms:
    def test_json_has_all_fields(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runs = json.loads(output(capsys, "--json"))
        finished, failed, killed, damaged = runs[2:]
        assert finished == {
            "path": "outputs/mnist/20261120-120003-0003",
            "id": "20261120-120003-0003",
            "status": "finished",
            "started": finished["started"],
            "duration_s": 300.0,
            "experiment": "x",
            "seed": 3,
            "overrides": ["experiment=x", "seed=3", "neuron.beta=0.8"],
            "metrics": {"test/loss": 0.25, "test/accuracy": 0.875},
            "exit_code": 0,
            "reason": "",
            "progress": None,
        }
        assert finished["started"].startswith("2026-11-20T12:00:03")
        assert (failed["reason"], failed["exit_code"]) == ("[bold]no\x1b[31m\nway", 1)
        assert (killed["status"], killed["progress"]) == ("killed", {"step": 9, "epoch": 0})
        assert (damaged["status"], damaged["reason"]) == ("damaged", "run.json: missing or damaged")

    def test_csv_has_the_same_fields_in_one_line_per_run(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = output(capsys, "--csv")
        assert len(text.splitlines()) == 7
        assert "\x1b" not in text
        rows = list(csv.DictReader(text.splitlines()))
        runs = json.loads(output(capsys, "--json"))
        for row, run in zip(rows, runs, strict=True):
            assert all(
                row[name] == ("" if run[name] is None else str(run[name])) for name in ("id", "seed", "exit_code")
            )
            measures = {name: float(value) for name, value in row.items() if name.startswith("test/") and value}
            assert measures == run["metrics"]
            assert row["step"] == ("" if run["progress"] is None else "9")
        assert rows[2]["overrides"] == "experiment=x seed=3 neuron.beta=0.8"

    def test_a_table_in_a_pipe_is_not_cropped_or_styled(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        long = ",".join(["neuron.beta=0.123456789"] * 30)
        make(zoo / "mnist", 7, overrides=[long], metrics={"test/accuracy": 1.0})
        head, *rows = output(capsys).splitlines()
        names = ["status", "age", "experiment", "metric", "duration", "path", "overrides", "note"]
        assert head.split() == names
        assert len(rows) == 7, "one line per run"
        assert long in rows[-1]
        assert rows[2].split() == [
            *("finished", *rows[2].split()[1:3], "x", "accuracy", "0.875", "5", "min"),
            *("outputs/mnist/20261120-120003-0003", "seed=3", "neuron.beta=0.8"),
        ]
        assert rows[3].endswith(r"[bold]no\x1b[31m way")
        assert rows[4].endswith("its process died, step 9, epoch 1")
        assert rows[5].endswith("run.json: missing or damaged")

    def test_empty_columns_are_omitted(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        head = output(capsys, "status=finished", "experiment=x").splitlines()[0]
        assert head.split() == ["status", "age", "experiment", "accuracy", "duration", "path", "overrides"]
        head = output(capsys, "status=failed").splitlines()[0]
        assert head.split() == ["status", "age", "experiment", "duration", "path", "note"]

    def test_another_metric(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        head, *rows = output(capsys, "--metric", "test/loss", "status=finished").splitlines()
        assert head.split()[3] == "loss"
        assert [row.split()[4] for row in rows] == ["5", "3", "0.25"]

    def test_the_sort_key_is_shown(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "loss" in output(capsys, "--sort", "test/loss", "status=finished").splitlines()[0]

    @pytest.mark.slow
    def test_the_table_never_exceeds_the_terminal_width(self, zoo: Path) -> None:
        rows = [Row(Run(path).facts(), 1.8e9) for path in find_runs(zoo)]
        for width in range(10, 200):
            lines = plain(table(rows, width)).splitlines()
            assert max(map(cell_len, lines)) <= width
        assert set(lines[-3:]) == {
            r"0004 failed: [bold]no\x1b[31m way",
            "0005 killed: its process died, step 9, epoch 1",
            "0006 damaged: run.json: missing or damaged",
        }

    @given(text=st.text(max_size=60), width=st.integers(20, 100))
    def test_any_override_fits_and_is_shown(self, text: str, width: int) -> None:
        facts = Facts(
            Path("a/20261120-120003-0003"), text, "failed", text, None, None, text, 0, [text], {}, 1, None, {}
        )
        lines = plain(table([Row(facts, 0.0)], width)).splitlines()
        assert all(line.isprintable() and cell_len(line) <= width for line in lines)
        whole = table([Row(facts, 0.0)]).split("\n")
        assert len(whole) == 2
        assert all(line.isprintable() for line in whole)

    def test_distinguishing_overrides_are_cropped_last(self, tmp_path: Path) -> None:
        common = ["trainer=cpu", "trainer.max_epochs=4", "data.root=/somewhere/else", "logger.tensorboard=false"]
        paths = [make(tmp_path, number, overrides=[*common, f"seed={number}"]) for number in (1, 2)]
        rows = [Row(Run(path).facts(), 1.8e9) for path in paths]
        _, first, second = plain(table(rows, 80)).splitlines()
        assert "seed=1" in first
        assert "seed=2" in second
        assert first.endswith("…")
        assert "…" not in plain(table(rows, 80, unicode=False))
        whole = table(rows).splitlines()
        assert whole[1].endswith(" ".join([*common, "seed=1"])), "in their original order in a pipe"

    def test_ids_in_a_narrow_terminal_can_be_used_as_arguments(self, tmp_path: Path) -> None:
        folders = [make(tmp_path / str(index), 3 + index * 0x10000, experiment="long" * 20) for index in range(2)]
        for index, folder in enumerate(folders):
            folder.rename(folder.parent / f"20261120-12000{index}-0003")
        rows = [Row(Run(path).facts(), 1.8e9) for path in find_runs(tmp_path)]
        first = plain(table(rows[:1], 80))
        assert (" 0003" in first, "120000-0003" in first) == (True, False)
        both = plain(table(rows[:1], 80, known=rows))
        assert rows[0].facts.id[-11:] in both, "so that the suffix is unique"

    def test_the_duration_is_dropped_first_if_space_is_short(self, tmp_path: Path) -> None:
        path = make(
            tmp_path, 1, experiment="regression_sqrt_fit", overrides=["x=1" * 30], metrics={"test/accuracy": 0.8291}
        )
        rows = [Row(Run(path).facts(), 1.8e9)]
        narrow, wide = (plain(table(rows, width)) for width in (66, 100))
        assert "regression_sqrt_fit" in narrow
        assert ("duration" in narrow, "duration" in wide) == (False, True)

    def test_a_renamed_recipe_and_overrides_of_a_resume_are_shown(self, tmp_path: Path) -> None:
        typed = ["experiment=best", "trainer.max_epochs=1"]
        path = make(tmp_path, 1, overrides=typed, resumed_with=["trainer.max_epochs=3", 5])
        assert "experiment=best trainer.max_epochs=3" in table([Row(Run(path).facts(), 1.8e9)])

    def test_a_narrow_terminal_shows_the_suffix_of_the_id(self, zoo: Path) -> None:
        rows = [Row(Run(path).facts(), 1.8e9) for path in zoo.glob("mnist/*3")]
        assert " 0003 " in plain(table(rows, 80))
        assert table(rows, 200).count("outputs/mnist/20261120-120003-0003") == 1

    @pytest.mark.parametrize(
        ("duration_s", "expected"),
        [
            (0.4, "0 s"),
            (42, "42 s"),
            (119, "119 s"),
            (180, "3 min"),
            (5 * 3600, "5 h"),
            (47 * 3600, "47 h"),
            (3e5, "3 d"),
        ],
    )
    def test_durations_in_suitable_units(self, duration_s: float, expected: str) -> None:
        facts = Facts(Path("a"), "a", "finished", "", None, duration_s, "x", 0, [], {}, 0, None, {})
        head, row = table([Row(facts, 0.0)]).splitlines()
        assert row[head.index("duration") :][: len("duration")].strip() == expected


class TestProcess:
    """The command in a separate process."""

    def test_nothing_heavy_is_imported(self, zoo: Path) -> None:
        script = (
            "import sys; from snnexp.cli import main\n"
            "assert main(['runs', 'neuron.beta>0', '--sort', 'test/loss']) == 0; print(*sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert not HEAVY & set(done.stdout.splitlines()[-1].split())

    def test_ascii(self, zoo: Path) -> None:
        make(zoo / "größer", 7, experiment="größer 😀", overrides=["name=größer"])
        for more in ([], ["--json"], ["--csv"]):
            done = run_command(*more, PYTHONIOENCODING="ascii")
            assert done.stdout.isascii()
            assert len(done.stdout.splitlines()) >= 7

    def test_a_reader_that_closes_the_pipe(self, zoo: Path) -> None:
        make(zoo, 7, status="failed", reason="long " * 10**5)
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {sys.executable} -m snnexp.cli runs --json | head -n 1"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("[\n", "")

    @pytest.mark.parametrize(("env", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
    def test_a_terminal(self, zoo: Path, env: dict[str, str], colored: bool) -> None:
        outer, inner = pty.openpty()
        command = [sys.executable, "-m", "snnexp.cli", "runs"]
        without = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        with subprocess.Popen(command, stdout=inner, stderr=inner, env={**without, "TERM": "xterm", **env}) as process:
            os.close(inner)
            text = everything(outer)
        assert process.returncode == 0
        assert ("\x1b[31mfailed" in text) == colored
        lines = plain(text).splitlines()
        assert "\x1b" not in "".join(lines)
        assert max(map(cell_len, lines)) <= 80
        assert r"0004 failed: [bold]no\x1b[31m way" in lines
        assert all(any(f"{number:04x}" in line for line in lines) for number in range(1, 7)), (
            "each run can be identified"
        )


def plain(text: str) -> str:
    """A text without color codes."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def run_command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snnexp.cli", "runs", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)


def everything(terminal: int) -> str:
    """The output of a program in a pseudo-terminal until it ends."""
    received = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            return received.decode()
        if not piece:
            return received.decode()
        received += piece

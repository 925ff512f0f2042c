"""What a run records of its surroundings: time, repository, paths."""

import json
import os
import re
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from shell import OUTSIDE, Shell, record

WORDS = ("train", "experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl")


def listed(shell: Shell, *arguments: str) -> list[dict[str, Any]]:
    ended = shell("runs", ".", "--json", *arguments)
    assert ended.code == 0
    found: list[dict[str, Any]] = json.loads("\n".join(ended.out))
    return found


class TestTime:
    @pytest.fixture(autouse=True)
    def zone(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def change(name: str) -> None:
            monkeypatch.setenv("TZ", name)
            time.tzset()

        yield change
        monkeypatch.undo()
        time.tzset()

    def test_a_run_has_an_age_in_any_time_zone(self, snnexp: Shell, zone: Any) -> None:
        zone("Asia/Tokyo")
        assert snnexp(*WORDS).code == 0
        started = datetime.fromisoformat(record(snnexp.run())["started"])
        assert started.utcoffset() is not None
        zone("UTC")
        assert len(listed(snnexp, "age<1h")) == 1
        (run,) = listed(snnexp)
        assert datetime.fromisoformat(run["started"]) == started

    @pytest.mark.slow
    def test_runs_of_the_hour_that_comes_twice_keep_their_order(self, snnexp: Shell, zone: Any) -> None:
        zone("Europe/Berlin")
        assert snnexp(*WORDS).code == 0
        first = snnexp.run()
        # the clock shows 02:30, and an hour later 02:10
        for run_id, instant in (
            ("20241027-023000-aaaa", "2024-10-27T00:30:00+00:00"),
            ("20241027-021000-bbbb", "2024-10-27T01:10:00+00:00"),
        ):
            copy = first.with_name(run_id)
            shutil.copytree(first, copy)
            content = {**record(copy), "started": instant}
            (copy / "run.json").write_text(json.dumps(content))
        shutil.rmtree(first)
        found = listed(snnexp, "--sort", "started")
        assert [run["id"] for run in found] == ["20241027-021000-bbbb", "20241027-023000-aaaa"], "the latest first"
        assert [run["id"] for run in listed(snnexp, "--sort", "age")] == [run["id"] for run in found]


class TestRepository:
    @pytest.fixture
    def repository(self, snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
            monkeypatch.setenv(name, os.devnull)
        me = ("-c", "user.name=a", "-c", "user.email=a@b")
        (snnexp.folder / "file").write_text("a")
        for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "a"]):
            subprocess.run(["git", *command], cwd=snnexp.folder, check=True)
        return snnexp.folder

    @pytest.mark.slow
    def test_a_run_does_not_make_it_dirty(self, snnexp: Shell, repository: Path) -> None:
        for _ in range(2):
            assert snnexp(*WORDS).code == 0
        assert [record(run)["git"]["dirty"] for run in snnexp.runs()] == [False, False]
        (repository / "file").write_text("b")
        before = {*snnexp.runs()}
        assert snnexp(*WORDS).code == 0
        (last,) = {*snnexp.runs()} - before
        assert record(last)["git"]["dirty"] is True

    @pytest.mark.slow
    def test_its_index_stays_as_it_is(self, snnexp: Shell, repository: Path) -> None:
        index = repository / ".git" / "index"
        os.utime(repository / "file")
        before = (index.read_bytes(), index.stat().st_mtime_ns)
        assert snnexp(*WORDS).code == 0
        assert (index.read_bytes(), index.stat().st_mtime_ns) == before

    def test_names_that_are_no_text_end_no_run(self, snnexp: Shell, repository: Path) -> None:
        (repository / os.fsdecode(b"\xff\xfe")).write_text("a")
        subprocess.run(["git", "config", "core.quotePath", "false"], cwd=repository, check=True)
        subprocess.run(["git", "add", "."], cwd=repository, check=True)
        assert snnexp(*WORDS).code == 0
        assert record(snnexp.run())["git"]["dirty"] is True

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a repository away")
    def test_one_of_another_owner_is_told(self, snnexp: Shell, repository: Path) -> None:
        for path in (repository, repository / ".git"):
            os.chown(path, 12345, 12345)
        assert snnexp(*WORDS).code == 0
        assert record(snnexp.run())["git"].keys() == {"reason"}


class TestPaths:
    def test_a_tilde_is_the_home(self, snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        home = snnexp.folder / "home"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        assert snnexp(*WORDS, "logger.root=~/runs").code == 0
        assert [*(home / "runs").glob("regression_sqrt/*/run.json")]
        assert [path.name for path in snnexp.folder.iterdir()] == ["home"]


@pytest.mark.parametrize(("text", "line"), [("seed: 010", 3), ("num_steps: 1:30", 3), ("optimizer:\n  lr: 0:30.5", 4)])
def test_a_number_to_another_base_is_refused_in_a_file(snnexp: Shell, text: str, line: int) -> None:
    folder = snnexp.folder / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n# Mine\n{text}\n")
    ended = snnexp("train", "--config-dir", "conf", "experiment=mine")
    assert (ended.code, len(ended.err)) == (2, 1)
    _, file, said = ended.err[0].partition("mine.yaml")
    assert file
    assert int(re.findall(r"\d+", said)[0]) == line


class TestEvaluation:
    @pytest.fixture
    def run(self, snnexp: Shell) -> str:
        words = ("data=blobs", "network.hidden=[8]", "num_steps=5", "trainer=cpu", "logger=jsonl")
        assert snnexp("train", *OUTSIDE, *words, "neuron.threshold=0.3", "loss=mse_count").code == 0
        return str(snnexp.run())

    @pytest.mark.slow
    def test_may_have_more_steps(self, snnexp: Shell, run: str) -> None:
        """Counts of spikes over twice as many steps are other counts, and rates those of that many steps."""
        five, ten, same = (
            json.loads("\n".join(snnexp("eval", run, "--json", *words).out))
            for words in ((), ("num_steps=10",), ("num_steps=5",))
        )
        assert five == same
        assert five != ten

    @pytest.mark.parametrize(
        "override",
        [
            "neuron.beta=0.1",
            "neuron.beta.mean=0.1",
            "neuron.threshold=2",
            "optimizer.lr=1",
            "optimizer.betas.0=0.5",
            "trainer.max_epochs=9",
        ],
    )
    def test_refuses_what_cannot_reach_it(self, snnexp: Shell, run: str, override: str) -> None:
        ended = snnexp("eval", run, override)
        assert (ended.code, ended.key) == (2, override.partition("=")[0])

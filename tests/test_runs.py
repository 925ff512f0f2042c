"""Run directories: exclusive access, strict JSON, atomic writes, and checksums of checkpoints."""

import copy
import errno
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from snnexp.errors import CheckpointError, ConfigError, InUseError
from snnexp.record import run as runs
from snnexp.record.checksum import read_checkpoint, write_checkpoint
from snnexp.record.environment import git
from snnexp.record.files import write_atomically
from snnexp.record.measures import higher_is_better, main_metric, split_name
from snnexp.record.names import new_id
from snnexp.record.run import Run

RUN_ID = r"\d{8}-\d{6}-[0-9a-f]{4}"


def create(parent: Path, overrides: list[str] | None = None, **facts: object) -> Run:
    return Run.prepare(parent, "seed: 0\n", overrides or []).publish(facts)


def strict(text: str) -> object:
    """Parse standard JSON, without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


class TestIdentity:
    def test_an_id_is_a_time_and_four_hexadecimal_digits(self) -> None:
        assert re.fullmatch(RUN_ID, new_id())

    def test_fifty_threads_with_colliding_ids_share_no_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = random.Random(0)
        monkeypatch.setattr(runs, "new_id", lambda: f"20200101-000000-{draw.randrange(60):04x}")
        monkeypatch.setattr(runs, "git", lambda: None)
        with ThreadPoolExecutor(50) as pool:
            made = list(pool.map(lambda index: create(tmp_path, index=index), range(50)))
        assert len({run.path for run in made}) == 50
        assert [run.read()["index"] for run in made] == list(range(50))

    @pytest.mark.slow
    def test_ten_processes_share_no_directory(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from snnexp.record import run as runs\n"
            "runs.new_id = lambda numbers=iter(range(99)): f'20200101-000000-{next(numbers):04x}'\n"
            "runs.git = lambda: None\n"
            "print(runs.Run.prepare(Path(sys.argv[1]), '', []).publish({}).path)\n"
        )
        started = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True)
            for _ in range(10)
        ]
        paths = [path for process in started for path in process.communicate()[0].split()]
        assert [process.returncode for process in started] == [0] * 10
        assert len(paths) == len(set(paths)) == 10
        assert sorted(paths) == sorted(str(path) for path in (tmp_path / "runs").iterdir())


class TestRecord:
    def test_a_new_run_has_all_its_files_and_is_running(self, tmp_path: Path) -> None:
        run = create(tmp_path / "outputs" / "name", ["seed=1"], seed=1, metrics={})
        assert re.fullmatch(RUN_ID, run.path.name)
        names = [".lock", "checkpoints", "config.yaml", "metrics.jsonl", "overrides.yaml", "run.json"]
        assert sorted(path.name for path in run.path.iterdir()) == names
        record = run.read()
        assert (record["status"], record["exit_code"], record["seed"]) == ("running", None, 1)
        assert record["versions"]["snnexp"]
        assert record["versions"]["torch"]
        assert (run.path / "config.yaml").read_text() == "seed: 0\n"

    def test_update_keeps_other_entries(self, tmp_path: Path) -> None:
        run = create(tmp_path, seed=3, experiment="größer 😀")
        returned = run.update(status="finished", metrics={"test/accuracy": 0.9412})
        assert returned == run.read() == Run(run.path).read()
        assert run.read()["experiment"] == "größer 😀"
        assert run.read()["metrics"] == {"test/accuracy": 0.9412}
        assert run.read()["status"] == "finished"

    def test_non_finite_values_become_null_at_any_level(self, tmp_path: Path) -> None:
        run = create(tmp_path, deep={"a": [1.5, math.nan, (math.inf,)]}, best=-math.inf)
        record = strict((run.path / "run.json").read_text())
        assert isinstance(record, dict)
        assert record["deep"] == {"a": [1.5, None, [None]]}
        assert record["best"] is None
        run.log_metrics({"step": 0, "train/loss": math.nan, "x": 1e308})
        run.close()
        assert strict((run.path / "metrics.jsonl").read_text()) == {"step": 0, "train/loss": None, "x": 1e308}

    def test_metrics_are_appended_and_never_rewritten(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.log_metrics({"step": 0, "train/loss": 2.5})
        first = (run.path / "metrics.jsonl").read_bytes()
        assert first.endswith(b"\n"), "a row is on disk as soon as it is logged"
        run.close()
        run.log_metrics({"step": 1, "train/loss": 2.0})
        later = Run(run.path)
        later.log_metrics({"step": 2, "train/loss": 1.5})
        assert (run.path / "metrics.jsonl").read_bytes().startswith(first)
        assert [row["step"] for row in later.metrics()] == [0, 1, 2]
        run.close()
        later.close()

    @pytest.mark.parametrize(
        "override",
        [
            "neuron.beta=0.9",
            "name='a \"quoted\" word'",
            "name=größer😀",
            "name='a: b # c'",
            "name=two\nlines",
            "name=tab\tand\\backslash",
            "- x",
            "neuron.beta={_target_: snnexp.initializers.Uniform, low: 0}",
            "name=${seed}",
            "null",
            "",
            pytest.param("name=\x85", id="next line"),
            pytest.param("name=\u2028", id="line separator"),
            pytest.param("name=\x7f", id="delete"),
            pytest.param("name=\x1b[0m", id="escape"),
        ],
    )
    def test_overrides_are_read_back_exactly(self, tmp_path: Path, override: str) -> None:
        typed = ["seed=1", override]
        path = create(tmp_path, typed).path / "overrides.yaml"
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == typed
        assert OmegaConf.to_container(OmegaConf.load(path), resolve=False) == typed
        assert Run(path.parent).overrides() == typed

    def test_no_overrides_are_an_empty_list(self, tmp_path: Path) -> None:
        assert yaml.safe_load((create(tmp_path).path / "overrides.yaml").read_text()) == []


class TestAtomicWrites:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_full_disk_leaves_the_old_file_and_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        path = tmp_path / "run.json"
        write_atomically(path, b"old")
        monkeypatch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_an_interruption_leaves_no_temporary_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "run.json", b"new")
        assert list(tmp_path.iterdir()) == []

    def test_a_reader_never_sees_a_partial_file(self, tmp_path: Path) -> None:
        run = create(tmp_path, text="x" * 100_000)
        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(lambda: [run.update(number=number) for number in range(30)])
            while not writing.done():
                assert len(Run(run.path).read()["text"]) == 100_000
            assert writing.result()[-1]["number"] == 29


class TestCheckpoints:
    content = bytes(range(256)) * 40

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "last.ckpt"
        write_checkpoint(path, self.content)
        return path

    def test_roundtrip_and_the_checksum_is_that_of_sha256sum(self, path: Path) -> None:
        assert read_checkpoint(path) == path.read_bytes() == self.content
        line = (path.parent / "last.ckpt.sha256").read_text()
        assert line == f"{hashlib.sha256(self.content).hexdigest()}  last.ckpt\n"

    @pytest.mark.parametrize("position", [0, 5000, len(content) - 1])
    @pytest.mark.parametrize("bit", [0, 7])
    def test_a_flipped_bit_is_detected(self, path: Path, position: int, bit: int) -> None:
        damaged = bytearray(self.content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
            read_checkpoint(path)
        assert caught.value.exit_code == 5

    @pytest.mark.parametrize("content", [b"", content[:-1], content[:100], content + b"\0"])
    def test_a_wrong_length_is_detected(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)

    @pytest.mark.parametrize("name", ["last.ckpt", "last.ckpt.sha256"])
    def test_a_missing_file_is_detected(self, path: Path, name: str) -> None:
        path.with_name(name).unlink()
        with pytest.raises(
            CheckpointError, match=f"{re.escape(str(path))}: checkpoint (cannot be read|has no checksum)"
        ):
            read_checkpoint(path)

    @pytest.mark.parametrize("checksum", [b"", b"\n", b"\xff\xfe", b"0" * 64, b"no checksum"])
    def test_an_invalid_checksum_is_detected(self, path: Path, checksum: bytes) -> None:
        path.with_name("last.ckpt.sha256").write_bytes(checksum)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            read_checkpoint(path)

    # each file operation of a save in turn, and half of each write; "dev/shm" is another file system
    @pytest.mark.slow
    @pytest.mark.parametrize("tmpdir", [".", "/dev/shm"])
    @pytest.mark.parametrize("fault", ["kill", "no space"])
    def test_an_interrupted_save_leaves_valid_checkpoints(self, tmp_path: Path, tmpdir: str, fault: str) -> None:
        script = """
import errno, os, signal, sys
from pathlib import Path
from snnexp.record.checksum import read_checkpoint, write_checkpoint

folder, fault = Path(sys.argv[1]), sys.argv[2]
last, previous = folder / "last.ckpt", folder / "previous.ckpt"
old, older, new = (bytes([number]) * 300_000 for number in (1, 2, 3))

def cut_at(number):
    left = iter(range(number, -1, -1))
    def wrap(operation):
        def wrapped(*arguments, **more):
            if next(left) == 0:
                if operation is write:
                    write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                for name, function in originals.items():
                    setattr(os, name, function)
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(*arguments, **more)
        return wrapped
    for name in originals:
        setattr(os, name, wrap(originals[name]))

write = os.write
originals = {name: getattr(os, name) for name in ("open", "write", "fsync", "close", "replace")}
number = 0
while True:
    write_checkpoint(previous, older)
    write_checkpoint(last, old)
    process = os.fork()
    if process == 0:
        cut_at(number)
        try:
            write_checkpoint(last, new, keep=previous)
        except OSError:
            os._exit(7)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    assert read_checkpoint(last) in (old, new)
    assert read_checkpoint(previous) in (older, old)
    if fault == "no space":
        assert not list(folder.glob(".*.tmp"))
    if status == 0:
        break
    assert status == (signal.SIGKILL if fault == "kill" else 7 << 8)
    # and leftovers do not prevent the next save
    write_checkpoint(last, new, keep=previous)
    assert read_checkpoint(last) == new
    number += 1
assert (read_checkpoint(last), read_checkpoint(previous)) == (new, old)
print(number)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), fault],
            env={**os.environ, "TMPDIR": str(tmp_path) if tmpdir == "." else tmpdir},
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert int(done.stdout) > 30, "operations of a save"

    def test_a_corrupt_checkpoint_does_not_replace_a_valid_one(self, path: Path) -> None:
        previous = path.with_name("previous.ckpt")
        write_checkpoint(path, b"second", keep=previous)
        path.write_bytes(b"damaged")
        write_checkpoint(path, b"third", keep=previous)
        assert read_checkpoint(path) == b"third"
        assert read_checkpoint(previous) == self.content

    def test_only_regular_files_of_limited_size_are_read(self, tmp_path: Path, path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.ckpt")
        for strange in (tmp_path / "pipe.ckpt", Path("/dev/zero"), tmp_path):
            with pytest.raises(CheckpointError, match="not a regular file"):
                read_checkpoint(strange, foreign=True)
        with pytest.raises(CheckpointError, match="at most 100"):
            read_checkpoint(path, at_most=100)


class TestLock:
    def test_a_lock_ends_with_its_process(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.close()
        with writing(run) as first:
            with pytest.raises(InUseError, match=f"in use by process {first.pid}$") as caught:
                run.lock()
            assert caught.value.exit_code == 6
            first.kill()
            first.wait()
            run.lock()
            run.close()

    def test_the_owner_is_known_without_locking(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        (tmp_path / "link").symlink_to(run.path)
        assert Run(run.path).in_use()
        assert Run(tmp_path / "link").in_use()
        assert in_another_process(run, "in_use()") == "True", "the query did not release the lock"
        run.close()
        assert not run.in_use()
        assert in_another_process(run, "in_use()") == "False"
        (run.path / ".lock").unlink()
        assert not run.in_use()
        mine = create(tmp_path)
        (run.path / ".lock").symlink_to(mine.path / ".lock")
        assert not run.in_use()
        assert in_another_process(mine, "in_use()") == "True", "a query through a link must not release the lock"
        mine.close()

    def test_a_writing_process_is_detected_until_it_is_killed(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.close()
        with writing(run) as process:
            assert run.in_use()
            assert run.facts().status == "running"
            process.kill()
            process.wait()
            assert not run.in_use()
            assert run.facts().status == "killed"


LOCKS = (
    "import os, sys; from pathlib import Path; from snnexp.record.run import Run\n"
    "run = Run.open(Path(sys.argv[1])); run.lock()\n"
)
WAITS = "print('locked', flush=True); sys.stdin.read()"


@contextmanager
def writing(run: Run, script: str = f"{LOCKS}{WAITS}") -> Iterator[subprocess.Popen[str]]:
    """Another process that has locked a run."""
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def in_another_process(run: Run, call: str) -> str:
    script = (
        f"import sys; from pathlib import Path; from snnexp.record.run import Run; print(Run(Path(sys.argv[1])).{call})"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class TestFacts:
    def test_of_a_finished_run(self, tmp_path: Path) -> None:
        run = create(tmp_path, ["experiment=x", "seed=3"], seed=3, experiment="x", device="1 x cpu")
        run.log_metrics({"step": 7, "epoch": 1, "train/loss": 2.0})
        run.update(status="finished", exit_code=0, metrics={"test/l1": 0.5, "test/loss": None}, wall_s={"total": 4.5})
        run.close()
        facts = run.facts()
        assert (facts.path, facts.id) == (run.path, run.path.name)
        assert (facts.status, facts.reason, facts.exit_code, facts.duration_s) == ("finished", "", 0, 4.5)
        assert (facts.experiment, facts.seed, facts.overrides) == ("x", 3, ["experiment=x", "seed=3"])
        assert facts.metrics == {"test/l1": 0.5}
        assert facts.progress is None
        assert facts.record["device"] == "1 x cpu"
        assert facts.started == datetime.fromisoformat(run.read()["started"])
        # the second may change between the two
        assert f"{facts.started:%Y%m%d-%H%M%S}" <= run.path.name[:15]
        assert facts.started.utcoffset() == datetime.now().astimezone().utcoffset()

    @pytest.mark.parametrize("status", ["failed", "diverged", "interrupted"])
    def test_of_an_unfinished_run(self, tmp_path: Path, status: str) -> None:
        run = create(tmp_path)
        run.log_metrics({"step": 7, "epoch": 1, "train/loss": 2.0})
        run.update(status=status, exit_code=3, reason="the loss is nan")
        run.close()
        began = run.facts().started
        assert began is not None
        for name, after in (("metrics.jsonl", 90), ("run.json", 100)):
            os.utime(run.path / name, (0, began.timestamp() + after))
        facts = run.facts()
        assert (facts.status, facts.reason, facts.exit_code) == (status, "the loss is nan", 3)
        assert facts.progress == {"step": 7, "epoch": 1}
        assert facts.duration_s == 100
        resumed = run.resume_entries(run.read(), 3, ["trainer.max_epochs=3"])
        run.update(resumed_at_step=[3])
        assert run.facts().duration_s is None, "the time in between is unknown"
        run.update(**resumed)
        again = run.read()
        assert (again["earlier_s"], again["resumed_at_step"], again["resumed_with"]) == (
            100,
            [3],
            ["trainer.max_epochs=3"],
        )
        later = datetime.fromisoformat(again["resumed"]).timestamp() + 7
        for name in ("metrics.jsonl", "run.json"):
            os.utime(run.path / name, (0, later))
        assert run.facts().duration_s == 107
        run.update(status="finished", wall_s={"total": 5.0})
        assert run.facts().duration_s == 105
        run.update(earlier_s="long")
        assert run.facts().duration_s is None

    def test_the_row_of_the_final_test_is_not_a_step(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.log_metrics({"step": 99, "epoch": 0, "train/epoch_loss": 2.0})
        run.log_metrics({"step": 100, "epoch": 1, "test/loss": 2.0})
        assert run.facts().progress == {"step": 99, "epoch": 0}
        run.close()

    def test_it_may_end_between_two_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = create(tmp_path)

        def ends(self: Run) -> bool:
            run.update(status="finished")
            return False

        monkeypatch.setattr(Run, "in_use", ends)
        assert Run(run.path).facts().status == "finished"
        run.close()

    def test_the_last_complete_row_gives_the_progress_for_any_file_size(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        assert run.facts().progress is None
        for step in range(5000):
            run.log_metrics({"step": step, "epoch": step // 100, "train/loss": 1 / 3})
        run.close()
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5000, "epo')
        assert run.facts().progress == {"step": 4999, "epoch": 49}

    @pytest.mark.parametrize("row", ["{", "[1]", '{"step": 3}', '{"step": null, "epoch": 1}', "x" * 10**5, "[" * 10**4])
    def test_a_corrupt_row_gives_no_progress(self, tmp_path: Path, row: str) -> None:
        run = create(tmp_path)
        run.close()
        (run.path / "metrics.jsonl").write_text(f"{row}\n")
        assert run.facts().progress is None

    @pytest.mark.parametrize(
        "content", [None, "", "{", "[1]", '{"status": "bored"}', "{}", '{"status": [1]}', "\xff", "[" * 10**5]
    )
    def test_a_corrupt_record_is_reported(self, tmp_path: Path, content: str | None) -> None:
        run = create(tmp_path, ["seed=3"])
        run.close()
        (run.path / "run.json").unlink()
        if content is not None:
            (run.path / "run.json").write_bytes(content.encode("latin-1"))
        facts = run.facts()
        assert facts.status == "damaged"
        assert re.match(r"run\.json: (missing or )?damaged", facts.reason)
        assert facts.overrides == ["seed=3"], "readable files are used"

    @pytest.mark.parametrize(
        "content",
        [
            *(
                None,
                "",
                "{",
                "a: 1",
                "- [1]",
                "- 1",
                "\x00",
                "- !!timestamp x",
                "- !!python/name:os.system",
                "- 2020-99-99",
            ),
            *("- &a x\n- *a", "[" * 10**5, "{a: " * 10**5, "- " * 10**5, "[" * 40 + "]" * 40),
        ],
    )
    def test_corrupt_or_malicious_overrides_are_reported(self, tmp_path: Path, content: str | None) -> None:
        run = create(tmp_path)
        run.update(status="finished", metrics={"test/l1": 1})
        run.close()
        (run.path / "overrides.yaml").unlink()
        if content is not None:
            (run.path / "overrides.yaml").write_text(content)
        facts = run.facts()
        assert facts.status == "damaged"
        assert re.match(r"overrides\.yaml: (missing or )?damaged", facts.reason)
        assert facts.metrics == {"test/l1": 1}

    @pytest.mark.parametrize("name", ["run.json", "overrides.yaml", "metrics.jsonl"])
    def test_reading_a_pipe_does_not_block(self, tmp_path: Path, name: str) -> None:
        run = create(tmp_path)
        run.close()
        (run.path / name).unlink()
        os.mkfifo(run.path / name)
        assert run.facts().status == ("killed" if name == "metrics.jsonl" else "damaged")

    def test_values_of_other_types_are_ignored(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.update(
            status="finished", seed="one", experiment=None, wall_s=[1], exit_code="0", metrics={"a": "b", "c": True}
        )
        facts = run.facts()
        assert (facts.seed, facts.experiment, facts.duration_s, facts.exit_code) == (None, "", None, None)
        assert facts.metrics == {}
        run.close()

    @pytest.mark.parametrize("name", ["mine", "20261399-250000-abcd", "00010101-000000-abcd", "99991231-235959-abcd"])
    def test_a_directory_of_another_name_has_no_start_time(self, tmp_path: Path, name: str) -> None:
        run = create(tmp_path)
        # as before the start was recorded
        run.write({key: value for key, value in run.update(status="failed").items() if key != "started"})
        run.close()
        moved = Run(run.path.rename(tmp_path / name))
        assert moved.facts().duration_s is None or name.startswith("0001")

    @pytest.mark.parametrize("recorded", ["yesterday", 5, None, [], "2026-13-01T00:00:00+00:00"])
    def test_an_invalid_start_time_is_replaced_by_that_of_the_id(self, tmp_path: Path, recorded: object) -> None:
        run = create(tmp_path)
        run.update(started=recorded, status="failed")
        run.close()
        started = Run(run.path).facts().started
        assert started is not None
        assert f"{started:%Y%m%d-%H%M%S}" == run.path.name[:15]

    def test_config(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        assert run.config() == {"seed": 0}
        (run.path / "config.yaml").write_text("- 1")
        with pytest.raises(CheckpointError, match="not a mapping"):
            run.config()
        run.close()


def test_the_main_metric_and_its_direction() -> None:
    assert main_metric({"test/loss": 1.0, "test/l1": 2.0, "test/accuracy": 0.5}) == "test/accuracy"
    assert main_metric({"test/loss": 1.0, "test/l1": 2.0}) == "test/l1"
    assert main_metric({"val/loss": 1.0}) is None
    assert higher_is_better("test/accuracy")
    assert higher_is_better("val/accuracy")
    assert not higher_is_better("test/l1")
    # of a layer of that name
    assert higher_is_better("test/firing_rate/accuracy") is None
    assert higher_is_better("val/dead/loss") is None


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("test/loss", ("test", "loss", "")),
        ("test/synops", ("test", "synops", "")),
        ("test/synops/test", ("test", "synops", "test")),
        ("val/firing_rate/loss", ("val", "firing_rate", "loss")),
        ("test/mine/loss", ("test", "mine/loss", "")),
        ("loss", ("", "loss", "")),
    ],
)
def test_only_the_metric_name_determines_whether_it_is_of_a_layer(metric: str, expected: tuple[str, str, str]) -> None:
    assert split_name(metric) == expected


class TestOpen:
    @pytest.mark.parametrize("where", ["nowhere", "."])
    def test_other_folders_are_rejected(self, tmp_path: Path, where: str) -> None:
        with pytest.raises(ConfigError, match="not the directory of a run"):
            Run.open(tmp_path / where)

    @pytest.mark.parametrize("name", ["metrics.jsonl", "train.log", "checkpoints/last.ckpt", "tensorboard"])
    def test_a_run_with_links_is_rejected(self, tmp_path: Path, name: str) -> None:
        run = create(tmp_path / "runs")
        run.close()
        (tmp_path / "mine").write_text("mine")
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(tmp_path / "mine")
        with pytest.raises(CheckpointError, match="a link") as caught:
            Run.open(run.path)
        assert caught.value.exit_code == 5
        assert (tmp_path / "mine").read_text() == "mine"

    @pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\xff", "[" * 100_000])
    def test_a_corrupt_record_is_reported(self, tmp_path: Path, content: str) -> None:
        run = create(tmp_path)
        (run.path / "run.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"run\.json: (missing or )?damaged"):
            run.read()


class TestRewind:
    def test_rows_after_a_checkpoint_are_truncated_and_an_incomplete_row_is_skipped(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.log_metrics({"step": 0})
        so_far = run.metrics_so_far()
        run.log_metrics({"step": 1})
        run.close()
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2')
        again = Run(run.path)
        assert [row["step"] for row in again.metrics()] == [0, 1]
        assert again.has_metrics(so_far)
        again.rewind(so_far["bytes"])
        assert again.metrics_so_far() == so_far
        again.log_metrics({"step": 1})
        assert [row["step"] for row in again.metrics()] == [0, 1]
        assert again.metrics_so_far()["bytes"] == len((run.path / "metrics.jsonl").read_bytes())
        again.close()

    def test_changed_or_missing_rows_are_detected(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.log_metrics({"step": 0})
        so_far = run.metrics_so_far()
        run.close()
        (run.path / "metrics.jsonl").write_text('{"step": 9}\n')
        assert not run.has_metrics(so_far)
        (run.path / "metrics.jsonl").write_text("")
        assert not run.has_metrics(so_far)


def test_no_program_configured_by_a_repository_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["init", "-q"], ["config", "core.fsmonitor", f"touch {tmp_path / 'attacked'}; true"]):
        subprocess.run(["git", *command], check=True)
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"], check=True
    )
    subprocess.run(["git", "status"], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "attacked").exists(), "git runs it by itself"
    (tmp_path / "attacked").unlink()
    assert git() is not None
    assert not (tmp_path / "attacked").exists()


def test_reading_runs_imports_no_slow_packages() -> None:
    script = (
        "import sys, snnexp.record.run; print({'torch', 'lightning', 'numpy', 'hydra', 'omegaconf'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


class TestDamagedRecords:
    """From an untrusted source or a faulty disk: one line and exit code 5, never a traceback."""

    @pytest.mark.parametrize(
        "row",
        ["[]", "3", "{}", '{"loss": 1}', '{"step": "1"}', '{"step": Infinity}', '{"step": 1e999}', '{"step": true}'],
    )
    def test_an_invalid_row_is_reported(self, tmp_path: Path, row: str) -> None:
        run = create(tmp_path)
        (run.path / "metrics.jsonl").write_text(f'{{"step": 0, "epoch": 0}}\n{row}\n')
        with pytest.raises(CheckpointError, match="line 2 is damaged"):
            list(run.metrics())

    @pytest.mark.parametrize("value", ["9" * 400, "1e400", "NaN", "[" * 200 + "]" * 200, "[" * 900 + "]" * 900])
    def test_a_record_with_invalid_values_is_damaged(self, tmp_path: Path, value: str) -> None:
        run = create(tmp_path)
        (run.path / "run.json").write_text(f'{{"status": "finished", "x": {value}}}')
        with pytest.raises(CheckpointError, match=r"run\.json: missing or damaged"):
            run.read()

    def test_an_unpaired_surrogate_is_kept(self, tmp_path: Path) -> None:
        run = create(tmp_path)
        run.update(reason="a \ud800 b")
        assert run.read()["reason"] == "a \ud800 b"


def test_a_data_worker_does_not_keep_the_lock_of_a_dead_process(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.close()
    worker = f"{LOCKS}if not os.fork(): assert Run(run.path).in_use(); {WAITS}; os._exit(0)\nos.wait()"
    with writing(run, worker) as process:
        process.kill()
        process.wait()
        run.lock()
        run.close()


def test_the_lock_of_an_older_version_is_respected(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.close()
    older = "import fcntl, sys; file = open(f'{sys.argv[1]}/.lock', 'r+'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
    with writing(run, f"{older}{WAITS}") as process:
        assert run.in_use()
        with pytest.raises(InUseError):
            run.lock()
        process.kill()
    run.lock()
    run.close()


class TestArrays:
    @pytest.mark.parametrize("kind", ["values", "entries", "one content", "object", "complex", "records", "packed"])
    def test_invalid_arrays_are_rejected(self, tmp_path: Path, kind: str) -> None:
        run = create(tmp_path)
        run.write_arrays("last", {"a": np.zeros(1000), "b": np.array(["text"])})
        path = run.probe / "last.npz"
        assert [*run.arrays("last")] == ["a", "b"]
        if kind == "values":
            np.savez(path, a=np.zeros(20_000_000, np.uint8))
        elif kind == "entries":
            np.savez(path, **{str(number): np.zeros(1) for number in range(5000)})
        elif kind == "one content":
            repeated(path, 100)
        elif kind == "packed":
            np.savez_compressed(path, a=np.zeros(1000))
        else:
            dtype = {"object": object, "complex": complex, "records": [("a", int)]}[kind]
            np.savez(path, a=np.zeros(3, dtype))
        with pytest.raises(CheckpointError, match=r"last\.npz"):
            run.arrays("last")
        run.close()


def repeated(path: Path, times: int) -> None:
    """Let the central directory of an archive list its first entry many times under different names."""
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.infolist()[0]
        for number in range(times):
            entry = copy.copy(first)
            entry.filename = f"{number}.npy"
            archive.filelist.append(entry)
        # for what was added by hand
        archive._didModify = True

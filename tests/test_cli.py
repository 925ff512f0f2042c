"""The command line, run in separate processes as by a user."""

import csv
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import torch

from snnexp.cli import main
from snnexp.record.run import Run

RUN = ["train", "experiment=regression_sqrt", "trainer=cpu"]
SHORT = [*RUN, "trainer.max_epochs=4", "logger.save_every_n_epochs=2", "trainer.log_every_n_steps=1"]
DDP = ["trainer=ddp" if word == "trainer=cpu" else word for word in SHORT] + ["trainer.accelerator=cpu"]


def snnexp(*arguments: str, cwd: Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = commands.run(arguments, cwd, {**os.environ, **env}, timeout_s=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def only_run(cwd: Path, pattern: str = "outputs/*/*/run.json") -> Path:
    (record,) = cwd.glob(pattern)
    return record.parent


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def imported_by(code: str, cwd: Path) -> set[str]:
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


class TestLazy:
    def test_help_imports_nothing_heavy(self, tmp_path: Path) -> None:
        modules = imported_by("from snnexp.cli import main; main(['--help'])", tmp_path)
        assert not modules & {"hydra", "omegaconf", "torch", "rich", "lightning"}

    def test_showing_a_config_does_not_import_torch(self, tmp_path: Path) -> None:
        call = "from snnexp.cli import main; main(['train', '--cfg', 'job', 'experiment=mnist_leaky'])"
        modules = imported_by(call, tmp_path)
        assert "hydra" in modules
        assert not modules & {"torch", "lightning", "torchvision"}
        assert not list(tmp_path.iterdir())


class TestTexts:
    def test_help_and_version(self, tmp_path: Path) -> None:
        assert "snnexp train" in snnexp("--help", cwd=tmp_path).stdout
        assert snnexp(cwd=tmp_path).stdout == snnexp("--help", cwd=tmp_path).stdout
        assert snnexp("--version", cwd=tmp_path).stdout.startswith("snnexp 0.")

    def test_list_shows_every_group_and_recipe(self, tmp_path: Path) -> None:
        everything = snnexp("list", cwd=tmp_path).stdout
        assert all(word in everything for word in ("rleaky", "nll_max_voltage", "regression_sqrt_fit", "ddp"))
        neurons = snnexp("list", "neuron", cwd=tmp_path).stdout.splitlines()
        assert {line.split()[0] for line in neurons} >= {"leaky", "rleaky", "parametrized_lif"}
        assert all(len(line.split()) > 3 for line in neurons), "each has a description"

    @pytest.mark.slow
    def test_doctor_shows_versions_and_missing_data(self, tmp_path: Path) -> None:
        output = snnexp("doctor", cwd=tmp_path, SNNEXP_DATA_DIR=str(tmp_path / "none")).stdout
        assert torch.__version__.split("+")[0] in output
        assert "MNIST is missing" in output

    def test_config_as_hydra_shows_it(self, tmp_path: Path) -> None:
        output = snnexp("train", "neuron.beta=0.8", "--cfg", "job", "seed=3", "-p", "neuron", cwd=tmp_path).stdout
        assert "beta: 0.8" in output

    @pytest.mark.parametrize(
        ("line", "expected"),
        [("snnexp tr", "train"), ("snnexp train experiment=mnist_l", "experiment=mnist_leaky")],
    )
    def test_tab_completion(self, tmp_path: Path, line: str, expected: str) -> None:
        words = snnexp("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()
        assert words == [expected]

    def test_a_folder_of_configs_from_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "mine" / "optimizer").mkdir(parents=True)
        (tmp_path / "mine" / "optimizer" / "slow.yaml").write_text("# Slow\ndefaults: [adam]\nlr: 1e-5\n")
        output = snnexp("train", "--config-dir", "mine", "optimizer=slow", "--cfg", "job", cwd=tmp_path).stdout
        assert "lr: 1.0e-05" in output


@pytest.mark.parametrize("arguments", [["train", "nueron=leaky"], ["train", "-m", "neuron.beta=0.5,1.5"], ["tarin"]])
def test_an_error_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    done = snnexp(*arguments, cwd=tmp_path, code=2)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short run, and what it printed."""
    cwd = tmp_path_factory.mktemp("with a space é")
    return cwd, snnexp(*SHORT, "seed=3", cwd=cwd).stdout


@pytest.mark.slow
class TestRun:
    def test_prints_plain_lines_into_a_pipe(self, finished: tuple[Path, str]) -> None:
        cwd, printed = finished
        assert printed.isascii()
        assert "\x1b" not in printed
        assert "\r" not in printed
        measures = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.startswith("test/")}
        assert float(measures["test/relative_error"][0]) > 0
        assert len(measures["test/relative_error"]) == 1, "no published value, since the recipe trains longer"
        assert f"run {only_run(cwd).relative_to(cwd)}" in printed

    def test_ends_with_the_loss_curve_and_the_tables(self, finished: tuple[Path, str]) -> None:
        lines = finished[1].splitlines()
        (bottom,) = [number for number, line in enumerate(lines) if "train/loss" in line]
        assert lines[bottom].split() == ["1", *lines[bottom].split()[1:-1], "4"], "from the first step to the last"
        assert all("|" in line or "+" in line for line in lines[bottom - 6 : bottom])
        assert lines[bottom + 1].split() == ["metric", "value"]
        layers = {line.split()[0]: line.split()[1:] for line in lines[bottom + 2 : -1] if not line.startswith("test/")}
        measured = record(only_run(finished[0]))["metrics"]
        assert layers["layer"][:2] == ["firing", "rate"]
        for name in ("hidden1", "hidden2"):
            assert float(layers[name][0]) == pytest.approx(measured[f"test/firing_rate/{name}"], rel=1e-3)
        assert all(len(line) <= 80 for line in lines)

    def test_is_listed(self, finished: tuple[Path, str]) -> None:
        head, row = snnexp("runs", cwd=finished[0]).stdout.splitlines()
        assert head.split() == ["status", "age", "experiment", "l1", "duration", "path", "overrides"]
        assert row.startswith("finished ")
        assert str(only_run(finished[0]).relative_to(finished[0])) in row
        (listed,) = json.loads(snnexp("runs", "--json", "num_steps>1", cwd=finished[0]).stdout)
        assert listed["metrics"] == record(only_run(finished[0]))["metrics"]
        assert listed["seed"] == 3

    def test_record(self, finished: tuple[Path, str]) -> None:
        run = only_run(finished[0])
        entries = record(run)
        assert entries["status"] == "finished"
        assert (entries["exit_code"], entries["seed"], entries["experiment"]) == (0, 3, "regression_sqrt")
        assert entries["kernel"] == "fused"
        assert entries["device"] == "1 x cpu"
        assert entries["versions"]["torch"] == torch.__version__.split("+")[0]
        spent = entries["wall_s"]
        assert set(spent) == {"build", "fit", "save", "draw", "test", "total"}
        assert min(spent.values()) > 0
        assert sum(spent.values()) == pytest.approx(2 * spent["total"]), "the parts add up to the total"
        assert {"test/loss", "test/l1", "test/relative_error", "test/seed_mean_loss", "test/synops"} <= set(
            entries["metrics"]
        )
        assert all(0 <= entries["metrics"][f"test/firing_rate/{layer}"] <= 1 for layer in ("hidden1", "hidden2"))
        assert (run / "overrides.yaml").read_text().splitlines()[0] == "- experiment=regression_sqrt"

    def test_config_is_complete_and_resolved(self, finished: tuple[Path, str]) -> None:
        text = (only_run(finished[0]) / "config.yaml").read_text()
        assert "${" not in text
        assert "seed: 3" in text
        assert "_target_: snnexp.initializers.Uniform" in text

    def test_metrics_by_step_and_epoch(self, finished: tuple[Path, str]) -> None:
        rows = [json.loads(line) for line in (only_run(finished[0]) / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "train/loss" in row]
        assert [(row["step"], row["epoch"]) for row in steps] == [(0, 0), (1, 1), (2, 2), (3, 3)]
        assert {"train/l1", "train/firing_rate/hidden1"} <= set(steps[0])
        assert rows[-1]["test/l1"] == record(only_run(finished[0]))["metrics"]["test/l1"]

    def test_checkpoints_match_their_checksums(self, finished: tuple[Path, str]) -> None:
        folder = only_run(finished[0]) / "checkpoints"
        for name in ("init", "last", "best"):
            content = (folder / f"{name}.ckpt").read_bytes()
            assert (folder / f"{name}.ckpt.sha256").read_text().split() == [
                hashlib.sha256(content).hexdigest(),
                f"{name}.ckpt",
            ]
            assert "state_dict" in torch.load(folder / f"{name}.ckpt", weights_only=True)
        first, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("init", "last"))
        assert (first["global_step"], last["global_step"]) == (0, 4)

    def test_its_log_has_no_warning_about_unsafe_checkpoints(self, finished: tuple[Path, str]) -> None:
        assert "weights_only" not in (only_run(finished[0]) / "train.log").read_text()

    def test_tensorboard_events(self, finished: tuple[Path, str]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2

        events = EventAccumulator(str(only_run(finished[0]) / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert {"train/loss", "train/firing_rate/hidden1", "test/l1"} <= set(tags["scalars"])
        assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
        assert {"weights/hidden1/neuron/beta", "weights/hidden2/synapse/weight"} <= set(tags["histograms"])
        groups = sorted({tag.partition("/")[0] for kind in ("scalars", "histograms", "images") for tag in tags[kind]})
        assert groups == ["test", "train", "visualization", "weights"], "the first two are expanded by default"
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        written = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert {*written} == {
            *("experiment", "seed", "data.seed", "trainer.accelerator", "trainer.max_epochs"),
        }, "differences from the recipe"

    def test_a_repeated_run_writes_the_same_metrics(self, finished: tuple[Path, str], tmp_path: Path) -> None:
        # changes the order of sets
        snnexp(*SHORT, "seed=3", cwd=tmp_path, PYTHONHASHSEED="1")
        first, second = (only_run(cwd) / "metrics.jsonl" for cwd in (finished[0], tmp_path))
        assert first.read_bytes() == second.read_bytes()


def in_a_terminal(cwd: Path, *arguments: str, **env: str) -> list[str]:
    """The lines of a terminal of 80 columns, without control sequences."""
    outer, inner = pty.openpty()
    without = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = commands.Command(arguments, cwd, {**without, "TERM": "xterm", **env}, stdout=inner, stderr=inner)
    os.close(inner)
    output = b""
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        output += piece
    assert process.wait() == 0, output
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode()))


@pytest.mark.slow
def test_a_terminal_shows_the_config_the_bar_the_curve_and_the_table(tmp_path: Path) -> None:
    # long enough for the progress bar to show values
    lines = in_a_terminal(tmp_path, *RUN, "trainer.max_epochs=60", "trainer.log_every_n_steps=1")
    text = "\n".join(lines)
    assert "├── neuron leaky_random" in text
    assert "├── trainer cpu*  max_epochs=60*  log_every_n_steps=1*" in text
    assert re.search(r"^epoch \d+/60 [━╸╺]+ loss \S+  firing 0\.\d{3}  \d+ samples/s  \d+:\d\d left *$", text, re.M)
    assert re.search(r"^epoch 60/60  step 60/60  mean loss .* s$", text, re.M)
    assert re.search(r" ┤[⠁-⣿]", text), "the loss curve"
    assert "test/l1" in text
    assert re.search("^layer +firing rate", text, re.M)
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_a_terminal_shows_parts_given_by_target(tmp_path: Path) -> None:
    """A user's neuron without a surrogate, and a part given by ``_target_`` instead of a choice."""
    parts = Path(__file__).parent / "behaviour" / "parts"
    outside = {"SNNEXP_ALLOW_TARGETS": "mypkg", "PYTHONPATH": f"{parts}:{os.environ.get('PYTHONPATH', '')}"}
    trainer = (
        "+trainer={_target_: snnexp.training.assembly.make_trainer, accelerator: cpu, strategy: auto, max_epochs: 1}"
    )
    words = ("--config-dir", str(parts / "conf"), "experiment=mnist_leaky", "data=blobs", "network.hidden=[4]")
    more = ("neuron=own", "loss=mse_membrane", "logger=jsonl", "num_steps=2", "~trainer", trainer)
    text = "\n".join(in_a_terminal(tmp_path, "train", *words, *more, **outside))
    assert re.search(r"^mnist_leaky\*", text, re.M), "the recipe is an override"
    assert "neuron own*" in text
    assert only_run(tmp_path)


@pytest.mark.slow
def test_an_ascii_only_terminal_and_pipe(tmp_path: Path) -> None:
    arguments = [*SHORT, f"logger.root={tmp_path / 'größe 😀'}"]
    assert all(map(str.isascii, in_a_terminal(tmp_path, *arguments, PYTHONIOENCODING="ascii")))
    printed = snnexp(*arguments, cwd=tmp_path, PYTHONIOENCODING="ascii").stdout
    assert printed.isascii()
    assert r"gr\xf6\xdfe" in printed


@pytest.mark.slow
class TestSweep:
    def test_seeds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(tmp_path)
        assert main([*SHORT, "-m", "seed=0,1", "hydra.launcher.workers=1"]) == 0
        printed = capsys.readouterr().out
        sweep = only_run(tmp_path, "outputs/sweeps/regression_sqrt/*/summary.csv")
        runs = [record(path.parent) for path in sweep.glob("runs/*/run.json")]
        runs.sort(key=lambda run: run["seed"])
        assert [run["seed"] for run in runs] == [0, 1]
        rows = list(csv.DictReader((sweep / "summary.csv").read_text().splitlines()))
        assert [row["seed"] for row in rows] == ["0", "1"]
        assert [float(row["test/l1"]) for row in rows] == [run["metrics"]["test/l1"] for run in runs]
        assert "sweep outputs/sweeps/regression_sqrt/" in printed
        (header,) = (line.split() for line in printed.splitlines() if line.startswith("seed "))
        assert header == ["seed", "status", "test/l1", "test/loss", "test/relative_error", "test/seed_mean_loss"]


def test_divergence_keeps_the_last_finite_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SHORT, "optimizer.lr=1e30"]) == 3
    # such a step has moved decays out of their domain
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1:3] for line in lines] == [["learned", "parameters"], ["the", "loss"]]
    run = only_run(tmp_path)
    assert record(run)["status"] == "diverged"
    assert "the loss is" in record(run)["reason"]
    for path in run.glob("checkpoints/*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(torch.isfinite(weight).all() for weight in weights)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_saves_and_stops(tmp_path: Path) -> None:
    endless = [*RUN, "trainer.max_epochs=100000", "logger.save_every_n_epochs=100000", "data.num_workers=1"]
    with commands.Command(endless, tmp_path, os.environ, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in tmp_path.glob("outputs/*/*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # as a terminal and `timeout` do, also to the workers
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "snnexp: stopped by SIGINT\n"
    run = only_run(tmp_path)
    assert record(run)["status"] == "interrupted"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= max(row["step"] for row in rows)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ["data.num_samples=4", "data.batch_size=4"]
    for cwd in ("one", "two"):
        (tmp_path / cwd).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    assert main([*SHORT, *data]) == 0
    snnexp(*DDP, *data, "trainer.max_epochs=2", cwd=tmp_path / "two")
    done = snnexp("resume", str(only_run(tmp_path / "two")), "trainer.max_epochs=4", cwd=tmp_path)
    assert done.stderr == ""
    one, two = (only_run(tmp_path / cwd) for cwd in ("one", "two"))
    assert record(two)["device"] == "2 x cpu"
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    losses = [[row["train/epoch_loss"] for row in run if "train/epoch_loss" in row] for run in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert record(two)["metrics"]["test/l1"] == pytest.approx(record(one)["metrics"]["test/l1"], rel=1e-2)
    for run in (one, two):
        counted = Run(run).arrays("test")
        assert (counted["samples"], counted["step"]) == (4, 4), "each sample is counted once over all processes"
        assert (run / "figures" / "trajectory.png").exists()
        assert "sync_dist" not in (run / "train.log").read_text()


def test_an_output_folder_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert main(SHORT) == 74
    (line,) = capfd.readouterr().err.splitlines()
    assert "outputs" in line


def test_a_deleted_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(SHORT) == 74
    assert len(capfd.readouterr().err.splitlines()) == 1
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_sweep_null_is_a_single_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SHORT, "sweep=[]"]) == 0


class TestDamagedData:
    """Six kinds of damage to each of the four files of MNIST."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name", [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    )
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer", "one bit", "folder"])
    def test_is_reported_in_one_line_with_the_file(
        self,
        name: str,
        damage: str,
        tiny_mnist: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        path = tiny_mnist / "MNIST" / "raw" / name
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            flipped = bytes([*content[:-1], content[-1] ^ 1])
            path.write_bytes({"empty": b"", "cut": content[:-1], "longer": content + b"\0", "one bit": flipped}[damage])
        assert main(["train", "experiment=mnist_leaky", "trainer=cpu", "data.batch_size=4"]) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert name in line
        assert list((tmp_path / "here").iterdir()) == []


NO_NETWORK = """
import socket, sys

def refuse(*arguments, **more):
    raise AssertionError("the network was used")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from pathlib import Path
from snnexp.cli import main
assert main(sys.argv[1:]) == 0
(record,) = Path().glob("outputs/*/*/run.json")
assert main(["eval", str(record.parent)]) == 0
print("no network so far", file=sys.stderr)
main(["train", "experiment=mnist_leaky", "data.root=nowhere", "data.download=true"])
"""


@pytest.mark.slow
def test_no_run_uses_the_network(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_NETWORK, *SHORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    before, _, after = done.stderr.partition("no network so far\n")
    assert before == "", "no warning either"
    assert "the network was used" in after, "otherwise the test proves nothing"


@pytest.mark.slow
def test_an_untrusted_run_downloads_nothing(tmp_path: Path, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=mnist_leaky", "debug=batch", "data.batch_size=4", "data.download=true"]) == 0
    config = only_run(tmp_path) / "config.yaml"
    config.write_text(re.sub("root: .*data$", f"root: {tmp_path / 'elsewhere'}", config.read_text(), flags=re.M))
    monkeypatch.setattr("snnexp.data.mnist._download", lambda root: pytest.fail("the network was used"))
    for verb in ("resume", "eval"):
        assert main([verb, str(config.parent)]) == 4


@pytest.mark.slow
def test_paths_with_spaces_and_accents_and_long_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "meine Läufe 😀 a=b"
    hidden = ",".join(["3"] * 20)
    assert main([*SHORT, f"logger.root={root}", f"network.hidden=[{hidden}]"]) == 0
    run = only_run(root, "*/*/run.json")
    assert f"network.hidden=[{hidden}]" in (run / "overrides.yaml").read_text()
    assert root.name in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["resume", str(run), "trainer.max_epochs=5"]) == 0
    assert main(["eval", str(run.relative_to(tmp_path))]) == 0
    assert record(run)["status"] == "finished"

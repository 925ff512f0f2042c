"""The page about one run in any state, and from untrusted sources."""

import csv
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from snnexp.errors import CheckpointError, ConfigError
from snnexp.experiment import compose, run
from snnexp.figures import style
from snnexp.record.files import write_figure
from snnexp.record.run import Run
from snnexp.report import page, report

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
TYPED = ["experiment=regression_sqrt", "network.hidden=[6,5]", "num_steps=8", "trainer.max_epochs=12", "seed=3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to copy."""
    root = tmp_path_factory.mktemp("outputs")
    return run(compose([*TYPED, f"logger.root={root}"]), TYPED).path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create figures without rendering them, which takes most of the time."""
    monkeypatch.setattr(style, "png", lambda figure: b"\x89PNG")
    monkeypatch.setattr(style, "svg", lambda figure: "<svg>\n <defs></defs></svg>")


def change(folder: Path, **entries: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | entries))


def text(page: Path) -> str:
    """The text of a page, without its pictures."""
    content = page.read_text()
    content = re.sub(r"<(svg|style|head)\b.*?</\1>", " ", content, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", content)).split())


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "figures" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


class TestAFinishedRun:
    def test_early_stopping_is_shown(self, folder: Path, undrawn: None) -> None:
        assert "stopped early" not in text(report([folder]))
        change(folder, stopped_early={"epoch": 3, "step": 12, "reason": "val/loss did not improve"})
        words = text(report([folder]))
        assert "finished (stopped early after epoch 3, step 12: val/loss did not improve)" in words
        assert "The training stopped early after epoch 3, step 12" in words

    @pytest.mark.slow
    @pytest.mark.usefixtures("undrawn")
    def test_shows_differences_from_the_recipe_with_overrides_first(self, folder: Path) -> None:
        read = text(report([folder]))
        assert shlex.join(["snnexp", "train", *TYPED]) in read
        rows = table(folder, "differences")
        assert {row["key"] for row in rows[:4]} == {"network.hidden", "num_steps", "trainer.max_epochs", "seed"}
        changed = {row["key"]: (row["experiment=regression_sqrt"], row["this run"]) for row in rows}
        assert changed["num_steps"] == ("50", "8")
        assert changed["seed"] == ("0", "3")
        assert changed["data.seed"] == ("0", "3"), "derived from the seed"
        assert "optimizer.lr" not in changed

    @pytest.mark.usefixtures("undrawn")
    def test_the_command_of_an_extended_run_has_its_final_length(self, folder: Path) -> None:
        change(folder, resumed_with=["trainer.max_epochs=13", "trainer.max_epochs=14", 5])
        longer = [word for word in TYPED if "max_epochs" not in word] + ["trainer.max_epochs=14"]
        assert shlex.join(["snnexp", "train", *longer]) in text(report([folder]))

    @pytest.mark.usefixtures("undrawn")
    def test_an_unchanged_recipe_is_stated(self, tmp_path: Path) -> None:
        typed = ["experiment=regression_linear"]
        cfg = compose(typed)
        (folder := tmp_path / "20260101-000000-abcd").mkdir()
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        (folder / "overrides.yaml").write_text(yaml.safe_dump(typed))
        assert "This is experiment=regression_linear without changes." in text(report([folder]))

    @pytest.mark.slow
    @pytest.mark.usefixtures("undrawn")
    def test_shows_no_published_value_of_another_network(self, folder: Path) -> None:
        read = text(report([folder]))
        assert "published value for test/seed_mean_loss, test/relative_error; it is not comparable" in read
        assert {"published", "difference"}.isdisjoint(table(folder, "result")[0])
        (folder / "overrides.yaml").write_text(yaml.safe_dump(["experiment=of mine"]))
        assert "no recipe to compare this run with" in text(report([folder]))

    @pytest.mark.usefixtures("undrawn")
    def test_its_heading_has_the_main_metric(self, folder: Path) -> None:
        l1 = json.loads((folder / "run.json").read_text())["metrics"]["test/l1"]
        change(folder, threads=1)
        read = text(report([folder]))
        assert ", 1 thread, kernel" in read
        assert read.startswith(f"regression_sqrt: test/l1 {page.cell(l1)}")
        assert "mean of the training losses and the final L1, not test/l1" in read

    @pytest.mark.usefixtures("undrawn")
    def test_shows_the_decoder_of_the_accuracy_and_the_penalties(self, folder: Path) -> None:
        values = {"test/accuracy": 0.5, "test/penalty/target_rate": 0.25, "val/penalty/target_rate": 0.5}
        change(folder, metrics={**values, "test/firing_rate/hidden1": 0.1, "val/firing_rate/hidden1": 0.2})
        cfg = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg | {"decoder": {"_target_": "mine.LateVotes"}}))
        assert "fraction of correctly classified samples (decoder late_votes)" in text(report([folder]))
        assert {row["measure"] for row in table(folder, "result")} == values.keys()
        assert [row["layer"] for row in table(folder, "layers")] == ["hidden1"]
        del cfg["decoder"]
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
        change(folder, decoder="max_voltage")
        assert "correctly classified samples (decoder max_membrane)" in text(report([folder])), (
            "as recorded by an earlier version"
        )

    @pytest.mark.usefixtures("undrawn")
    def test_shows_the_published_value_beside_the_measured_one(self, folder: Path) -> None:
        measured = json.loads((folder / "run.json").read_text())["metrics"]
        same = OmegaConf.to_yaml(compose(["experiment=regression_sqrt", "seed=3"]))
        (folder / "config.yaml").write_text(same)
        report([folder])
        rows = {row["measure"]: row for row in table(folder, "result")}
        assert set(rows) == {name for name in measured if name.count("/") == 1}
        for name, published in (("test/relative_error", 2.84e-2), ("test/seed_mean_loss", 1.22e-2)):
            row = rows[name]
            assert float(row["measured"]) == measured[name]
            assert float(row["published"]) == published
            assert float(row["difference"]) == measured[name] - published
        assert rows["test/l1"]["published"] == ""
        layers = {row["layer"]: row for row in table(folder, "layers")}
        assert float(layers["hidden1"]["spikes per neuron and step"]) == measured["test/firing_rate/hidden1"]
        assert float(layers["hidden2"]["dead"]) == measured["test/dead/hidden2"]
        assert layers["readout"]["dead"] == "", "its spikes are not used"

    @pytest.mark.usefixtures("undrawn")
    def test_a_layer_may_have_the_name_of_a_metric(self, folder: Path) -> None:
        names = {"/hidden1": "/loss", "/hidden2": "/firing_rate", "/readout": "/test"}
        record = (folder / "run.json").read_text()
        for before, after in names.items():
            record = record.replace(f'{before}"', f'{after}"')
        metrics = json.loads(record)["metrics"]
        change(folder, metrics=metrics | {"test/mine/score": 0.5, "val/firing_rate/accuracy": 0.25})
        report([folder])
        rows = {row["layer"]: row for row in table(folder, "layers")}
        assert {*rows} == {"loss", "firing_rate", "test"}, "of the test split"
        assert float(rows["loss"]["spikes per neuron and step"]) == metrics["test/firing_rate/loss"]
        assert float(rows["firing_rate"]["synops"]) == metrics["test/synops/firing_rate"]
        result = {row["measure"]: float(row["measured"]) for row in table(folder, "result")}
        assert result["test/mine/score"] == 0.5
        assert result["test/synops"] == metrics["test/synops"]
        assert not any("firing_rate" in name for name in result)

    @pytest.mark.usefixtures("undrawn")
    def test_draws_the_logged_curves(self, folder: Path) -> None:
        report([folder])
        logged = list(Run(folder).metrics())
        rows = table(folder, "loss")
        steps = [(row["step"], row["train/loss"]) for row in logged if "train/loss" in row]
        drawn = [(int(r["iteration (train/loss)"]), float(r["train/loss"])) for r in rows if r["train/loss"]]
        assert drawn == steps
        epochs = [(row["epoch"] + 1, row["train/epoch_loss"]) for row in logged if "train/epoch_loss" in row]
        assert [(int(row["epoch (training)"]), float(row["training"])) for row in rows if row["training"]] == epochs
        assert epochs[-1][0] == 12

    @pytest.mark.slow
    @pytest.mark.usefixtures("undrawn")
    def test_estimates_the_energy_from_additions_and_products(self, folder: Path) -> None:
        read = text(report([folder]))
        assert "Horowitz" in read
        rows = {row["layer"]: row for row in table(folder, "operations")}
        metrics = json.loads((folder / "run.json").read_text())["metrics"]
        for name, products in (("hidden1", 6 * 8), ("hidden2", 0), ("readout", 0)):
            additions = metrics[f"test/synops/{name}"]
            assert float(rows[name]["additions by spikes"]) == additions
            assert float(rows[name]["products of values"]) == products, "one input in each of 8 steps"
            expected = (0.9 * additions + 4.6 * products) / 1000
            assert float(rows[name]["energy (nJ)"]) == pytest.approx(expected)
        dense = (6 + 6 * 5 + 5) * 8
        assert float(rows["without spikes"]["products of values"]) == dense, "in each step with a new value"
        total = sum(float(rows[name]["energy (nJ)"]) for name in ("hidden1", "hidden2", "readout"))
        assert float(rows["all layers"]["energy (nJ)"]) == pytest.approx(total)

    @pytest.mark.usefixtures("undrawn")
    def test_parameters_with_one_value_are_listed_and_not_drawn(self, folder: Path) -> None:
        report([folder])
        drawn = {name.partition(": ")[2] for name in table(folder, "parameters")[0]}
        constant = {
            f"{row['layer']} {row['parameter']}": float(row["value"]) for row in table(folder, "constant_parameters")
        }
        assert drawn == {"hidden1 beta", "hidden1 threshold", "hidden2 beta", "hidden2 threshold", "readout beta"}
        assert constant == {"readout threshold": 1.0}

    @pytest.mark.slow
    def test_writes_each_figure_as_png_svg_and_csv(self, folder: Path) -> None:
        page = report([folder])
        names = {path.stem for path in (folder / "figures").glob("*.svg")}
        wanted = {"loss", "activity", "trajectory", "output_membrane", "spike_raster", "parameters", "firing_rates"}
        assert names == wanted | {"gradient_norms", "energy", "time"}
        for name in names:
            assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert table(folder, name)
        assert page.read_text().count("<svg") == len(names)

    @pytest.mark.slow
    def test_the_same_run_gives_the_same_page(self, folder: Path) -> None:
        first = report([folder]).read_bytes()
        assert report([folder]).read_bytes() == first

    @pytest.mark.slow
    def test_is_written_to_the_given_folder(self, folder: Path, tmp_path: Path) -> None:
        before = sorted(folder.rglob("*"))
        page = report([folder], tmp_path / "new" / "place")
        assert page == tmp_path / "new" / "place" / "report.html"
        assert (tmp_path / "new" / "place" / "figures" / "loss.png").exists()
        assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
class TestOtherRuns:
    @pytest.mark.usefixtures("undrawn")
    def test_a_diverged_run_shows_the_reason(self, folder: Path) -> None:
        change(
            folder, status="diverged", metrics={}, reason="the loss is nan after step 7; a lower optimizer.lr may help"
        )
        read = text(report([folder]))
        assert "diverged: the loss is nan after step 7" in read
        assert "There are no test results: the run is diverged." in read
        assert (folder / "figures" / "loss.png").exists()

    def test_a_killed_run_is_marked(self, folder: Path) -> None:
        change(folder, status="running", metrics={}, wall_s={})
        (folder / "probe" / "last.npz").unlink()
        (folder / "probe" / "test.npz").unlink()
        read = text(report([folder]))
        assert "killed" in read
        assert "before its first snapshot" in read
        assert "before training" in (folder / "figures" / "spike_raster.svg").read_text()

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize(
        ("missing", "expected"),
        [
            ("run.json", "run.json: missing or damaged"),
            ("metrics.jsonl", "metrics.jsonl: No such file or directory"),
            ("overrides.yaml", "overrides.yaml"),
            ("config.yaml", "config.yaml"),
            ("probe", "No snapshot of the network was recorded"),
            ("checkpoints", ""),
            ("tensorboard", ""),
        ],
    )
    def test_missing_files_are_reported(self, folder: Path, missing: str, expected: str) -> None:
        path = folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert expected in text(report([folder]))

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("name", ["run.json", "config.yaml", "overrides.yaml", "metrics.jsonl", "probe/last.npz"])
    @pytest.mark.parametrize("content", [b"", b"\0\xff\xfe", b"[1, 2", b"a: [b, {c: d}]\n", b"[[[[1]]]]\n", b"{}\n"])
    def test_corrupt_files_still_give_a_page(self, folder: Path, name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        page = report([folder])
        assert "<h2>" in page.read_text()

    @pytest.mark.usefixtures("undrawn")
    def test_rows_before_a_corrupt_one_are_drawn(self, folder: Path) -> None:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_bytes(b"".join([*lines[:6], b"{broken\n", *lines[6:]]))
        assert "metrics.jsonl: line 7 is damaged" in text(report([folder]))
        assert len([row for row in table(folder, "loss") if row["training"]]) == 6

    @pytest.mark.usefixtures("undrawn")
    def test_non_finite_values_are_gaps(self, folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"train/epoch_loss": None} if row.get("epoch") == 4 and "train/epoch_loss" in row else {}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report([folder])
        assert [row["training"] for row in table(folder, "loss")][4] == "nan"

    @pytest.mark.usefixtures("undrawn")
    def test_arrays_of_another_shape_are_reported(self, folder: Path) -> None:
        arrays = Run(folder).arrays("last")
        Run(folder).write_arrays("last", arrays | {"membrane": np.zeros(3)})
        page = report([folder])
        assert "A part of this page cannot be built from the files of the run: IndexError" in text(page)
        assert (folder / "figures" / "spike_raster.svg").exists(), "the others are drawn"

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("kind", ["packed", "pickled"])
    def test_compressed_or_pickled_arrays_are_not_read(self, folder: Path, kind: str, tmp_path: Path) -> None:
        path = folder / "probe" / "last.npz"
        if kind == "packed":
            np.savez_compressed(path, bomb=np.zeros(10**6))
        else:

            class Run_:  # noqa: N801
                def __reduce__(self) -> Any:
                    return (Path.touch, (tmp_path / "ran",))

            np.savez(path, allow_pickle=True, layers=np.array([Run_()], dtype=object))
        assert "damaged" in text(report([folder]))
        assert not (tmp_path / "ran").exists()

    def test_untrusted_text_is_escaped(self, folder: Path) -> None:
        evil = "<script>alert(1)</script>&<img src=x onerror=alert(2)>"
        change(folder, status="failed", reason=evil, experiment=evil, versions={evil: evil}, device=evil)
        (folder / "overrides.yaml").write_text(yaml.safe_dump([f"name={evil}"]))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["name"] = config[evil] = evil
        config["published"] = {evil: 1.0}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        arrays = Run(folder).arrays("last")
        layers = {key.replace("hidden1", f"{evil}"): value for key, value in arrays.items()}
        Run(folder).write_arrays("last", layers)
        content = report([folder]).read_text()
        assert "<script" not in content
        assert "<img" not in content
        assert "&lt;script&gt;alert(1)" in content

    @pytest.mark.usefixtures("undrawn")
    def test_statistics_of_a_test_before_a_resume_are_not_shown(self, folder: Path) -> None:
        run_dir = Run(folder)
        run_dir.write_arrays("test", run_dir.arrays("test") | {"step": 3})
        report([folder])
        assert not (folder / "figures" / "firing_rates.svg").exists()

    @pytest.mark.usefixtures("undrawn")
    def test_the_time_of_a_resumed_run_is_labeled(self, folder: Path) -> None:
        assert "since the run was resumed" not in text(report([folder]))
        change(folder, resumed_at_step=[7])
        assert "since the run was resumed" in text(report([folder]))

    @pytest.mark.usefixtures("undrawn")
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(value=JSON, place=st.integers(0, 10**6))
    def test_values_of_other_types_still_give_a_page(self, finished: Path, value: Any, place: int) -> None:
        with tempfile.TemporaryDirectory() as elsewhere:
            folder = Path(shutil.copytree(finished, Path(elsewhere, finished.name)))
            entries = json.loads((folder / "run.json").read_text())
            inner = [(entries, key) for key in entries]
            inner += [(entries[key], name) for key in ("metrics", "wall_s") for name in entries[key]]
            node, key = inner[place % len(inner)]
            node[key] = value
            (folder / "run.json").write_text(json.dumps(entries))
            rows = (folder / "metrics.jsonl").read_text()
            (folder / "metrics.jsonl").write_text(rows + json.dumps({"step": value, "train/loss": value}) + "\n")
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["published"] = {"test/l1": value}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            assert "<h2>" in report([folder]).read_text()

    @pytest.mark.filterwarnings("ignore:Attempting to set identical")
    @pytest.mark.usefixtures("undrawn")
    def test_missing_or_string_arrays_still_give_a_page(self, folder: Path) -> None:
        arrays = Run(folder).arrays("last")
        others: list[Any] = [None, np.array("text"), np.zeros((0, 0))]
        for first in range(6):
            damaged = {key: others[(first + place) % 3] for place, key in enumerate([*arrays][first::6])}
            left = {key: array for key, array in (arrays | damaged).items() if array is not None}
            Run(folder).write_arrays("last", left)
            assert "<h2>" in report([folder]).read_text(), damaged

    @pytest.mark.usefixtures("undrawn")
    def test_an_untrusted_override_is_not_resolved(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "hunter2")
        (folder / "overrides.yaml").write_text(yaml.safe_dump(["experiment=${oc.env:SECRET}"]))
        content = report([folder]).read_text()
        assert "hunter2" not in content
        assert "oc.env:SECRET" in content

    @pytest.mark.usefixtures("undrawn")
    def test_links_in_a_run_are_not_followed(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.yaml").write_text("password: hunter2")
        (folder / "config.yaml").unlink()
        (folder / "config.yaml").symlink_to(tmp_path / "secret.yaml")
        (folder / "data").symlink_to(tmp_path)
        (folder / "checkpoints" / "backup.ckpt").hardlink_to(folder / "checkpoints" / "last.ckpt")
        content = report([folder]).read_text()
        assert "hunter2" not in content
        assert "config.yaml: not a regular file" in content

    @pytest.mark.usefixtures("undrawn")
    def test_unpaired_surrogates_are_escaped(self, folder: Path, tmp_path: Path) -> None:
        change(folder, status="failed", reason="a \ud800 b")
        moved = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
        folder.rename(moved)
        assert r"a \ud800 b" in report([moved]).read_text()

    def test_a_config_of_another_version_is_compared_as_far_as_possible(self, folder: Path) -> None:
        (folder / "overrides.yaml").write_text(yaml.safe_dump(["experiment=gone", "seed=3"]))
        assert "There is no recipe named gone to compare with." in text(report([folder]))


def test_a_running_run_can_be_reported(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from snnexp.record.files import write_figure\n"
        "while True: write_figure(Path(sys.argv[1]), 'a.png', b'theirs' * 1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as other:
        while not (tmp_path / "a.png").exists():
            time.sleep(0.01)
        for _ in range(300):
            write_figure(tmp_path, "a.png", b"ours" * 1000)
            assert (tmp_path / "a.png").read_bytes() in (b"ours" * 1000, b"theirs" * 1000)
        assert other.poll() is None, "the other process has no error either"
        other.kill()


@pytest.mark.usefixtures("undrawn")
def test_a_run_given_twice_counts_once(folder: Path) -> None:
    assert report([folder, folder / ".." / folder.name]) == folder.resolve() / "report.html"


class TestRefusals:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="contains no runs"):
            report([tmp_path])
        with pytest.raises(ConfigError, match="no such folder"):
            report([tmp_path / "none"])
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="file: not a folder"):
            report([tmp_path / "file"])

    def test_a_file_in_place_of_the_folder(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"^--out: .*file is a file, must be a folder"):
            report([folder], tmp_path / "file")

    @pytest.mark.slow
    def test_a_run_with_links(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "victim").mkdir()
        shutil.rmtree(folder / "figures")
        (folder / "figures").symlink_to(tmp_path / "victim")
        with pytest.raises(CheckpointError, match="a link"):
            report([folder])
        assert not list((tmp_path / "victim").iterdir())

    def test_a_metric_for_a_single_run(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"^--metric: .* a single run"):
            report([folder], metric="test/loss")

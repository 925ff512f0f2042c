"""Third-party networks on the command line: a graph, a plain module, and networks of other libraries."""

import json
from pathlib import Path

import pytest
from test_outside import CONF, only, points, record, snnexp

RUN = ("train", *CONF, "data=mnist", "data.batch_size=20", "num_steps=5", "trainer.limit_batches=3")
SHORT = (*RUN, "trainer.limit_test_batches=2", "trainer.max_epochs=2", "logger.draw_every_s=0")
NAMES = ("skip", "plain", "snntorch", "spikingjelly", "norse")
UNKNOWN = ("snntorch", "spikingjelly", "norse")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("snntorch", "norse", "spikingjelly"):
        pytest.importorskip(module)
    cwd = tmp_path_factory.mktemp("networks")
    snnexp(*SHORT, "-m", f"network={','.join(NAMES)}", "hydra.launcher.workers=1", cwd=cwd)
    return only(cwd, "outputs/sweeps/custom/*/sweep.json").parent


def run_of(sweep: Path, name: str) -> Path:
    (run,) = (point["run"] for point in points(sweep) if f"network={name}" in point["overrides"])
    return sweep / "runs" / Path(run).name


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
class TestNetworks:
    @pytest.mark.parametrize("name", NAMES)
    def test_trains(self, sweep: Path, name: str) -> None:
        entries = record(run_of(sweep, name))
        assert entries["status"] == "finished", entries["reason"]
        known = {key.rpartition("/")[2] for key in entries["metrics"] if key.startswith("test/firing_rate/")}
        inner = {"skip": {"maps", "dense"}, "plain": {"hidden"}}.get(name, set())
        assert known == inner | ({"readout"} if name != "norse" else set())
        assert ("test/synops" in entries["metrics"]) == (name == "skip")

    def test_a_report_states_what_is_unknown(self, sweep: Path) -> None:
        pages = {}
        for name in ("norse", "skip"):
            snnexp("report", str(run_of(sweep, name)), cwd=sweep)
            pages[name] = (run_of(sweep, name) / "report.html").read_text()
        assert "Synaptic operations into readout are unknown" in pages["norse"]
        assert "so its layers were not recorded" in pages["norse"]
        assert "so its layers were not recorded" not in pages["skip"]
        assert "Estimated energy" not in pages["norse"]
        assert "Estimated energy" in pages["skip"]

    def test_eval_gives_what_the_run_reported(self, sweep: Path) -> None:
        run = run_of(sweep, "skip")
        measured = json.loads(snnexp("eval", str(run), "--json", cwd=sweep).stdout)
        assert measured == {name: record(run)["metrics"][name] for name in measured}

    @pytest.mark.parametrize("name", ["skip", "snntorch"])
    def test_a_run_resumes_to_the_same_result(self, sweep: Path, tmp_path: Path, name: str) -> None:
        snnexp(*SHORT, f"network={name}", "trainer.max_epochs=1", cwd=tmp_path)
        run = only(tmp_path, "outputs/custom/*/run.json").parent
        snnexp("resume", str(run), "trainer.max_epochs=2", cwd=tmp_path)
        # the test of the first run is a separate row
        expected = [row for row in losses(run_of(sweep, name)) if "test/loss" not in row]
        assert [row for row in losses(run) if "test/loss" not in row] == expected
        assert record(run)["metrics"] == record(run_of(sweep, name))["metrics"]

"""Report pages in a real browser, and a real TensorBoard server for a run."""

import csv
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Page, open_browser

from snnexp.experiment import compose, run
from snnexp.record.run import Run
from snnexp.report import report

pytestmark = pytest.mark.slow

RECIPES = ["digits_leaky", "mnist_parametrized_lif", "mnist_rleaky_conv", "regression_sqrt_fit"]
SHORT = ["num_steps=8", "data.batch_size=5", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
CLASSES = {"predictions", "confusion"}
ALWAYS = {"loss", "activity", "output_membrane", "spike_raster", "gradient_norms", "firing_rates"}
OF_ONE_VALUE = {"digits_leaky", "mnist_leaky", "mnist_rleaky_conv", "mnist_rleaky_count", "mnist_rleaky_membrane"}
"""Recipes whose neuron parameters are neither learned nor random."""

in_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver; Debian's packages chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def trained(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains a recipe briefly."""
    monkeypatch.chdir(tmp_path)

    def train(recipe: str, *overrides: str) -> Path:
        typed = [f"experiment={recipe}", *(SHORT if recipe.startswith("mnist") else SHORT[2:]), *overrides]
        return run(compose(typed), typed).path

    return train


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@in_chromium
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_page_renders_without_network_access(trained: Any, page: Page, recipe: str) -> None:
    written = report([trained(recipe, *([] if "conv" in recipe else ["network.hidden=[30,20]"]))])
    page.requests()
    page.complaints()
    classes = not recipe.startswith("regression")
    for width in (1280, 400):
        figures = page.look(written, width)
        more = 2 + (3 if classes else 1) + (recipe not in OF_ONE_VALUE) + (recipe == "regression_sqrt_fit")
        assert len(figures) == len(ALWAYS) + more, "accuracy or trajectory, rates, parameters, time and energy too"
        for figure in figures:
            assert figure["label"]
            assert 0 <= figure["left"] < figure["right"] <= width
            assert figure["height"] > 40
            assert figure["smallest"] > 7.5, "the smallest text, in pixels"
            assert figure["marks"]
            assert figure["images"], "raster images are embedded in the page"
        assert page.script("return document.documentElement.scrollWidth <= innerWidth"), "no horizontal scrolling"
    assert {address for address in page.requests() if not address.startswith("data:")} == {written.resolve().as_uri()}
    assert page.complaints() == []


@in_chromium
def test_a_page_follows_the_dark_color_scheme(trained: Any, page: Page) -> None:
    written = report([trained("regression_linear")])
    brightness = []
    for dark in (False, True):
        page.look(written, 1280, dark)
        ground = page.script("return getComputedStyle(document.body).backgroundColor")
        text = page.script("return getComputedStyle(document.querySelector('svg text')).fill")
        brightness.append([sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ground, text)])
    (light_ground, dark_text), (dark_ground, light_text) = brightness
    assert light_ground > 700 > 150 > dark_text
    assert dark_ground < 150 < 600 < light_text


@in_chromium
def test_a_page_prints(trained: Any, page: Page) -> None:
    page.look(report([trained("regression_linear")]), 1280, dark=True)
    printed = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 20_000
    is_visible = "return document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"
    assert page.script(is_visible) is False, "the full config is collapsed"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.script(is_visible) is True
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@in_chromium
def test_captions_of_wide_tables_are_readable_on_a_phone(trained: Any, page: Page) -> None:
    page.look(report([trained("regression_linear", f"optimizer.lr={lr}") for lr in (0.1, 0.2)]), 400)
    boxes = page.script(
        "return [...document.querySelectorAll('.caption')].filter(box => box.offsetParent)"
        ".map(box => box.getBoundingClientRect().right)"
    )
    assert boxes
    assert max(boxes) <= 400
    assert page.script(
        "return [...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
    )


@in_chromium
def test_svg_ids_of_two_pictures_are_distinct(trained: Any, page: Page) -> None:
    page.look(report([trained("regression_linear")]), 1280)
    names = page.script("return [...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(names) == len(set(names))
    dangling = """
    const uses = [...document.querySelectorAll('use')].map(use => use.href.baseVal.slice(1));
    const clips = [...document.querySelectorAll('[clip-path]')].map(
      element => element.getAttribute('clip-path').slice(5, -1));
    return [...uses, ...clips].filter(name => !document.getElementById(name));
    """
    assert page.script(dangling) == []


class TestTensorBoard:
    @pytest.fixture
    def ask(self, trained: Any) -> Iterator[Any]:
        """Responses of a server for the directory of a finished run."""
        folder = trained("mnist_parametrized_lif", "data.val_size=10", "logger.draw_every_s=0")
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://[\d.]+:\d+", line)))

        def ask(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                f"{address}/data/plugin/{path}", data, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
            return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

        deadline = time.monotonic() + 120
        while not ask("hparams/experiment", {}).get("hparamInfos") and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            yield folder, ask
        finally:
            server.terminate()
            server.wait()
            server.stderr.close()

    def test_serves_the_logged_data(self, ask: Any) -> None:
        folder, ask = ask
        (name,) = ask("scalars/tags")
        scalars = ask("scalars/tags")[name]
        assert {"train/loss", "val/loss", "test/accuracy", "train/firing_rate/hidden1", "train/dead/hidden1"} <= set(
            scalars
        )
        logged = [row["train/loss"] for row in Run(folder).metrics() if "train/loss" in row]
        served = [value for _, _, value in ask(f"scalars/scalars?tag=train/loss&run={name}")]
        assert served == pytest.approx(logged)

        histograms = ask("histograms/tags")[name]
        assert {"weights/hidden1/neuron/tau_mem_inv", "weights/hidden1/neuron/v_th"} <= set(histograms)
        drawn = ask(f"histograms/histograms?tag=weights/hidden1/neuron/v_th&run={name}")
        assert len(drawn) == 4, "before training and after each epoch"

        images = ask("images/tags")[name]
        wanted = {"spike_raster", "output_membrane", "predictions", "confusion", "parameters"}
        assert {f"visualization/{figure}" for figure in wanted} == set(images)
        drawn = ask(f"images/images?tag=visualization/spike_raster&run={name}&sample=0")
        assert [entry["step"] for entry in drawn] == [6, 12, 18], "after each epoch, the last after the test"
        assert ask(f"images/individualImage?{drawn[0]['query']}").startswith(b"\x89PNG")

    def test_has_one_row_of_hyperparameters_with_the_final_metrics(self, ask: Any) -> None:
        folder, ask = ask
        infos = ask("hparams/experiment", {})
        columns = [{"metric": info["name"]} for info in infos["metricInfos"]]
        request = {"startIndex": 0, "sliceSize": 10, "colParams": columns}
        request["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        (group,) = ask("hparams/session_groups", request)["sessionGroups"]
        assert group["hparams"]["experiment"] == "mnist_parametrized_lif"
        assert group["hparams"]["data.val_size"] == 10
        assert "optimizer.lr" not in group["hparams"], "it equals that of the recipe"
        (session,) = group["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        measured = {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
        assert measured == pytest.approx(json.loads((folder / "run.json").read_text())["metrics"], rel=1e-6)

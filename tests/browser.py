"""Open pages in Chromium: figures, console messages and network requests."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FIGURES = """
return [...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect(), scale = svg.getScreenCTM().a;
  const sizes = [...svg.querySelectorAll('text')].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
  const images = [...svg.querySelectorAll('image')].every(image => image.href.baseVal.startsWith('data:image/png'));
  return {label: figure.getAttribute('aria-label'), width: box.width, height: box.height, left: box.left,
          right: box.right, smallest: Math.min(...sizes), marks: svg.querySelectorAll('path,use,image').length, images};
});
"""


class Page:
    """An open page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def look(self, path: Path, width: int, dark: bool = False) -> list[dict[str, Any]]:
        """Open a file at a width in CSS pixels; return the geometry of its figures."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.resolve().as_uri())
        return self.driver.execute_script(FIGURES)

    def script(self, text: str) -> Any:
        return self.driver.execute_script(text)

    def complaints(self) -> list[str]:
        """Return the console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Return the requested URLs since the last call."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Open headless Chromium with an empty profile."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        yield Page(driver)
    finally:
        driver.quit()

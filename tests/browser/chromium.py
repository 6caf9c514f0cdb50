"""A headless Chromium for the page's tests: what it sends, what its console says, what axe finds, how it looks.

Knows selenium and nothing of vecgate. What leaves the machine or stands in the console fails the test that did it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

LIMIT_S = 60.0
FLAGS = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)
REFUSED = "Failed to load resource: the server responded with a status of"
"""What Chromium logs of an answer of 400 and more, which the page is shown to handle."""


def axe() -> str:
    """axe-core's own file, out of a package that ships it."""
    package = find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "axe.min.js").read_text()


def found(*names: str) -> str:
    """The first of the programs that is installed."""
    path = next(filter(None, map(shutil.which, names)), None)
    assert path is not None, f"{names[0]} is not installed: apt-get install chromium chromium-driver"
    return path


class Page:
    """One tab. `refused`: statuses that the test provokes."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for flag in FLAGS + (("--no-sandbox",) if os.geteuid() == 0 else ()):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # both named, or selenium would ask the network for them
        options.binary_location = found("chromium", "chromium-browser", "google-chrome")
        service = webdriver.ChromeService(found("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.refused: set[int] = set()
        self.unreachable = False

    def close(self) -> None:
        self.driver.quit()

    def look(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900 if width > 600 else 844, "deviceScaleFactor": 1, "mobile": width <= 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme_ = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme_})

    def open(self, url: str) -> Page:
        self.driver.get("about:blank")  # else only the part after # changes, and nothing is loaded
        self.driver.get(url)
        return self

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        read = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        found: list[str] = self.driver.execute_script(read, css)
        return found

    def text(self, css: str) -> str:
        return "".join(self.texts(css))

    def until(self, what: Any) -> Any:
        """The first true value of `what()`."""
        return WebDriverWait(self.driver, LIMIT_S, poll_frequency=0.05).until(lambda _: what())

    def see(self, css: str, text: str = "") -> None:
        self.until(lambda: any(one.is_displayed() and text in one.text for one in self.all(css)))

    def click(self, css: str) -> None:
        self.until(lambda: self.one(css).is_enabled())
        self.one(css).click()

    def type(self, css: str, text: str) -> None:
        self.one(css).clear()
        self.one(css).send_keys(text)

    def choose(self, css: str, value: str) -> None:
        self.until(lambda: self.all(f"{css} option[value='{value}']"))
        set_ = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        self.driver.execute_script(set_, self.one(css), value)

    def settled(self, out: str) -> None:
        """Until the answer is drawn."""
        self.until(lambda: self.one(out).get_attribute("aria-busy") == "false" and self.all(f"{out} .code"))

    def violations(self) -> list[str]:
        """What axe finds in what is seen, as `rule: element`."""
        if not self.driver.execute_script("return typeof axe === 'object'"):
            self.driver.execute_script(axe())
        run = (
            "axe.run(document).then((found) => arguments[0](found.violations), (error) => arguments[0](String(error)))"
        )
        found = self.driver.execute_async_script(run)
        return [
            f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}" for rule in found for node in rule["nodes"]
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.driver.execute_script(wide))

    def shoot(self, path: Path, height: int) -> None:
        width = self.driver.execute_script("return innerWidth")
        tall = self.driver.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, height), "scale": 1}
        asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]))

    def strangers(self, *hosts: str) -> list[str]:
        """Addresses that were asked since the last call and are of other hosts."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if urlsplit(url).scheme not in ("data", "blob", "about") and urlsplit(url).netloc not in hosts:
                    found.append(url)
        return found

    def complaints(self) -> list[str]:
        """What the console said since the last call beside refusals that the test provokes."""
        return [entry["message"] for entry in self.driver.get_log("browser") if not self._provoked(entry["message"])]

    def _provoked(self, message: str) -> bool:
        if REFUSED in message:
            return any(f"{REFUSED} {status} " in message for status in self.refused)
        return self.unreachable and "net::ERR_" in message

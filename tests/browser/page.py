"""The page in a real browser over real servers: `make test-browser`, which installs what this needs.

SHOTS=docs/page beside it keeps pictures there.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from tests import small
from tests.browser.chromium import Page
from tests.live import Live

KEY = "sesame-of-the-page"
MARKUP = "<img src=x onerror=alert(1)>"
VIEWS = ("try", "rerank", "live", "model")
SHOTS = os.environ.get("SHOTS")
PICTURES = (
    ("try", 1440, "light"),
    ("live", 1440, "dark"),
    ("rerank", 1440, "dark"),
    ("try", 390, "dark"),
    ("live", 390, "light"),
)
SIZES = ((1440, "light"), (390, "dark"), (1440, "dark"), (390, "light"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """A tab without a past; at the end nothing may have left the machine and the console is empty."""
    browser.refused, browser.unreachable = set(), False
    browser.look(1440, "light")
    browser.driver.get("about:blank")
    browser.strangers(), browser.complaints()
    yield browser
    assert browser.complaints() == []
    hosts = {f"127.0.0.1:{port}" for port in range(1024, 65536)}
    assert browser.strangers(*hosts) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("real")) as server:
        yield server.ready()


def fake(folder: Path, **settings: str) -> Live:
    """Two models of no weights, and whatever else is set."""
    small.folder(folder / "small"), small.folder(folder / "judge", "rerank")
    names = {"MODEL_NAME": str(folder / "small"), "CROSS_ENCODER_MODEL": str(folder / "judge")}
    return Live(folder, BACKEND="fake", VECGATE_CACHE_DIR=str(folder / "cache"), **{**names, **settings})


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with fake(tmp_path_factory.mktemp("locked"), VECGATE_API_KEY=KEY) as server:
        server.wait_for("/health", 200, "ok")
        yield server


def ask(server: Live, path: str, body: Any, **headers: str) -> Any:
    status, _, answer = server.post(path, body, **headers)
    assert status == 200, answer
    return json.loads(answer)


def cosines(server: Live, **body: Any) -> np.ndarray:
    rows = np.array([row["embedding"] for row in ask(server, "/v1/embeddings", body)["data"]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def shown(page: Page) -> np.ndarray:
    cells = [float(text) for text in page.texts(".heat td[data-at]")]
    side = round(len(cells) ** 0.5)
    return np.array(cells).reshape(side, side)


def compare(page: Page, server: Live) -> list[str]:
    page.open(f"{server.url}/#try").see("#state", "ready")
    page.click("#compare-go")
    page.settled("#compare-out")
    return page.one("#texts").get_attribute("value").splitlines()


# try


def test_the_heat_map_holds_the_numbers_of_the_api(page: Page, real: Live) -> None:
    texts = compare(page, real)
    assert len(texts) == 6
    assert np.abs(shown(page) - cosines(real, input=texts)).max() < 0.00051
    assert page.texts(".heat tbody th .text") == texts
    used = ask(real, "/v1/embeddings", {"input": texts})["usage"]["total_tokens"]
    assert f"{used} tokens" in page.text("#compare-note")
    assert sum(int(count) for count in page.texts(".tokens .count")) == used


def test_the_map_tells_its_texts(page: Page, real: Live) -> None:
    texts = compare(page, real)
    assert len(page.all(".point")) == 6
    page.driver.execute_script("arguments[0].focus()", page.one(f".point[aria-label^='3: {texts[2]}']"))
    page.see(".tip", texts[2])
    places = {tuple(dot.get_attribute(at) for at in ("cx", "cy")) for dot in page.all(".point circle")}
    assert len(places) == 6


def test_role_and_dimensions_change_the_numbers_and_say_what(page: Page, real: Live) -> None:
    texts = compare(page, real)
    page.choose("#dimensions", "64")
    page.see("#changes", "64 dimensions")
    page.settled("#compare-out")
    assert np.abs(shown(page) - cosines(real, input=texts, dimensions=64)).max() < 0.00051
    assert "1.50 KiB → 256 B" in page.text("#changes")
    page.choose("#role", "query")
    page.see("#role-hint", "no prompt")
    page.until(lambda: ":query" in page.text(".code code"))
    assert '"dimensions": 64' in page.text(".code code")


def test_what_is_cut_is_said_and_markup_is_text(page: Page, real: Live) -> None:
    page.open(f"{real.url}/#try").see("#state", "ready")
    page.driver.execute_script("arguments[0].value = arguments[1]", page.one("#texts"), f"a\n{'word ' * 300}\n{MARKUP}")
    page.click("#compare-go")
    page.settled("#compare-out")
    assert page.text(".tokens .cut .count") == "302 cut to 256"
    assert page.texts(".heat tbody th .text")[2] == page.texts(".tokens .text")[2] == MARKUP


def test_documents_stand_in_the_order_of_the_api(page: Page, real: Live) -> None:
    page.open(f"{real.url}/#rerank").see("#state", "ready")
    page.click("#rerank-go")
    page.settled("#rerank-out")
    documents = page.one("#documents").get_attribute("value").splitlines()
    body = {"query": page.one("#query").get_attribute("value"), "passages": documents}
    results = ask(real, "/api/v1/rerank", body)["results"]
    assert page.texts(".ranking .ranked > p") == [documents[one["index"]] for one in results]
    assert page.texts(".ranking .score") == [f"{one['score']:.3f}" for one in results]


def test_every_call_is_this_servers_and_is_copied(page: Page, real: Live) -> None:
    compare(page, real)
    names = page.texts(".tabs button")
    assert names == ["curl", "OpenAI SDK", "LangChain", "LlamaIndex", "n8n"]
    for name in names:
        page.driver.find_element(By.XPATH, f"//button[text()='{name}']").click()
        assert real.url in page.text(".code code")
        assert "all-MiniLM-L6-v2" in page.text(".code code")
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.click(".copy")
    page.until(lambda: page.text(".copy") == "Copied")
    read = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    assert page.driver.execute_async_script(read) == page.text(".code code")


def test_similarity_stands_beside_the_cross_encoder(page: Page, tmp_path: Path) -> None:
    with fake(tmp_path) as server:
        page.open(f"{server.ready().url}/#rerank").see("#method-hint", "judge")
        page.type("#query", "what is paris")
        page.type("#documents", "paris is the capital\ndogs bark\nberlin is the capital")
        page.click("#rerank-go")
        page.settled("#rerank-out")
        for method, name in (("cross-encoder", "Cross-encoder"), ("similarity", "Similarity")):
            page.driver.find_element(By.XPATH, f"//button[text()='{name}']").click()
            passages = page.one("#documents").get_attribute("value").splitlines()
            body = {"query": "what is paris", "passages": passages, "method": method}
            results = ask(server, "/api/v1/rerank", body)["results"]
            assert page.texts(".ranking .ranked > p") == [passages[one["index"]] for one in results]
            assert page.texts(f".ranking .{method} .score") == [f"{one['score']:.3f}" for one in results]


# live


def total(page: Page) -> int:
    word = page.text("#live-state").partition(" ")[0]
    return int(word) if word.isdigit() else 0


def test_live_numbers_move_under_load_and_the_stream_ends_unseen(page: Page, real: Live) -> None:
    page.open(f"{real.url}/#live").see("#live-state", "request")
    before = total(page)
    for _ in range(30):
        ask(real, "/v1/embeddings", {"input": ["a cat", "a dog"]})
    page.until(lambda: total(page) >= before + 30)
    page.until(lambda: page.text("#chart-texts .now") not in ("–", "0 /s"))
    page.until(lambda: "–" not in page.texts("#chart-latency b"))
    assert real.get("/v1/models/nothing")[0] == 404
    page.see("#errors", "No such path or model")
    page.driver.execute_script("location.hash = '#try'")
    page.until(lambda: '"/api/v1/live","status":499' in real.log().replace(" ", ""))


def test_a_page_that_watches_does_not_hold_the_server_up(page: Page, tmp_path: Path) -> None:
    page.unreachable, page.refused = True, {503}
    with fake(tmp_path) as server:
        page.open(f"{server.ready().url}/#live").see("#live-state", "request")
        server.process.terminate()
        assert server.process.wait(30) == 0
    page.see("#notice", "does not answer")
    page.driver.get("about:blank")


# model


def test_the_model_view_tells_what_is_loaded_and_no_secret(page: Page, locked: Live) -> None:
    page.refused = {401}
    afresh(page, locked)
    enter(page, KEY)
    page.driver.execute_script("location.hash = '#model'")
    page.see("#model-out", "Embedding model")
    card = json.loads(locked.get("/v1/models", authorization=f"Bearer {KEY}")[2])["data"][0]
    assert card["space"] in page.text("#model-out")
    page.click("#settings-all")
    assert "VECGATE_API_KEY" in page.text("#model-out")
    assert KEY not in page.driver.execute_script("return document.documentElement.outerHTML")


# the key


def afresh(page: Page, server: Live) -> None:
    """As in a new tab."""
    page.open(server.url)
    page.driver.execute_script("sessionStorage.clear()")
    page.driver.refresh()


def enter(page: Page, key: str) -> None:
    page.see("#key", "asks for a key")
    page.type("#key-input", key)
    page.click("#key-form .primary")


def test_the_key_is_asked_for_and_stays_in_the_tab(page: Page, locked: Live) -> None:
    page.refused = {401}
    afresh(page, locked)
    enter(page, "wrong")
    page.see("#key-error", "does not know this key")
    enter(page, KEY)
    page.see("#state", "small · ready")
    assert page.driver.execute_script("return localStorage.length + document.cookie.length") == 0
    page.driver.refresh()
    page.see("#state", "small · ready")
    page.click("#compare-go")
    page.settled("#compare-out")
    assert "$VECGATE_API_KEY" in page.text(".code code")
    assert KEY not in page.text(".code code")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(locked.url)
    page.see("#key", "asks for a key")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.click("#forget")
    page.see("#key", "asks for a key")


# states


def test_a_model_that_loads_is_waited_for(page: Page, tmp_path: Path) -> None:
    small.folder(tmp_path / "small")
    names = {"MODEL_NAME": str(tmp_path / "small"), "VECGATE_CACHE_DIR": str(tmp_path / "cache")}
    with Live(tmp_path, module="tests.scripted", HOW="loading", BACKEND="fake", **names) as server:
        server.wait_for("/health", 200)
        page.open(server.url).see("#notice", "The model is loading.")
        assert not page.one("#compare-go").is_enabled()
        assert page.violations() == []


def test_refusals_say_why_and_when_to_come_back(page: Page, tmp_path: Path) -> None:
    page.refused = {400, 429}
    with fake(tmp_path, VECGATE_TRUNCATE="refuse", VECGATE_RATE_LIMIT="12") as server:
        page.open(server.ready().url).see("#state", "ready")
        page.type("#texts", "dogs bark " * 10)
        page.click("#compare-go")
        page.see(".trouble[data-status='400']", "tokens")
        page.type("#texts", "dogs bark\nparis\nberlin")
        for _ in range(12):
            server.post("/v1/embeddings", {"input": "paris"})
        page.click("#compare-go")
        page.see(".trouble[data-status='429']", "VECGATE_RATE_LIMIT")
        page.see(".trouble button", "by itself in")
        assert page.violations() == []


# looks


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_view_is_within_reach_of_everybody(page: Page, real: Live, width: int, scheme: str) -> None:
    page.look(width, scheme)
    for view in VIEWS:
        page.open(f"{real.url}/#{view}").see("#state", "ready")
        if view in ("try", "rerank"):
            assert width < 1000 or page.violations() == []
            out = "#compare" if view == "try" else "#rerank"
            page.click(f"{out}-go")
            page.settled(f"{out}-out")
        if view == "live":
            ask(real, "/v1/embeddings", {"input": "a cat"})
            page.until(lambda: page.text("#chart-requests .now") != "–")
        assert page.violations() == [], view
        assert page.overflow() == 0, view


def test_everything_is_reached_by_keyboard(page: Page, real: Live) -> None:
    page.open(f"{real.url}/#try").see("#state", "ready")
    page.until(lambda: page.one("#compare-go").is_enabled())
    seen = []
    for _ in range(14):
        page.driver.switch_to.active_element.send_keys("\ue004")
        seen.append(
            page.driver.execute_script("return document.activeElement.id || document.activeElement.textContent")
        )
    for name in ("Skip to the content", "Try", "Live", "Model", "texts", "role", "dimensions", "compare-go"):
        assert name in [one.strip() for one in seen]


def test_it_works_under_a_prefix(page: Page, real: Live) -> None:
    """Behind a proxy that serves it at /somewhere/."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(real.get(self.path.removeprefix("/somewhere")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.forward(real.post(self.path.removeprefix("/somewhere"), body))

        def forward(self, answer: tuple[int, dict[str, str], bytes]) -> None:
            status, headers, body = answer
            self.send_response(status if self.path.startswith("/somewhere/") else 404)
            for name in ("content-type", "content-length", "content-security-policy", "server-timing"):
                if name in headers:
                    self.send_header(name, headers[name])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{proxy.server_port}/somewhere"
    try:
        page.open(f"{url}/#try").see("#state", "ready")
        page.click("#compare-go")
        page.settled("#compare-out")
        assert f"{url}/v1/embeddings" in page.text(".code code")
    finally:
        page.driver.get("about:blank")
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.skipif(SHOTS is None, reason="pictures are made with SHOTS=docs/page")
def test_pictures_are_kept(page: Page, real: Live) -> None:
    kept = Path(SHOTS or "")
    kept.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def load(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.wait(0.3 * chance.random()):
            texts = ["some words " * chance.randint(1, 4) for _ in range(chance.randint(1, 6))]
            ask(real, "/v1/embeddings", {"input": texts})

    for view, width, scheme in PICTURES:
        page.look(width, scheme)
        page.open(f"{real.url}/#{view}").see("#state", "ready")
        if view in ("try", "rerank"):
            out = "#compare" if view == "try" else "#rerank"
            page.click(f"{out}-go")
            page.settled(f"{out}-out")
        if view == "live":
            stop.clear()
            threads = [threading.Thread(target=load, args=(seed,)) for seed in range(2)]
            for thread in threads:
                thread.start()
            stop.wait(45)
            page.shoot(kept / f"{view}-{width}-{scheme}.png", 1100 if width > 600 else 1500)
            stop.set()
            for thread in threads:
                thread.join()
        else:
            page.shoot(kept / f"{view}-{width}-{scheme}.png", 1100 if width > 600 else 1500)

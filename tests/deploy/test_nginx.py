"""nginx.conf in a real nginx with TLS before live servers: all that its comments say, at / and under the prefix."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
import trustme

from tests.deploy.proxies import changed, gateway, logged, running, tool, until
from tests.live import Live, free_port
from vecgate import deploy

NAME = "vecgate.example.com"
PREFIXES = ("", "/vecgate")
ASKED = {"input": ["a cat", "dogs bark"]}
LIMIT_BYTES = 1 << 20
MAIN = f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include site.conf;
}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """client: asks by the site's name, wherever it is, and trusts its root alone."""

    client: httpx.Client
    servers: tuple[Live, Live]
    folder: Path
    root: trustme.CA
    port: int
    plain: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    nginx = tool("nginx", "nginx-light")
    folder, port, plain = tmp_path_factory.mktemp("nginx"), free_port(), free_port()
    root = certificates(folder)
    names = {
        "VECGATE_BODY_LIMIT": str(LIMIT_BYTES),
        "ALLOWED_HOSTS": NAME,
        "VECGATE_TRUSTED_PROXIES": "127.0.0.1",
        "ROOT_PATH": "/vecgate",
    }
    with gateway(folder, **names) as one, gateway(folder, **names) as two:
        one.ready(), two.ready()
        changes = {
            "listen 443": f"listen 127.0.0.1:{port}",
            "    listen [::]:443 ssl http2;\n": "",
            "listen 80": f"listen 127.0.0.1:{plain}",
            "    listen [::]:80;\n": "",
            "/etc/nginx": str(folder),
            "/var/log/nginx": str(folder),
            "127.0.0.1:9000": f"127.0.0.1:{one.port}",
            "# server 127.0.0.1:9001": f"server 127.0.0.1:{two.port}",
        }
        (folder / "site.conf").write_text(changed(deploy.read("nginx"), changes))
        (folder / "nginx.conf").write_text(MAIN)
        command = [nginx, "-p", str(folder), "-c", "nginx.conf"]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        with running(command, folder, port), httpx.Client(**asking(root, port)) as client:
            yield Site(client, (one, two), folder, root, port, plain)


def certificates(folder: Path) -> trustme.CA:
    root = trustme.CA()
    made = root.issue_cert(NAME)
    made.private_key_pem.write_to_path(folder / "vecgate.key")
    for at, pem in enumerate(made.cert_chain_pems):
        pem.write_to_path(folder / "vecgate.crt", append=at > 0)
    return root


def asking(root: trustme.CA, port: int, local_address: str | None = None) -> dict[str, Any]:
    """How a client asks for the site's name and finds it at the port."""
    trusting = ssl.create_default_context()
    root.configure_trust(trusting)

    def named(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = NAME

    return {
        "base_url": f"https://127.0.0.1:{port}",
        "headers": {"host": NAME},
        "event_hooks": {"request": [named]},
        "transport": httpx.HTTPTransport(verify=trusting, local_address=local_address),
        "timeout": 60,
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_dialect_answers_what_the_server_itself_does(site: Site, prefix: str) -> None:
    assert site.client.get(f"{prefix}/health/ready").json() == {"status": "ready"}
    through = site.client.post(f"{prefix}/v1/embeddings", json=ASKED)
    assert through.json() == json.loads(site.servers[0].post("/v1/embeddings", ASKED)[2])
    assert through.headers["x-vecgate-model"] == "small"
    assert site.client.post(f"{prefix}/embed", json={"inputs": "a cat"}).status_code == 200
    ranked = site.client.post(f"{prefix}/v1/rerank", json={"query": "dogs", "documents": ["a cat", "dogs bark"]})
    assert [one["index"] for one in ranked.json()["results"]] == [1, 0]


class Links(HTMLParser):
    """What a page names: to load or to go to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value and value[0] != "#"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("page", ["/", "/docs", "/docs/"])
def test_a_page_and_all_that_it_names_is_there(site: Site, prefix: str, page: str) -> None:
    seen: dict[str, int] = {}
    waiting = [prefix + page]
    while waiting:
        path = waiting.pop()
        answer = site.client.get(path)
        seen[path] = answer.status_code
        kind = answer.headers["content-type"].partition(";")[0]
        waiting += {urljoin(path, one) for one in named_in(kind, answer.text)} - {*seen, *waiting}
    assert {path: status for path, status in seen.items() if status != 200} == {}
    assert {path for path in seen if not path.startswith(f"{prefix}/")} == set()
    assert len(seen) > 5


def named_in(kind: str, text: str) -> list[str]:
    """The relative addresses of a page or of a module; other files name none."""
    if kind == "text/html":
        return Links(text).found
    return re.findall(r'^(?:import|export) .*?"(\./[^"]+)"', text, re.MULTILINE) if kind == "text/javascript" else []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_live_page_s_readings_come_one_by_one(site: Site, prefix: str) -> None:
    with site.client.stream("GET", f"{prefix}/api/v1/live") as answer:
        first = next(answer.iter_lines())  # the stream goes on, so that this came before its end
    assert json.loads(first.removeprefix("data: "))["status"] == "ok"


def test_the_description_leads_back_through_the_proxy(site: Site) -> None:
    described = site.client.get("/vecgate/openapi.json").json()["servers"][0]["url"]
    assert site.client.post(f"{described}/v1/embeddings", json=ASKED).status_code == 200


def test_the_prefix_without_its_slash_is_sent_there(site: Site) -> None:
    answer = site.client.get("/vecgate?a=b")
    assert (answer.status_code, answer.headers["location"]) == (308, "/vecgate/?a=b")


def test_a_body_over_the_server_s_limit_is_refused_by_the_server(site: Site) -> None:
    answer = site.client.post("/v1/embeddings", content=b" " * (LIMIT_BYTES + 1))
    assert (answer.status_code, str(LIMIT_BYTES) in answer.json()["error"]["message"]) == (413, True)


def test_a_body_over_the_proxy_s_limit_is_refused_by_the_proxy_in_the_same_shape(site: Site) -> None:
    answer = site.client.post("/v1/embeddings", content=b" " * ((32 << 20) + 1), headers={"x-request-id": "large"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "client_max_body_size" in answer.json()["message"]
    assert answer.headers["x-request-id"] == "large"


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "mine-1"}])
def test_the_request_s_id_is_the_same_in_answer_and_both_logs(site: Site, sent: dict[str, str]) -> None:
    answer = site.client.post("/v1/embeddings", json=ASKED, headers=sent)
    id_ = answer.headers["x-request-id"]
    assert id_ == sent.get("x-request-id", id_)
    until(lambda: f" id={id_} " in (site.folder / "vecgate.log").read_text())
    assert [line["client"] for line in logged(site.servers, id_)] == ["127.0.0.1"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_the_server_s_log_has_the_client_s_address_whatever_the_client_says(site: Site) -> None:
    root, port = site.root, site.port
    with httpx.Client(**asking(root, port, local_address="127.0.0.2")) as client:
        id_ = client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"}).headers["x-request-id"]
    assert [line["client"] for line in logged(site.servers, id_)] == ["127.0.0.2"]


def test_only_names_that_the_server_knows_are_served(site: Site) -> None:
    assert site.client.get("/v1/models", headers={"host": "other.example.com"}).status_code == 403


def test_the_site_s_own_pages_may_call_and_others_may_not(site: Site) -> None:
    own = site.client.post("/v1/embeddings", json=ASKED, headers={"origin": f"https://{NAME}"})
    other = site.client.post("/v1/embeddings", json=ASKED, headers={"origin": "https://evil.example"})
    assert (own.status_code, other.status_code) == (200, 403)


METRICS = ("/metrics", "//metrics", "/metrics/", "/%6detrics", "/vecgate/metrics", "/vecgate/vecgate/metrics//")


@pytest.mark.parametrize("path", METRICS)
def test_the_metrics_stay_inside(site: Site, path: str) -> None:
    asked = httpx.URL(scheme="https", host="127.0.0.1", port=site.port, raw_path=path.encode())
    assert site.client.get(asked).status_code == 404


def test_http2_is_spoken(site: Site) -> None:
    trusting = ssl.create_default_context()
    site.root.configure_trust(trusting)
    trusting.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", site.port))
    with plain, trusting.wrap_socket(plain, server_hostname=NAME) as tls:
        assert (tls.selected_alpn_protocol(), tls.version()) == ("h2", "TLSv1.3")


def test_without_tls_nothing_is_answered(site: Site) -> None:
    answer = httpx.get(f"http://127.0.0.1:{site.plain}/v1/models", headers={"host": NAME})
    assert (answer.status_code, answer.json()["message"]) == (403, "Use https.")


def test_what_one_server_loses_the_other_answers(site: Site) -> None:
    one, two = site.servers

    def ask(at: int) -> int:
        if at == 30:
            two.process.kill()
        return site.client.post("/v1/embeddings", json=ASKED).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(100))) == {200}
    one.process.kill()
    gone = site.client.post("/v1/embeddings", json=ASKED, headers={"x-request-id": "gone"})
    assert (gone.status_code, gone.json()["error"]["code"], gone.headers["retry-after"]) == (502, "bad_gateway", "5")
    assert gone.headers["x-request-id"] == "gone"

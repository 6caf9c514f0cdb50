"""alerts.yaml and grafana.json by Debian's promtool and Prometheus: every alert fires and does not, every expression finds
what a live server tells."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.deploy.proxies import running, tool, until
from tests.live import Live, free_port
from tests.soak import texts
from vecgate import deploy
from vecgate.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
OPERATIONS = ROOT / "docs" / "operations.md"

# alert -> (minutes, series that make it fire, the same just short of it); each series is its name and labels -> its values,
# one a minute, or one in ten where it takes more than an hour
Series = dict[str, str]
POSTS = 'vecgate_requests_total{method="POST",route="/v1/embeddings",status="%s",%s}'
ON = 'job="vecgate",instance="a"'
SCENES: dict[str, tuple[int, Series, Series]] = {
    "VecgateDown": (5, {f"up{{{ON}}}": "0x10"}, {f"up{{{ON}}}": "1 0 1 1 1 0"}),
    "VecgateDeviceDead": (
        3,
        {f"vecgate_device_alive{{{ON}}}": "1 0x10"},
        {f"vecgate_device_alive{{{ON}}}": "0 1x10"},
    ),
    "VecgateModelFailed": (
        3,
        {f'vecgate_model_state{{model="m",task="embed",state="failed",{ON}}}': "1x10"},
        {f'vecgate_model_state{{model="m",task="embed",state="loading",{ON}}}': "1x10"},
    ),
    "VecgateNotReady": (
        15,
        {f'vecgate_state{{state="ready",{ON}}}': "0x20", f'vecgate_state{{state="loading",{ON}}}': "1x20"},
        {f'vecgate_state{{state="ready",{ON}}}': "0x6 1x20", f'vecgate_state{{state="loading",{ON}}}': "1x6 0x20"},
    ),
    "VecgateRestarting": (
        30,
        {f"process_start_time_seconds{{{ON}}}": "1x5 2x5 3x5 4x20"},
        {f"process_start_time_seconds{{{ON}}}": "1x5 2x5 3x30"},
    ),
    "VecgateNonfinite": (
        15,
        {f'vecgate_nonfinite_rows_total{{model="m",{ON}}}': "0x12 1x10"},
        {f'vecgate_nonfinite_rows_total{{model="m",{ON}}}': "7x30"},
    ),
    "VecgateFailedRows": (
        15,
        {f'vecgate_failed_rows_total{{model="m",{ON}}}': "0x12 1x10"},
        {f'vecgate_failed_rows_total{{model="m",{ON}}}': "7x30"},
    ),
    "VecgateErrors": (
        15,
        {POSTS % ("200", ON): "0+980x20", POSTS % ("500", ON): "0+20x20"},
        {POSTS % ("200", ON): "0+995x20", POSTS % ("500", ON): "0+5x20", POSTS % ("400", ON): "0+500x20"},
    ),
    "VecgateDeadline": (
        10,
        {f'vecgate_shed_total{{reason="queue",{ON}}}': "0x5 1x10"},
        {f'vecgate_shed_total{{reason="queue",{ON}}}': "3x20", POSTS % ("504", ON): "4x20"},
    ),
    "VecgateWaiting": (10, {f"vecgate_backlog_seconds{{{ON}}}": "11x20"}, {f"vecgate_backlog_seconds{{{ON}}}": "9x20"}),
    "VecgateShedding": (
        15,
        {f'vecgate_shed_total{{reason="in_flight",{ON}}}': "0+2x20", POSTS % ("200", ON): "0+98x20"},
        {
            f'vecgate_shed_total{{reason="in_flight",{ON}}}': "0+1x20",
            f'vecgate_shed_total{{reason="draining",{ON}}}': "0+50x20",
            POSTS % ("200", ON): "0+198x20",
        },
    ),
    "VecgateSlow": (
        20,
        {
            f'vecgate_request_seconds_bucket{{route="/embed",le="5.0",{ON}}}': "0+97x30",
            f'vecgate_request_seconds_bucket{{route="/embed",le="10.0",{ON}}}': "0+100x30",
            f'vecgate_request_seconds_bucket{{route="/embed",le="+Inf",{ON}}}': "0+100x30",
        },
        {
            f'vecgate_request_seconds_bucket{{route="/embed",le="5.0",{ON}}}': "0+995x30",
            f'vecgate_request_seconds_bucket{{route="/embed",le="10.0",{ON}}}': "0+1000x30",
            f'vecgate_request_seconds_bucket{{route="/embed",le="+Inf",{ON}}}': "0+1000x30",
            f'vecgate_request_seconds_bucket{{route="/api/v1/live",le="5.0",{ON}}}': "0x30",
            f'vecgate_request_seconds_bucket{{route="/api/v1/live",le="+Inf",{ON}}}': "0+9x30",
        },
    ),
    "VecgateDeviceMemory": (
        15,
        {
            f'vecgate_device_memory_bytes{{kind="active",{ON}}}': "96x20",
            f'vecgate_device_memory_bytes{{kind="limit",{ON}}}': "100x20",
        },
        {
            f'vecgate_device_memory_bytes{{kind="active",{ON}}}': "94x20",
            f'vecgate_device_memory_bytes{{kind="cache",{ON}}}': "5x20",
            f'vecgate_device_memory_bytes{{kind="limit",{ON}}}': "100x20",
        },
    ),
    "VecgateSmallerBatches": (
        90,
        {
            f'vecgate_batch_limit_tokens{{kind="now",model="m",{ON}}}': "1024x10",
            f'vecgate_batch_limit_tokens{{kind="configured",model="m",{ON}}}': "2048x10",
        },
        {
            f'vecgate_batch_limit_tokens{{kind="now",model="m",{ON}}}': "1024x4 2048x6",
            f'vecgate_batch_limit_tokens{{kind="configured",model="m",{ON}}}': "2048x10",
        },
    ),
    "VecgateBodyMemory": (
        5,
        {f"vecgate_body_bytes{{{ON}}}": "450000000x10"},
        {f"vecgate_body_bytes{{{ON}}}": "420000000x10"},
    ),
    "VecgateMemoryGrows": (
        20 * 60,
        {f"vecgate_memory_footprint_bytes{{{ON}}}": "1000000000+10000000x130"},
        {f"vecgate_memory_footprint_bytes{{{ON}}}": "1000000000x60 2000000000x70"},
    ),
    "VecgateTruncating": (
        180,
        {
            f'vecgate_truncated_inputs_total{{model="m",{ON}}}': "0+2x20",
            f'vecgate_inputs_total{{model="m",{ON}}}': "0+100x20",
        },
        {
            f'vecgate_truncated_inputs_total{{model="m",{ON}}}': "0+1x20",
            f'vecgate_inputs_total{{model="m",{ON}}}': "0+200x20",
        },
    ),
    "VecgateLogLost": (
        15,
        {f"vecgate_log_lines_lost_total{{{ON}}}": "0x12 1x10"},
        {f"vecgate_log_lines_lost_total{{{ON}}}": "7x30"},
    ),
}


@cache
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(deploy.read("alerts"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_every_alert_says_what_it_is_and_where_it_is_explained() -> None:
    headings = re.findall(r"^#+ (.*)$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["alert"] in headings


def test_every_alert_has_its_scenes() -> None:
    assert [rule["alert"] for rule in rules()] == list(SCENES)


def test_promtool_takes_the_rules_and_each_fires_when_it_should_and_alone(tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    (tmp_path / "alerts.yaml").write_text(deploy.read("alerts"))
    for file, long in (("quick.yaml", False), ("long.yaml", True)):
        scenes = {alert: one for alert, one in SCENES.items() if (one[0] > 60) == long}
        every = "10m" if long else "1m"
        given = {"rule_files": ["alerts.yaml"], "evaluation_interval": every, "tests": [together(scenes, every)]}
        (tmp_path / file).write_text(yaml.safe_dump(given))
    for command in (["check", "rules", "--lint-fatal", "alerts.yaml"], ["test", "rules", "quick.yaml", "long.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def together(scenes: dict[str, tuple[int, Series, Series]], every: str) -> dict[str, Any]:
    """One test of promtool's, as each costs half a second; every scene is an instance of its own, where its alert alone
    fires after its minutes, or none does."""
    series, checks = [], []
    for alert, (minutes, over, short) in scenes.items():
        for instance, given, fires in ((f"{alert} over", over, True), (f"{alert} short", short, False)):
            on = f'instance="{instance}"'
            series += [{"series": name.replace('instance="a"', on), "values": given[name]} for name in given]
            expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else []
            firing = f'count by (alertname) (ALERTS{{alertstate="firing",{on}}})'
            checks.append({"expr": firing, "eval_time": f"{minutes}m", "exp_samples": expected})
    return {"interval": every, "input_series": series, "promql_expr_test": checks}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that has scraped a server twice with every kind of traffic in between."""
    found = tool("prometheus", "prometheus")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    names = {
        "BACKEND": "fake",
        "MODEL_NAME": str(texts.folder(folder / "small", "embed")),
        "VECGATE_MAX_IN_FLIGHT": "1",
    }
    with Live(folder, module="tests.soak.server", **names) as server:
        server.ready()
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{"job_name": "vecgate", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yaml").write_text(deploy.read("alerts"))
        address = f"127.0.0.1:{port}"
        flags = ["--config.file=prometheus.yaml", f"--web.listen-address={address}", "--storage.tsdb.path=data"]
        with running([found, *flags], folder, port):
            until(lambda: is_ready(f"http://{address}"))
            until(lambda: count(f"http://{address}", 'vecgate_state{state="ready"} == 1') == 1)
            traffic(server)  # makes the series
            until(lambda: count(f"http://{address}", "vecgate_shed_total > 0") > 0)
            traffic(server)
            until(lambda: count(f"http://{address}", "rate(vecgate_shed_total[1m]) > 0") > 0)
            until(lambda: count(f"http://{address}", "rate(vecgate_failed_rows_total[1m]) > 0") > 0)
            yield f"http://{address}"


def traffic(server: Live) -> None:
    """Answers, refusals for lack of room, inputs that are cut, and inputs that the device fails at."""
    for given in (["w1 w2", "w3 " * 10_000], ["raise!"]):
        server.post("/v1/embeddings", {"input": given})
    with socket.create_connection(
        ("127.0.0.1", server.port)
    ) as silent:  # whose body never comes, and takes the only place
        silent.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        until(lambda: server.post("/v1/embeddings", {"input": "w1"})[0] == 429)


def is_ready(address: str) -> bool:
    """It answers 503 until it has looked through its data."""
    with suppress(HTTPError), urlopen(f"{address}/-/ready", timeout=30) as answer:
        return bool(answer.status == 200)
    return False


def ask(address: str, expression: str) -> list[Any]:
    """What the expression gives now; raises where it is none."""
    result: list[Any] = told(f"{address}/api/v1/query?query={quote(expression)}")["result"]
    return result


def told(url: str) -> Any:
    try:
        with urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]
    except HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode()}") from error


def count(address: str, expression: str) -> int:
    return len(ask(address, expression))


def expressions() -> list[tuple[str, str]]:
    """Every expression of the dashboard as Grafana would send it, with its panel's title."""
    board = json.loads(deploy.read("grafana"))
    found = [(panel["title"], one["expr"]) for panel in board["panels"] for one in panel.get("targets", ())]
    for name, value in (("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*"), ("$model", ".*")):
        found = [(title, one.replace(name, value)) for title, one in found]
    return found


def test_every_panel_shows_something(prometheus: str) -> None:
    assert [(title, one) for title, one in expressions() if not ask(prometheus, one)] == []


def test_every_variable_of_the_dashboard_has_values(prometheus: str) -> None:
    variables = {one["name"]: one for one in json.loads(deploy.read("grafana"))["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    for name in ("job", "instance", "model"):
        series = re.fullmatch(rf"label_values\((.*), {name}\)", variables[name]["query"]["query"])
        assert series is not None
        found = ask(prometheus, re.sub(r"\$\w+", ".*", series[1]))
        assert {one["metric"][name] for one in found} - {""} != set()


def test_every_rule_is_evaluated_and_what_it_compares_is_there(prometheus: str) -> None:
    (group,) = told(f"{prometheus}/api/v1/rules")["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(alert, "ok") for alert in SCENES]
    for rule in rules():
        names = set(re.findall(r"\b(?:vecgate|process)_\w+|\bup\b", rule["expr"]))
        assert [name for name in names if not ask(prometheus, name)] == [], rule["alert"]
        compared = re.sub(r'\{[^}]*\breason="queue"[^}]*\}|\bstatus="504"', "", rule["expr"])
        for side in re.split(r" (?:>|<|==) (?:0\.\d+|\d+)\s*(?:$|or )", compared):
            assert side == "" or ask(prometheus, re.sub(r" (?:<|>) .*", "", side)), rule["alert"]


def test_every_metric_is_on_the_dashboard_or_in_a_rule_or_only_for_looking_up() -> None:
    said = deploy.read("grafana") + deploy.read("alerts")
    names = {family.name for family in Metrics("1").registry.collect()}
    looked_up = {
        "process_virtual_memory_bytes",
        "vecgate_device_busy_seconds",
        "vecgate_memory_footprint_peak_bytes",
        "vecgate_padding_ratio",
        "vecgate_queue_items",
        "vecgate_tokens_per_second",
    }
    assert {name for name in names if name not in said} - looked_up == set()

"""Prometheus, by the configuration in deploy/, scrapes a running server and loads the alert rules."""

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fcnseg.client import Client
from fcnseg.errors import InvalidRequestError
from serving.server import ServerConfig
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY
from tests.running_server import running_server
from tests.server_process import free_port
from tests.waiting import wait_until

FOLDER = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "fcnseg.json"
RULES = FOLDER / "alerts.yml"
RULES_TEST = FOLDER / "alerts.test.yml"
TARGET = "fcnseg:8080"
IMAGE = np.full((4, 6, 3), (255, 0, 0), np.uint8)
ANSWERED, REFUSED = 7, 2

pytestmark = needs("prometheus", "prometheus")


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that answers over HTTP."""

    address: str

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float:
        """Return the one value of an expression now; fail where there are none or several."""
        (sample,) = self.ask("query", query=expression)["result"]
        return float(sample["value"][1])

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def target(self) -> dict[str, Any]:
        targets = self.ask("targets")["activeTargets"]
        return dict(targets[0]) if targets else {"health": "unknown"}


@pytest.fixture(scope="module")
def prometheus(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, after it has scraped a server that has answered and refused requests."""
    folder = tmp_path_factory.mktemp("prometheus")
    with running_server(tiny_model, ServerConfig(http_port=0)) as server, Client(server.address) as client:
        for _ in range(ANSWERED):
            client.segment(IMAGE, confidence=True)
        for _ in range(REFUSED):
            with pytest.raises(InvalidRequestError):
                client.segment(b"no image")
        assert server.http_address is not None
        configuration = configured(folder, server.http_address)
        there = Prometheus(f"127.0.0.1:{free_port()}")
        options = (
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={there.address}",
        )
        with running(["prometheus", *options], folder / "log"):
            wait_until(there.is_ready)
            wait_until(lambda: there.target()["health"] != "unknown")
            # A rate needs two scrapes.
            wait_until(lambda: there.ask("query", query="count_over_time(fcnseg_ready[1m]) >= 2")["result"] != [])
            yield there


def configured(folder: Path, target: str) -> Path:
    """Write the configuration of deploy/ with another target, asked more often, beside the rules."""
    text = (FOLDER / "prometheus.yml").read_text()
    for pattern, replacement in ((re.escape(TARGET), target), (r"_interval: 15s", "_interval: 200ms")):
        text, count = re.subn(pattern, replacement, text)
        assert count
    shutil.copy(RULES, folder)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    told = output_of(["promtool", "check", "config", str(FOLDER / "prometheus.yml")])
    assert "is valid prometheus config file" in told
    told = output_of(["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(RULES)])
    (rules,) = re.findall(r"SUCCESS: (\d+) rules found", told)
    assert int(rules) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])


def test_every_alert_fires_where_it_should_and_not_elsewhere() -> None:
    assert "SUCCESS" in output_of(["promtool", "test", "rules", str(RULES_TEST)])
    cases = [case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_the_server_is_a_target_that_is_up(prometheus: Prometheus) -> None:
    target = prometheus.target()
    assert target["lastError"] == ""
    assert (target["health"], target["labels"]["job"]) == ("up", "fcnseg")


def test_what_the_server_did_is_found_by_queries(prometheus: Prometheus) -> None:
    segment = 'method="fcnseg.v1.SegmentationService/Segment"'
    assert prometheus.value("fcnseg_ready") == 1
    assert prometheus.value(f'fcnseg_requests_total{{{segment},code="OK"}}') == ANSWERED
    assert prometheus.value(f'fcnseg_requests_total{{{segment},code="INVALID_ARGUMENT"}}') == REFUSED
    assert prometheus.value('fcnseg_images_total{model="tiny",version="1",outcome="answered"}') == ANSWERED
    assert prometheus.value('fcnseg_stage_seconds_count{stage="infer"}') == ANSWERED
    assert prometheus.value('histogram_quantile(0.5, fcnseg_stage_seconds_bucket{stage="total"})') > 0
    assert prometheus.value('fcnseg_class_share_total{class="red"}') == ANSWERED
    assert prometheus.value("fcnseg_confidence_count") == ANSWERED
    assert prometheus.value("process_resident_memory_bytes") > 1e6


def test_alerts_on_a_job_find_the_server(prometheus: Prometheus) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    selectors = [found for rule in rules for found in re.findall(r"\w+\{job=~[^}]*\}", rule["expr"])]
    assert len(selectors) == 2
    for selector in selectors:
        assert prometheus.value(selector) > 0


def test_every_metric_has_its_help_and_type(prometheus: Prometheus) -> None:
    known = prometheus.ask("targets/metadata", match_target='{job="fcnseg"}')
    types = {entry["metric"]: entry["type"] for entry in known if entry["help"]}
    # By OpenMetrics' names, which Prometheus asks for: those of counters are without _total.
    assert types["fcnseg_requests"] == "counter"
    assert types["fcnseg_stage_seconds"] == "histogram"
    assert types["fcnseg_confidence"] == "summary"
    assert "unknown" not in {kind for name, kind in types.items() if name.startswith("fcnseg_")}


def test_all_rules_are_loaded_and_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    wanted = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules()} == {rule.get("alert") or rule["record"] for rule in wanted}
    # Those whose group says how often wait for that: evaluated here at once, as a query.
    for rule in wanted:
        prometheus.ask("query", query=rule["expr"])
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules() if rule["type"] == "alerting"))
    assert [rule["name"] for rule in rules() if rule.get("state") == "firing"] == []


def test_every_panel_of_the_dashboard_shows_something(prometheus: Prometheus) -> None:
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 15
    for expression in expressions:
        chosen = expression.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "1m")
        assert "$" not in chosen
        assert prometheus.ask("query", query=chosen)["result"], expression

"""Dashboard, alert rules, autoscaler and documentation tell of the metrics that a server exports, and of no others."""

import json
import re
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fcnseg.client import Client
from fcnseg.errors import ServerOverloadedError
from serving.batcher import BatchingConfig
from serving.command import serve
from serving.server import ServerConfig
from tests.deploy_files import KUBERNETES, read
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, running_server
from tests.scraping import Scrape, scrape

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "fcnseg.json"
DOCUMENT = ROOT / "docs" / "operating.md"
METRIC = re.compile(r"\b(?:fcnseg|process)_[a-z_]+|\bfcnseg:[a-z0-9_:]+")
SELECTOR = re.compile(r"\b((?:fcnseg|process)_[a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"(?:by|without) \(([^)]*)\) \((?:rate|increase)?\(?((?:fcnseg|process)_[a-z_]+)")
OF_PROMETHEUS = {"instance", "job", "namespace", "pod"}


@pytest.fixture(scope="module")
def exported(tiny_model: Path) -> Scrape:
    """What a server exports after answers and a refusal."""
    gated = GatedSegmenter(tiny_model)
    registry = registry_of(gated, tiny_model, replace(CPU_CONFIG, batching=BatchingConfig(max_queue=1)))
    image = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    with (
        running_server(registry, ServerConfig(http_port=0)) as server,
        Client(server.address, retries=0) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        held = thread.submit(client.segment, image, confidence=True)
        assert gated.begun.acquire(timeout=60)
        with pytest.raises(ServerOverloadedError):
            client.segment(image)
        gated.gate.set()
        held.result(60)
        client.segment(image)
        return scrape(server)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        yield from re.findall(r"label_values\((\w+)", variable.get("definition", ""))


def test_every_metric_that_is_asked_for_is_exported(exported: Scrape) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(asked) > 20
    assert asked - recorded <= exported.names()


def test_the_autoscaler_and_its_adapter_ask_for_a_metric_that_is_exported(exported: Scrape) -> None:
    (metric,) = read(KUBERNETES / "autoscaler.yaml")["spec"]["metrics"]
    (rule,) = read(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert name in exported.names()
    assert rule["seriesQuery"].startswith(name + "{")


def test_the_autoscaler_acts_before_images_are_refused() -> None:
    (metric,) = read(KUBERNETES / "autoscaler.yaml")["spec"]["metrics"]
    (max_queue,) = (option.default for option in serve.params if option.name == "max_queue")
    assert 1 < int(metric["pods"]["target"]["averageValue"]) < max_queue


def test_every_label_that_is_asked_for_is_there(exported: Scrape) -> None:
    asked = set()
    for expression in expressions():
        asked |= {(n, label) for n, inner in SELECTOR.findall(expression) for label in re.findall(r"(\w+)[=!]", inner)}
        asked |= {(n, label.strip()) for labels, n in GROUPED.findall(expression) for label in labels.split(",")}
    assert len(asked) > 20
    for name, label in asked:
        assert label in OF_PROMETHEUS or all(label in labels for labels in exported.labels(name)), (name, label)


def test_every_value_that_is_asked_for_can_occur(exported: Scrape) -> None:
    """A misspelt stage, reason or outcome would be an alert that never fires."""
    for expression in expressions():
        for name, inner in SELECTOR.findall(expression):
            for label, words in re.findall(r'\b(stage|reason|outcome|use)!?=~?"([^"]*)"', inner):
                assert set(words.split("|")) <= {labels[label] for labels in exported.labels(name)}


def test_the_first_fault_of_a_server_is_an_increase(tiny_model: Path) -> None:
    """A counter that is not there before its first event has not increased, and no alert would fire."""
    (faults,) = (rule["expr"] for rule in rules() if rule.get("alert") == "FcnsegInternalErrors")
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        seen = scrape(server)
    asked = [
        (name, label, word)
        for name, inner in SELECTOR.findall(faults)
        for label, words in re.findall(r'(\w+)=~?"([^"]*)"', inner)
        for word in words.split("|")
    ]
    assert len(asked) == 3
    for name, label, word in asked:
        assert {label: word} in [{label: labels[label]} for labels in seen.labels(name)], (name, word)
        assert seen.value(name, **{label: word}) == 0


def test_kubernetes_has_the_same_rules() -> None:
    """Word for word, comments too: copy one file's `groups` into the other, two spaces deeper."""
    ours, theirs = RULES.read_text(), (KUBERNETES / "prometheus-rule.yaml").read_text()
    groups = ours[ours.index("groups:\n") :]
    assert theirs.partition("spec:\n")[2] == textwrap.indent(groups, "  ")
    assert read(KUBERNETES / "prometheus-rule.yaml")["spec"] == yaml.safe_load(ours)


def test_alerts_keep_the_labels_of_a_server() -> None:
    """Drift, recorded by deployment, alone does not: its pods come and go."""
    for rule in rules():
        for kept in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert "record" in rule, rule["alert"]
            assert {"namespace", "job"} <= set(kept.split(", "))
        for dropped in re.findall(r"without \(([^)]*)\)", rule["expr"]):
            assert OF_PROMETHEUS.isdisjoint(dropped.split(", "))


def test_the_jobs_that_alerts_look_at_are_those_of_compose_and_kubernetes() -> None:
    (job,) = read(RULES.parent / "prometheus.yml")["scrape_configs"]
    monitor, service = (read(KUBERNETES / f"{name}.yaml") for name in ("service-monitor", "service"))
    assert "jobLabel" not in monitor["spec"]  # then the Service's name is the job's
    patterns = [pattern for rule in rules() for pattern in re.findall(r'job=~"([^"]*)"', rule["expr"])]
    assert len(patterns) == 2
    for name in (job["job_name"], service["metadata"]["name"]):
        assert all(re.fullmatch(pattern, name) for pattern in patterns)


def test_alerts_tell_what_is_wrong_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(alert["annotations"]) == {"summary", "description"}


def test_panels_have_ids_and_places_of_their_own() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in everything}) == len(everything)
    assert all(panel["targets"] and panel["description"] for panel in panels())


def test_the_documented_metrics_are_those_exported(exported: Scrape) -> None:
    documented = set(re.findall(r"^\| `(fcnseg_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported.names() if name.startswith("fcnseg_")}
    assert documented == ours

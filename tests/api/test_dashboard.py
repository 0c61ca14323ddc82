"""The dashboard and the alert rules ask only for what the service tells."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from jobs.database import connect, sessions, transact
from jobs.settings import Settings
from jobs.workers import Presence, report

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "potstill.json").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])] + [rule["expr"] for rule in ALERTS]
FUNCTIONS = {"histogram_quantile", "increase", "max", "min", "rate", "sum"}
WORDS = {"and", "by", "or", "unless"}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
_STRING = re.compile(r'"[^"]*"')


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, sqlite_file: Path, redis_url: str) -> dict[str, set[str]]:
    """The labels of every series that Prometheus is told of, and of its own."""
    home = tmp_path_factory.mktemp("told")
    (home / "potstill.db").write_bytes(sqlite_file.read_bytes())
    settings = Settings(home=home, redis_url=redis_url)
    engine = connect(settings)
    transact(sessions(engine), lambda s: report(s, Presence("one/1", "host", 1, ("gpu",), "engine", "1.0"), alive_seconds=60))
    with TestClient(create_app(settings)) as client:
        client.post("/distill", json={"preset": "smoke"})
    with TestClient(create_app(settings)) as client:  # of which the first look sees the job
        client.get("/jobs")
        text = client.get("/metrics").text
    engine.dispose()
    names: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for suffix in ("_total",) if family.type == "counter" else SUFFIXES[family.type]:
            names[family.name + suffix] = {label for sample in family.samples for label in sample.labels}
    return names


def names_in(expression: str) -> set[str]:
    """The series that it asks for: bare words that are neither functions, nor labels in braces or behind `by`, nor durations."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", " ", _STRING.sub("", expression))
    return {word for word in re.findall(r"\b[a-z][a-z_0-9:]*\b", bare) if word not in FUNCTIONS | WORDS and not re.fullmatch(r"e\d+", word)}


@pytest.mark.parametrize("expression", sorted(set(EXPRESSIONS)))
def test_every_expression_asks_for_what_there_is(expression: str, told: dict[str, set[str]]) -> None:
    plain = _STRING.sub("", expression)
    for opening, closing in ("()", "{}", "[]"):
        assert plain.count(opening) == plain.count(closing)
    asked = names_in(expression)
    assert asked
    assert asked <= told.keys(), f"not told: {asked - told.keys()}"
    labels = {name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", group)}
    labels |= set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", "".join(re.findall(r"\{([^}]*)\}", expression))))
    known = {"instance", "job"}.union(*(told[name] for name in asked))
    assert labels <= known, f"no such label: {labels - known}"


def test_the_dashboard_can_be_imported_and_shows_no_panel_over_another() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 5
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"].endswith(".")


def test_prometheus_scrapes_the_api_and_loads_the_rules() -> None:
    settings = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    assert (job["job_name"], job["static_configs"][0]["targets"]) == ("potstill", ["api:8000"])
    assert settings["rule_files"] == ["alerts.yml"]
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasources.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"

"""Tests that the documents, the dashboard and the alert rules contain the metrics and log events of the code, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn; its types would be one more package

from shortener.clicks.hit_spool import HitSpool
from shortener.container import open_service
from shortener.metrics import MetricDescription, Metrics, as_markdown
from shortener.redis.client import RedisServer
from shortener.redis.link_cache import RedisLinkCache
from shortener.settings import Settings
from shortener.storage.clock import SharedClock

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"


@pytest.fixture(scope="module")
def documented() -> str:
    return (ROOT / "docs" / "reference" / "metrics.md").read_text()


async def all_metrics(folder: Path) -> list[MetricDescription]:
    """Return the metrics of a service with SQLite, and also the metrics that only PostgreSQL or Redis adds."""
    service = await open_service(Settings(data_dir=folder))
    others = Metrics()
    redis = RedisServer(None, timeout=1, connections=2)
    for part in (
        redis,
        RedisLinkCache(redis, "", lambda: 0),
        HitSpool(redis, "", limit=1, now_ms=lambda: 0),
        SharedClock(service.database),
    ):
        part.register_metrics(others)
    found = [*service.metrics.descriptions(), *others.descriptions()]
    await service.close(grace=1)
    return sorted(found, key=lambda one: one.name)


async def test_the_list_of_metrics_equals_the_metrics_of_the_code(tmp_path: Path, documented: str) -> None:
    table = as_markdown(await all_metrics(tmp_path))
    assert table in documented, f"replace the table of docs/reference/metrics.md by this:\n{table}"


def expressions() -> Iterator[tuple[str, str]]:
    """Yield the name and the expression of each panel of the dashboard and of each alert rule."""
    dashboard = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((CONFIG / "prometheus-rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


def test_the_dashboard_and_the_alert_rules_use_only_metrics_that_exist(documented: str) -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", documented, re.MULTILINE))
    for name, expression in expressions():
        for metric in re.findall(r"\bshortener_\w+", expression):
            assert re.sub(r"_(bucket|count|sum)$", "", metric) in known or metric in known, f"{name}: {metric}"


def test_each_alert_has_a_severity_a_summary_and_a_remedy_and_is_documented() -> None:
    guide = (ROOT / "docs" / "guides" / "monitoring.md").read_text()
    rules: list[dict[str, Any]] = [
        rule
        for group in yaml.safe_load((CONFIG / "prometheus-rules.yml").read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(rules) >= 12
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "remedy"}, rule["alert"]
        assert f"| `{rule['alert']}` |" in guide, rule["alert"]


def test_the_panels_of_the_dashboard_have_unique_ids_and_do_not_overlap() -> None:
    panels = json.loads((CONFIG / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def logged_events() -> dict[str, set[str]]:
    """Return the log events in the source code. The keys are the names of the events, and the values are their levels."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "shortener").rglob("*.py"):
        for level, event in re.findall(r'\blog(?:ger)?\.(debug|info|warning|error|exception)\(\s*"([a-z_]+)"', path.read_text()):
            found.setdefault(event, set()).add("error" if level == "exception" else level)
    return found


def test_the_list_of_log_events_equals_the_events_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "log-events.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([a-z, ]+) \|", text, re.MULTILINE))
    assert rows == {event: ", ".join(sorted(levels)) for event, levels in logged_events().items()}

"""Alerts, dashboard and runbook name only what ``/metrics`` really tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as families

from app.api import metrics
from app.settings import Settings
from app.store import figures, session

ROOT = Path(__file__).resolve().parent.parent
RULES = yaml.safe_load((ROOT / "docs/deploy/prometheus/alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in RULES for rule in group["rules"]}
DASHBOARD = json.loads((ROOT / "docs/deploy/grafana/lethe.json").read_text())
PANELS = [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"] if target["expr"]
]
OF_PROMETHEUS = {"up": {"job", "instance"}}
RUNBOOK = ROOT / "docs/runbook"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Labels by sample name, of a service that has seen one call."""
    session.configure(Settings(data_dir=tmp_path_factory.mktemp("service"), database_url=""))
    session.upgrade()
    metrics.observe("GET", "/healthz", 200, 0.1)
    found = {name: {"job", "instance", *labels} for name, labels in OF_PROMETHEUS.items()}
    # What has no row yet has no sample yet.
    some = figures.Distribution((0.0,) * (len(figures.BUCKETS) + 1), 0.0)
    text = metrics.exposition().decode()
    empty = [metrics._erasure({"erased_exact": some})]
    for family in [*families(text), *empty]:
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    for figure in figures.FIGURES:
        found.setdefault(f"lethe_{figure.name}", {"job", "instance"}).update(figure.labels)
    yield found
    session.configure(None)


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of an expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "args"):
        inner = getattr(node, name, None)
        for each in inner if isinstance(inner, list | tuple) else [inner]:
            if isinstance(each, promql.Expr):
                yield from selectors(each)


def check(expression: str, exported: dict[str, set[str]]) -> None:
    found = [*selectors(promql.parse(expression))]
    assert found, f"names nothing: {expression}"
    for selector in found:
        assert selector.name in exported, f"{selector.name} in {expression}"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= exported[selector.name], f"{labels} in {expression}"
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        known = set().union(*(exported[selector.name] for selector in found))
        assert {name.strip() for name in grouped.split(",")} <= known, expression


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_name_what_is_exported(name: str, exported: dict[str, set[str]]) -> None:
    check(ALERTS[name]["expr"], exported)
    assert re.fullmatch(r"\d+[mh]", ALERTS[name]["for"])
    assert ALERTS[name]["labels"]["severity"] in ("page", "warn", "info")


@pytest.mark.parametrize("expression", PANELS)
def test_panels_name_what_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    check(expression, exported)


@pytest.mark.parametrize(
    "expression",
    [
        "lethe_nothing > 0",
        'max(lethe_jobs{tenant="x"}) > 0',
        "sum(rate(lethe_nothing_total[5m]))",
        "max by (tenant) (lethe_jobs)",
    ],
)
def test_a_wrong_expression_is_found(expression: str, exported: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError):
        check(expression, exported)


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages = {page.stem for page in RUNBOOK.glob("*.md")} - {"README"}
    assert pages == set(ALERTS)
    index = (RUNBOOK / "README.md").read_text()
    for name, rule in ALERTS.items():
        page = (RUNBOOK / f"{name}.md").read_text()
        assert rule["annotations"]["runbook"] == f"docs/runbook/{name}.md"
        assert rule["expr"] in page, "the page shows another expression"
        assert f"({name}.md) | {rule['labels']['severity']} |" in index


def test_figures_of_the_runbook_exist(exported: dict[str, set[str]]) -> None:
    named = {
        name
        for page in RUNBOOK.glob("*.md")
        for name in re.findall(r"\blethe_[a-z_]+", page.read_text())
    }
    assert named <= set(exported)


def test_every_figure_of_the_rows_has_a_panel_or_an_alert() -> None:
    text = " ".join([*PANELS, *(rule["expr"] for rule in ALERTS.values())])
    unused = [figure.name for figure in figures.FIGURES if f"lethe_{figure.name}" not in text]
    assert unused == ["datasets", "workers"]

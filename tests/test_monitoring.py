"""The dashboard and the alert rules of `docs/monitoring` ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from fairque.cli.app import app
from fairque.contrib.prometheus.catalogue import CATALOGUE, Metric
from tests.support.process import ROOT

FOLDER = ROOT / "docs" / "monitoring"
DASHBOARD: Any = json.loads((FOLDER / "grafana-dashboard.json").read_text())
RULES: list[Any] = yaml.safe_load((FOLDER / "alert-rules.yaml").read_text())["groups"][0]["rules"]
QUERIES = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]

VALUES = {
    ("fairque_queue_depth", "state"): {"queued", "started", "scheduled", "deferred"},
    ("fairque_slots", "state"): {"busy", "free"},
    ("fairque_workers", "state"): {"alive", "silent"},
    ("fairque_tasks_total", "outcome"): {"finished", "failed", "retried", "canceled", "snoozed", "released", "lost"},
}
"""The values that a label may have, where they are always the same; `test_prometheus.py` holds the metrics to them."""


class Selector(NamedTuple):
    """A metric in an expression, with what is asked of its labels."""

    metric: Metric
    series: str
    matchers: list[tuple[str, str, str]]

    @property
    def labels(self) -> set[str]:
        return {*self.metric.labels, *(("le",) if self.series.endswith("_bucket") else ())}


def selectors(expression: str) -> Iterator[Selector]:
    for series, braces in re.findall(r"\b(fairque_\w+)(\{[^}]*\})?", expression):
        metric = CATALOGUE.get(series) or CATALOGUE.get(re.sub(r"_(bucket|sum|count)$", "", series))
        assert metric is not None, f"there is no metric {series}: {expression}"
        assert (series == metric.name) == (metric.kind != "histogram"), f"{series} is no series: {expression}"
        yield Selector(metric, series, re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', braces))


def check(expression: str) -> set[str]:
    """Whether it can find anything; returns the metrics in it."""
    found = list(selectors(expression))
    assert found, expression
    for selector in found:
        for label, _, text in selector.matchers:
            assert label in selector.labels, f"{selector.series} has no label {label}: {expression}"
            known = VALUES.get((selector.metric.name, label))
            assert known is None or set(text.split("|")) <= known, f"{label} is never {text}: {expression}"
        is_counted = re.search(rf"(rate|increase)\({selector.series}\b", expression) is not None
        assert is_counted == (selector.metric.kind != "gauge"), f"of {selector.series}, the rate counts: {expression}"
    grouped = {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert grouped <= set().union(*(selector.labels for selector in found)), expression
    return {selector.metric.name for selector in found}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query["expr"])
def test_a_query_of_the_dashboard_finds_what_there_is(query: dict[str, str]) -> None:
    check(query["expr"])
    shown = set(re.findall(r"\{\{(\w+)\}\}", query["legendFormat"]))
    assert shown <= labels_left(query["expr"])


def labels_left(expression: str) -> set[str]:
    """Those that its outermost aggregation leaves."""
    kept = re.search(r"\bby \(([^)]*)\)", expression)
    if kept is not None:
        return set(kept[1].split(", ")) - ({"le"} if "quantile" in expression else set())
    aggregates = re.match(r"(\d+ \* )?(sum|min|max|histogram_quantile)\b", expression) is not None
    return set() if aggregates else set().union(*(selector.labels for selector in selectors(expression)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    check(rule["expr"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert used <= set().union(*(selector.labels for selector in selectors(rule["expr"])))
    assert set(rule["annotations"]) == {"summary", "description"}
    for words in re.findall(r"`(fairque [^`]+)`", rule["annotations"]["description"]):
        command: Any = typer.main.get_command(app)
        for word in shlex.split(words)[1:]:
            command = command.commands[word]


def test_the_dashboard_shows_every_metric() -> None:
    assert set().union(*(check(query["expr"]) for query in QUERIES)) == set(CATALOGUE)


def test_the_panels_of_the_dashboard_are_apart_and_ask_the_chosen_source() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {query["datasource"]["uid"] for query in QUERIES} == {"${datasource}"}
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "queue"}
    check(variables["queue"]["query"]["query"].removeprefix("label_values(").removesuffix(", queue)"))


def test_no_alert_has_the_name_of_another() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    "wrong", ["fairque_task", "fairque_up{q='x'}", 'fairque_up{user="x"}', "fairque_task_run_seconds"]
)
def test_a_mistake_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong if '"' in wrong else wrong.replace("'", '"'))


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt install prometheus)"
)

UP, AT_WORK = 'fairque_up{queue="q", job="j"}', 'fairque_queue_depth{queue="q", state="queued"}'
PARTITION_UP = 'fairque_partition_up{queue="q"'
ALIVE, SILENT = (f'fairque_workers{{queue="q", state="{state}", job="j"}}' for state in ("alive", "silent"))
FAILED, FINISHED = (
    f'fairque_tasks_total{{queue="q", name="n", outcome="{outcome}"}}' for outcome in ("failed", "finished")
)
FAST, SLOW, ALL = (
    f'fairque_redis_seconds_bucket{{queue="q", script="claim", le="{le}"}}' for le in ("0.25", "0.5", "+Inf")
)
FIRES: dict[str, dict[str, str]] = {
    "FairqueQueueCannotBeRead": {UP: "0x40"},
    "FairquePartitionDoesNotAnswer": {
        f'{PARTITION_UP}, partition="3"}}': "0x40",
        f'{PARTITION_UP}, partition="4"}}': "1x40",
    },
    "FairqueIsNotTold": {},
    "FairqueUserStarves": {'fairque_users_starved{queue="q"}': "1x40"},
    "FairqueTasksWait": {'fairque_queue_latency_seconds{queue="q"}': "301x40"},
    "FairqueTooFewSlots": {
        'fairque_slots_needed{queue="q", job="j"}': "9x40",
        'fairque_slots{queue="q", state="busy", instance="1"}': "4x40",
        'fairque_slots{queue="q", state="free", instance="2"}': "4x40",
    },
    "FairqueScheduleLate": {'fairque_schedules_late_seconds{queue="q"}': "61x40"},
    "FairqueScheduledTaskLate": {'fairque_tasks_late_seconds{queue="q"}': "61x40"},
    "FairqueDeadLettersBlock": {'fairque_dead_letters_blocking{queue="q"}': "1x40"},
    "FairqueWorkerFellSilent": {SILENT: "0x36 1 0x2"},
    "FairqueNoWorker": {ALIVE: "0x40", AT_WORK: "1x40"},
    "FairqueLeasesStolen": {'fairque_leases_stolen_total{queue="q"}': "0x36 1x5"},
    "FairqueClaimsFail": {'fairque_claim_errors_total{queue="q"}': "0+1x40"},
    "FairqueTasksFail": {FAILED: "0+12x40", FINISHED: "0+88x40"},
    "FairqueRedisSlow": {FAST: "0+90x40", SLOW: "0+100x40", ALL: "0+100x40"},
}
"""For each alert, what makes it fire, a value for each minute. That is told of 40 minutes."""

FINE: dict[str, str] = {
    UP: "1x40",
    f'{PARTITION_UP}, partition="3"}}': "1x40",
    'fairque_users_starved{queue="q"}': "0x40",
    'fairque_queue_latency_seconds{queue="q"}': "299x40",
    'fairque_slots_needed{queue="q", job="j"}': "8x40",
    'fairque_slots{queue="q", state="busy", instance="1"}': "4x40",
    'fairque_slots{queue="q", state="free", instance="2"}': "4x40",
    'fairque_schedules_late_seconds{queue="q"}': "59x40",
    'fairque_tasks_late_seconds{queue="q"}': "59x40",
    'fairque_dead_letters_blocking{queue="q"}': "0x40",
    SILENT: "0x40",
    ALIVE: "1x40",
    AT_WORK: "1x40",
    'fairque_leases_stolen_total{queue="q"}': "7x40",
    'fairque_claim_errors_total{queue="q"}': "7x40",
    FAILED: "0+5x40",
    FINISHED: "0+95x40",
    FAST: "0+99x40",
    SLOW: "0+100x40",
    ALL: "0+100x40",
}
"""What makes none fire."""


@needs_promtool
def test_prometheus_reads_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(FOLDER / "alert-rules.yaml")], check=True, capture_output=True)


@needs_promtool
def test_each_alert_fires_when_it_should_and_none_when_all_is_fine(tmp_path: Path) -> None:
    assert FIRES.keys() == {rule["alert"] for rule in RULES}
    scenes = [(alert, series, True) for alert, series in FIRES.items()]
    scenes += [(alert, FINE, False) for alert in FIRES]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
                    "eval_time": "40m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for alert, series, fires in scenes
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FOLDER / "alert-rules.yaml")], "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr

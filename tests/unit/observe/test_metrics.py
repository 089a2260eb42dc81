"""Metrics: exact names, bounded labels, and a text that Prometheus takes."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheyd.observe.events import Events
from cacheyd.observe.metrics import CONTENT_TYPE, MAX_LABELS, Metrics
from tests.support.reports import REPORT, STORE

PLAIN = ("cache_hits", "cache_misses", "cache_miss_by_ignore")


def lines(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def value(metrics: Metrics, sample: str) -> float:
    """The value of the line that begins with exactly `sample`."""
    (found,) = [line.removeprefix(sample) for line in lines(metrics) if line.startswith(f"{sample} ")]
    return float(found)


@pytest.mark.parametrize("name", PLAIN)
def test_the_names_that_people_know(name: str) -> None:
    text = lines(Metrics())

    assert f"# TYPE {name} counter" in text
    assert f"{name} 0.0" in text
    assert any(line.startswith(f"# HELP {name} ") for line in text)
    assert not any(f"{name}_total" in line or f"{name}_created" in line for line in text)


@pytest.mark.parametrize(
    ("result", "hits", "misses"),
    [("HIT", 1, 0), ("STALE", 1, 0), ("REVALIDATED", 1, 0), ("MISS", 0, 1), ("BYPASS", 0, 1), ("", 0, 0)],
)
def test_what_counts_as_a_hit(result: str, hits: int, misses: int) -> None:
    metrics = Metrics()

    metrics.request("docker.io", "blob", result, 10)

    assert (value(metrics, "cache_hits"), value(metrics, "cache_misses")) == (hits, misses)
    assert metrics.totals() == (hits, misses)


def test_requests_are_counted_by_registry_kind_and_result() -> None:
    metrics = Metrics()

    metrics.request("docker.io", "blob", "HIT", 10)
    metrics.request("docker.io", "blob", "HIT", 20)
    metrics.request("ghcr.io", "manifest", "", 5)

    assert value(metrics, 'cacheyd_requests_total{kind="blob",registry="docker.io",result="hit"}') == 2
    assert value(metrics, 'cacheyd_requests_total{kind="manifest",registry="ghcr.io",result="error"}') == 1


def test_body_bytes_are_counted_by_where_they_came_from() -> None:
    metrics = Metrics()

    metrics.request("docker.io", "blob", "HIT", 10)
    metrics.request("docker.io", "manifest", "STALE", 5)
    metrics.request("docker.io", "blob", "MISS", 100)

    assert value(metrics, 'cacheyd_bytes_total{source="disk"}') == 15
    assert value(metrics, 'cacheyd_bytes_total{source="upstream"}') == 100


def test_totals_for_the_tools() -> None:
    metrics = Metrics()
    metrics.request("reg.test", "blob", "HIT", 100)
    metrics.request("reg.test", "blob", "MISS", 7)
    metrics.evicted("size", 2)
    metrics.evicted("size", 1)

    assert metrics.sent() == {"disk": 100, "upstream": 7}
    assert metrics.evictions() == {"size": 3}


def test_every_event_is_counted() -> None:
    """An event that Metrics does not override is lost without a word."""
    events = {name for name in vars(Events) if not name.startswith("_")}
    assert events - set(vars(Metrics)) == set(), "override it in Metrics (cacheyd/observe/metrics.py)"


def test_ignored_tags_are_counted() -> None:
    metrics = Metrics()
    metrics.ignored()
    assert value(metrics, "cache_miss_by_ignore") == 1


def test_upstream_requests_are_counted_and_timed() -> None:
    metrics = Metrics()

    metrics.upstream("docker.io", "200", 0.2)
    metrics.upstream("docker.io", "timeout", 20.0)

    assert value(metrics, 'cacheyd_upstream_requests_total{code="200",registry="docker.io"}') == 1
    assert value(metrics, 'cacheyd_upstream_requests_total{code="timeout",registry="docker.io"}') == 1
    assert value(metrics, "cacheyd_upstream_seconds_count") == 2


def test_verify_failures_are_counted() -> None:
    metrics = Metrics()
    metrics.verify_failure("docker.io")
    assert value(metrics, "cacheyd_verify_failures_total") == 1


def test_the_registry_label_is_bounded() -> None:
    metrics = Metrics(["configured.example"])

    for i in range(MAX_LABELS + 30):
        metrics.request(f"reg{i}.example", "blob", "HIT", 0)
        metrics.upstream(f"reg{i}.example", "200", 0.1)
    metrics.request("configured.example", "blob", "HIT", 0)

    requests = [line for line in lines(metrics) if line.startswith("cacheyd_requests_total{")]
    assert len(requests) == MAX_LABELS + 2
    assert value(metrics, 'cacheyd_requests_total{kind="blob",registry="other",result="hit"}') == 30
    assert value(metrics, 'cacheyd_requests_total{kind="blob",registry="configured.example",result="hit"}') == 1
    assert value(metrics, 'cacheyd_upstream_requests_total{code="200",registry="other"}') == 30


def test_fifty_others_have_a_label_of_their_own() -> None:
    assert MAX_LABELS == 50


def test_gauges_are_read_when_somebody_looks() -> None:
    metrics = Metrics()
    flights = [1]
    metrics.watch(lambda: replace(REPORT, flights=flights[0], store=replace(STORE, objects={"blob": 3, "manifest": 2})))

    assert value(metrics, "cacheyd_flights") == 1
    flights[0] = 7
    assert value(metrics, "cacheyd_flights") == 7
    assert value(metrics, 'cacheyd_store_objects{kind="blob"}') == 3


def busy_metrics() -> Metrics:
    metrics = Metrics(["docker.io"])
    metrics.request("docker.io", "blob", "HIT", 10)
    metrics.request('odd"name\\', "blob", "MISS", 10)
    metrics.upstream("docker.io", "200", 0.2)
    metrics.watch(lambda: REPORT)
    return metrics


def test_the_text_can_be_parsed_and_has_no_name_twice() -> None:
    families = list(text_string_to_metric_families(busy_metrics().render().decode()))

    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {name: family.type for family in families for name in PLAIN if family.name == name} == dict.fromkeys(
        PLAIN, "counter"
    )
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_it() -> None:
    """Its only wish is `_total` on the three names that had none before; those stay as people know them."""
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=busy_metrics().render(), capture_output=True, timeout=10, check=False
    )

    complaints = {line.split()[0] for line in (result.stdout + result.stderr).decode().splitlines() if line.strip()}
    assert complaints <= set(PLAIN)
    assert result.returncode in (0, 3)

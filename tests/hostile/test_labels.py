"""What others make up must not become series of the metrics without end, nor statuses that clients cannot read."""

import itertools
from collections.abc import Iterator

import pytest

from cacheyd.observe.metrics import MAX_LABELS, Metrics
from tests.hostile.peers import head, whole
from tests.hostile.scripted import Scripted, scripted
from tests.policy.conftest import Starter

# Registered statuses, classes of others, and what is no status.
MOST_CODES = 62 + 5 + 4


def series(metrics: Metrics, name: str) -> int:
    return sum(line.startswith(name) for line in metrics.render().decode().splitlines())


def test_statuses_have_a_bound() -> None:
    metrics = Metrics()
    for code in (*range(-10, 3000), "x", "", "5xx", "²²²", "error", "timeout", "dead"):
        metrics.upstream("reg.test", str(code), 0.1)
    assert series(metrics, "cacheyd_upstream_requests_total") <= MOST_CODES
    text = metrics.render().decode()
    assert 'cacheyd_upstream_requests_total{code="404",registry="reg.test"} 1.0' in text
    assert 'cacheyd_upstream_requests_total{code="4xx",registry="reg.test"}' in text


def test_registries_have_a_bound() -> None:
    metrics = Metrics(["known.test"])
    for number in range(500):
        name = f"r{number}.test"
        metrics.request(name, "blob", "HIT", 1)
        metrics.request(name, "blob", "STALE", 1)
        metrics.upstream(name, "200", 0.1)
        metrics.ratelimit(name, 5)
    metrics.request("known.test", "blob", "HIT", 1)
    labels = MAX_LABELS + 2
    assert series(metrics, "cacheyd_requests_total") <= 2 * labels
    for name in ("cacheyd_upstream_requests_total", "cacheyd_ratelimit_remaining", "cacheyd_stale_served_total"):
        assert series(metrics, name + "{") <= labels
    assert 'registry="known.test"' in metrics.render().decode()


# Over sockets


@pytest.fixture(scope="module")
def raw(shared: Starter) -> Iterator[Scripted]:
    with scripted(shared) as found:
        yield found


def test_made_up_statuses(raw: Scripted) -> None:
    """Those that are none are 502; the others go on to the client, and count by their class."""
    kinds = itertools.cycle(("manifests/v1", "tags/list"))
    for status in (*range(201, 600, 7), 42, 600, 601, 999, 1000, -5):
        ns, what = raw.registry(head(status, "Content-Length: 0", "Connection: close", reason="Made Up")), next(kinds)
        reply = raw.get(ns, what)
        relayed = 400 <= status < 600 or (200 <= status < 300 and what == "tags/list")
        assert reply.status == (status if relayed else 502), status
        assert b"Made Up" not in reply.raw
    lines = [name for name in raw.daemon.metrics() if name.startswith("cacheyd_upstream_requests_total")]
    assert any('code="4xx"' in line for line in lines)
    assert not any(f'code="{status}"' in line for line in lines for status in (42, 600, 999, 1000, 495))


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints", b"199 X"])
def test_interim_responses_are_passed_over(raw: Scripted, interim: bytes) -> None:
    first = b"HTTP/1.1 " + interim + b"\r\nLink: </x>\r\n\r\n"
    reply = raw.get(raw.registry(first * 3 + whole(b"{}", status=404)))
    assert (reply.status, reply.body, reply.header("Link")) == (404, b"{}", None)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nxyz",
        b"HTTP/1.1 103 X\r\n\r\n",
    ],
)
def test_interim_responses_alone_are_none(raw: Scripted, data: bytes) -> None:
    assert raw.get(raw.registry(data)).status == 502

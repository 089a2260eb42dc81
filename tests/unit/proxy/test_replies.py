"""Replies that are kept in memory: for how long, by which clock, and how many."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy import connection

from cacheyd.cache.answer import Answer
from cacheyd.observe.events import Events
from cacheyd.observe.logs import AccessLog
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.proxy.inbound.head import Head, parse_head
from cacheyd.proxy.inbound.replies import KEPT_TOTAL, LOOK_EVERY, Replies
from cacheyd.service.accounting import Accounting
from cacheyd.service.answering import Answering
from cacheyd.service.readiness import Readiness
from cacheyd.service.transfers import Transfers
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from tests.support.stores import Clock

RAW = b"GET /v2/a/manifests/1?ns=reg.test HTTP/1.1\r\nHost: a"
HEAD = parse_head(RAW)
REF = parse_target("/v2/a/manifests/1?ns=reg.test", "")
NOW = 1_700_000_000.25


class Side:
    """Replies with a store of one object, and their clocks."""

    def __init__(self) -> None:
        self.clock, self.monotonic = Clock(NOW), Clock(50.0)
        self.store: Any = Mock()
        stored: Any = SimpleNamespace(digest="sha256:a")
        assert isinstance(REF, Reference)
        self.answer = Answer(200, (), b"{}", ref=REF, stored=stored)
        cache: Any = Mock()
        cache.hit.return_value = self.answer
        live, readiness, transfers = Live(Settings()), Readiness(), Transfers(self.monotonic)
        readiness.open()
        log: Any = Mock(spec=AccessLog)
        service: Any = SimpleNamespace(
            live=live,
            components=SimpleNamespace(store=self.store),
            answering=Answering(live, cache, Mock(), readiness, transfers),
            transfers=transfers,
            accounting=Accounting(Events(), log, clock=self.clock, monotonic=self.monotonic),
        )
        self.replies = Replies(service, clock=self.clock, monotonic=self.monotonic)
        self.client = connection.Client(peername=("a", 1), sockname=("b", 2), timestamp_start=0.0)

    def answer_from_disk(self, raw: bytes = RAW, head: Head = HEAD, reply: bytes = b"reply") -> None:
        answer = self.replies.hit(head)
        assert answer is not None
        self.replies.remember(raw, head, answer, reply)

    def kept(self, raw: bytes = RAW) -> bytes | None:
        return self.replies.kept(raw, self.client)


@pytest.fixture
def side() -> Side:
    side = Side()
    side.answer_from_disk()
    assert side.kept() == b"reply"
    return side


def test_ends_with_the_second_of_its_date(side: Side) -> None:
    side.clock.now += 0.74
    assert side.kept()
    side.clock.now += 0.02
    assert side.kept() is None


@pytest.mark.parametrize("jump", [-3600.0, -0.3, 1.0, 3600.0])
def test_ends_when_the_clock_is_set_to_another_second(side: Side, jump: float) -> None:
    side.clock.now += jump
    assert side.kept() is None
    side.clock.now -= jump
    assert side.kept() is None


@pytest.mark.parametrize("jump", [0.0, -0.2, 0.5])
def test_ends_within_a_second_however_the_clock_is_set(side: Side, jump: float) -> None:
    side.clock.now += jump
    side.monotonic.now += 0.74
    assert side.kept()
    side.monotonic.now += 0.02
    assert side.kept() is None


def test_the_file_is_looked_for_by_a_clock_that_nobody_sets(side: Side) -> None:
    side.clock.now -= 0.2
    side.store.objects.find.return_value = None
    assert side.kept()
    side.monotonic.now += LOOK_EVERY
    assert side.kept() is None


def test_not_kept_if_its_date_is_of_another_second_already() -> None:
    side = Side()
    answer = side.replies.hit(HEAD)
    assert answer is not None
    side.clock.now += 0.75
    side.replies.remember(RAW, HEAD, answer, b"reply")
    assert side.kept() is None


def test_bounded_in_bytes(side: Side) -> None:
    large = bytes(12_000)
    names = [RAW + b"\r\nN: %d" % n for n in range(3 * KEPT_TOTAL // len(large))]
    for raw in names:
        side.answer_from_disk(raw, parse_head(raw), large)
    kept = [raw for raw in names if side.kept(raw) is not None]
    assert KEPT_TOTAL // 2 < len(kept) * len(large) < KEPT_TOTAL
    assert kept == names[-len(kept) :]
    side.clock.now += 1
    assert [raw for raw in names if side.kept(raw) is not None] == []
    assert side.replies._size == 0

"""How long a client may take for a head, how far it is read ahead, and whose turn it is, one event at a time."""

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy import connection, http, options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import ResponseEndOfMessage, ResponseHeaders

from cacheyd.proxy.inbound.incoming import Incoming
from cacheyd.proxy.inbound.link import CacheydTurnHook
from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.proxy.inbound.server import (
    BEHIND,
    HEAD_DEADLINE,
    LINGER,
    MAX_DISCARDED,
    PIECES_BEHIND,
    TURN,
    CacheHttp1Server,
    Hits,
)
from tests.support.stores import Clock

HEAD = b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"


class Side:
    """A client's connection, and what the server makes of it."""

    def __init__(self) -> None:
        client = connection.Client(peername=("client", 1), sockname=("cache", 3000), timestamp_start=0.0)
        client.state = connection.ConnectionState.OPEN
        context = Context(client, options.Options())
        self.client = client
        self.outgoing = Mock(spec=Outgoing, full=False, over=False)
        self.incoming = Mock(spec=Incoming)
        link: Any = SimpleNamespace(outgoing=self.outgoing, incoming=self.incoming)
        hits = self.hits = Mock(spec=Hits)
        hits.kept.return_value = b"answer"
        self.server = CacheHttp1Server(context, hits, lambda client, source: pytest.fail("nothing is pumped"), link)
        self.alarms: list[commands.RequestWakeup] = []
        self.server_says(events.Start())

    def server_says(self, event: events.Event) -> list[commands.Command]:
        """Its commands, but for alarms, which are kept."""
        said = list(self.server.handle_event(event))
        self.alarms += [command for command in said if isinstance(command, commands.RequestWakeup)]
        return [command for command in said if not isinstance(command, commands.RequestWakeup)]

    def send(self, data: bytes) -> list[commands.Command]:
        """Bytes of the client arrive."""
        return self.server_says(events.DataReceived(self.client, data))

    def ring(self) -> list[commands.Command]:
        """The oldest alarm is due."""
        return self.server_says(events.Wakeup(self.alarms.pop(0)))

    def delays(self) -> list[float]:
        """How long the alarms are set for."""
        return [alarm.delay for alarm in self.alarms]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the server."""
    clock = Clock(100.0)
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def is_closed(said: list[commands.Command]) -> bool:
    return [type(command) for command in said] == [commands.CloseConnection]


@pytest.mark.parametrize("begun", [b"G", HEAD[:-1], HEAD + HEAD[:-1], b"\r", b"\r\n\r"])
def test_a_head_that_is_not_completed_ends_the_connection(now: Clock, begun: bytes) -> None:
    side = Side()
    side.send(begun)
    assert side.delays() == [HEAD_DEADLINE]
    now.now += HEAD_DEADLINE - 1
    assert side.send(b"") == []
    now.now += 1
    assert is_closed(side.ring())
    assert side.send(HEAD) == []


@pytest.mark.parametrize("idle", [b"", HEAD, b"\r\n", b"\r\n" + HEAD])
def test_between_requests_nothing_is_due(now: Clock, idle: bytes) -> None:
    side = Side()
    for at in range(len(idle)):
        side.send(idle[at : at + 1])
    for _ in side.delays():
        now.now += HEAD_DEADLINE
        assert side.ring() == []
    assert side.delays() == []
    assert side.send(HEAD)


def test_heads_in_pieces_need_one_alarm_at_a_time(now: Clock) -> None:
    """Else a client could make any number of them, and each stays for its time."""
    side = Side()
    for _ in range(100):
        assert side.send(HEAD[:9]) == []
        now.now += 0.1
        assert side.send(HEAD[9:])
    assert side.delays() == [HEAD_DEADLINE]
    side.send(HEAD[:9])
    now.now += HEAD_DEADLINE - 10
    assert side.ring() == []
    assert side.delays() == [pytest.approx(10.0)]
    now.now += 10
    assert is_closed(side.ring())


def test_what_is_refused_is_read_for_a_moment_only(now: Clock) -> None:
    side = Side()
    side.send(HEAD[:9])
    assert len(side.send(b"\n")) == 2
    assert side.delays() == [HEAD_DEADLINE, LINGER]
    now.now += LINGER
    assert side.send(HEAD) == []
    assert is_closed(side.server_says(events.Wakeup(side.alarms[1])))


# Turns


def hook_of(said: list[commands.Command]) -> CacheydTurnHook:
    assert isinstance(said[-1], CacheydTurnHook)
    return said[-1]


def test_pipelined_hits_take_turns() -> None:
    side = Side()
    said = side.send(HEAD * (2 * TURN + 1))
    assert len(said) == TURN + 1
    said = side.server_says(events.HookCompleted(hook_of(said)))
    assert len(said) == TURN + 1
    assert len(side.server_says(events.HookCompleted(hook_of(said)))) == 1
    assert side.incoming.hungry.called


def test_the_next_hit_waits_until_the_last_one_is_taken() -> None:
    side = Side()

    def answer(raw: bytes, client: connection.Client) -> bytes:
        side.outgoing.full = True
        return b"answer"

    side.hits.kept.side_effect = answer
    said = side.send(HEAD * 2)
    assert [type(command) for command in said] == [commands.SendData, CacheydTurnHook]
    side.outgoing.full = False
    said = side.server_says(events.HookCompleted(hook_of(said)))
    assert [type(command) for command in said] == [commands.SendData, CacheydTurnHook]
    side.outgoing.over = True
    assert is_closed(side.server_says(events.HookCompleted(hook_of(said))))


# Reading ahead


def flow_begins(side: Side) -> None:
    """A request that is no hit."""
    side.hits.kept.return_value = None
    side.hits.hit.return_value = None
    side.send(HEAD)
    assert not side.server.behind


def test_little_may_come_behind_a_waiting_request() -> None:
    side = Side()
    flow_begins(side)
    side.send(bytes(BEHIND))
    assert not side.server.behind
    side.send(b"x")
    assert side.server.behind


def test_few_pieces_may_come_while_an_answer_is_on_its_way() -> None:
    side = Side()
    side.send(HEAD * (TURN + 1))
    for _ in range(PIECES_BEHIND - 1):
        side.send(b"x")
    assert not side.server.behind
    side.send(b"x")
    assert side.server.behind


def test_between_requests_everything_is_read() -> None:
    side = Side()
    side.send(HEAD[:-2] + b"a: " + b"x" * (BEHIND + 1))
    assert not side.server.behind


def test_the_next_request_is_read_for_after_each_answer() -> None:
    """Also where what came behind the request ended with a whole head: there is no next read that would say so."""
    side = Side()
    flow_begins(side)
    side.incoming.hungry.reset_mock()
    side.server_says(ResponseHeaders(1, http.Response.make(200, b"", {"Content-Length": "0"}), end_stream=True))
    side.server_says(ResponseEndOfMessage(1))
    assert side.incoming.hungry.called


def test_what_is_refused_may_send_so_much() -> None:
    side = Side()
    side.send(b"\n")
    for _ in range(MAX_DISCARDED >> 20):
        assert side.send(bytes(1 << 20)) == []
    assert is_closed(side.send(b"x"))

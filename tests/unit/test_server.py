"""How long a client may take for a head, one event at a time."""

import time
from unittest.mock import Mock

import pytest
from mitmproxy import connection, options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context

from cacheyd.proxy.link import Link
from cacheyd.proxy.server import HEAD_DEADLINE, LINGER, CacheHttp1Server, Hits
from tests.support.stores import Clock

HEAD = b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"


class Side:
    """A client's connection, and what the server makes of it."""

    def __init__(self) -> None:
        client = connection.Client(peername=("client", 1), sockname=("cache", 3000), timestamp_start=0.0)
        client.state = connection.ConnectionState.OPEN
        context = Context(client, options.Options())
        self.client = client
        self.link = Mock(spec=Link, full=False, over=False)
        hits = Mock(spec=Hits)
        hits.quick.return_value = b"answer"
        self.server = CacheHttp1Server(context, hits, lambda client, source: pytest.fail("nothing is pumped"), self.link)
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

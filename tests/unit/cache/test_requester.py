"""Whose failure is whose."""

import pytest

from cacheyd.cache.requester import Requester
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.upstream.port import Relay, Relayed
from tests.support.flights import ASKER


@pytest.mark.parametrize(
    ("other", "error", "shared"),
    [
        (ASKER, Relayed(Relay(401, (), b"")), True),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(401, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(404, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(429, (), b"")), False),
        (Requester("reg.example", "lab/other", b"alice"), Relayed(Relay(404, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(503, (), b"")), True),
        (Requester("reg.example", "lab/img", b"bob"), upstream_error(502, "broken"), True),
        (Requester("other.example", "lab/img", b"alice"), upstream_error(502, "broken"), False),
        (Requester("other.example", "lab/img", b"alice"), Relayed(Relay(503, (), b"")), False),
    ],
)
def test_a_failure_is_shared_only_where_it_would_be_the_same(
    other: Requester, error: Relayed | RequestError, shared: bool
) -> None:
    assert ASKER.shares(other, error) is shared

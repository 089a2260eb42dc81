"""Header lists, and what tells two clients apart."""

import pytest

from cacheyd.protocol.headers import content_length, credentials_of, end_to_end, header
from tests.support.fetching import ACCEPT, ALICE, BOB


def test_headers_are_found_without_case() -> None:
    assert header((("Content-TYPE", "a"), ("content-type", "b")), "content-type") == "a"
    assert header((), "content-type") is None


@pytest.mark.parametrize(
    ("value", "length"), [("0", 0), ("17", 17), ("", None), ("-1", None), ("1, 1", None), ("1" * 19, None), ("x", None)]
)
def test_content_length(value: str, length: int | None) -> None:
    assert content_length((("Content-Length", value),)) == length


def test_hop_by_hop_headers_go_no_further() -> None:
    kept = (("Content-Type", "a/b"), ("WWW-Authenticate", "Basic"), ("Retry-After", "5"), ("ratelimit-limit", "100"))
    dropped = (
        ("Connection", "close, X-Private"),
        ("x-private", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "Basic x"),
    )
    assert end_to_end((*dropped, *kept)) == kept


def test_credentials_are_told_apart_without_being_kept() -> None:
    assert credentials_of(ALICE) == credentials_of(tuple(reversed(ALICE)))
    assert len({credentials_of(ALICE), credentials_of(BOB), credentials_of(ACCEPT)}) == 3
    assert b"alice" not in credentials_of(ALICE)

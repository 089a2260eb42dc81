"""How much of a growing body may be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.cache.flight import Flight
from cacheyd.cache.growing import HOLD, GrowingBody
from tests.support.flights import ASKER, DIGEST


def body_of(received: int, size: int | None) -> GrowingBody:
    """A body of which so much has come."""
    body = Flight(DIGEST, ASKER).body
    if size is not None:
        body.measured(size)
    body.grew(received, ())
    return body


@pytest.mark.parametrize(
    ("received", "size", "verified", "readable"),
    [
        (0, None, False, 0),
        (0, 10, False, 0),
        (10, 10, False, 0),
        (HOLD, 10 * HOLD, False, 0),
        (HOLD + 1, 10 * HOLD, False, 1),
        (10 * HOLD, 10 * HOLD, False, 9 * HOLD),
        (10 * HOLD, None, False, 9 * HOLD),
        (10 * HOLD + 5, 10 * HOLD, False, 9 * HOLD),
        (10 * HOLD, 10 * HOLD, True, 10 * HOLD),
        (5, 5, True, 5),
        (0, 0, True, 0),
    ],
)
def test_the_tail_is_held_back_until_the_digest_is_verified(
    received: int, size: int | None, verified: bool, readable: int
) -> None:
    body = body_of(received, size)
    if verified:
        body.verify()
    assert body.readable == readable


@given(st.integers(0, 1 << 40), st.one_of(st.none(), st.integers(0, 1 << 40)))
def test_nobody_has_the_whole_object_before_it_is_verified(received: int, size: int | None) -> None:
    body = body_of(received, size)

    assert 0 <= body.readable <= received
    if size:
        assert body.readable < size

"""How long a client waits for rate limits."""

from cacheyd.upstream.known_limits import Limits
from cacheyd.upstream.patience import CLIENTS_WAIT, MAX_TRIES, Patience
from cacheyd.upstream.port import Relay, Relayed
from tests.support.stores import Clock

KEY = ("reg.test", "app", b"alice")
RELAY = Relay(429, (), b"")


async def test_patience_is_for_all_limits_together(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    patience = Patience(limits, KEY, "x", monotonic.now, 0.3)
    stays = lambda: False  # noqa: E731
    assert not await patience.outlast(Relayed(RELAY), stays)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 0.4)), stays)
    # This clock stands still where nobody moves it: what has passed is over at once.
    for _ in range(MAX_TRIES):
        assert await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now)), stays)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now)), stays)


async def test_who_has_left_waits_for_nothing(monotonic: Clock) -> None:
    patience = Patience(Limits(monotonic), KEY, "x", monotonic.now, 5.0)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 4)), lambda: True)


async def test_clients_that_have_waited_long_already_are_told(monotonic: Clock) -> None:
    patience = Patience(Limits(monotonic), KEY, "x", monotonic.now, 5.0)
    monotonic.now += CLIENTS_WAIT / 2
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 1)), lambda: False)
    assert patience.left == CLIENTS_WAIT / 2


async def test_what_was_waited_for_in_vain_is_not_waited_for_again(monotonic: Clock) -> None:
    """containerd repeats a HEAD six times, and would be kept waiting each time."""
    limits = Limits(monotonic)

    async def request(end: float) -> bool:
        patience = Patience(limits, KEY, "x", monotonic.now, 5.0)
        waited = await patience.outlast(Relayed(Relay(429, (), b"", again_at=end)), lambda: False)
        monotonic.now = max(monotonic.now, end) if waited else monotonic.now
        return waited

    began = monotonic.now
    assert limits.may_wait(KEY, began + 4, 5.0)
    # Others wait for the same end: that takes no longer.
    assert limits.may_wait(KEY, began + 4, 5.0)
    monotonic.now = began + 4
    assert not await request(began + 8)
    assert limits.may_wait(("reg.test", "other", b"alice"), began + 8, 5.0)
    # Until something comes, or much time has passed.
    limits.over(KEY)
    assert limits.may_wait(KEY, began + 8, 5.0)
    monotonic.now = began + 8
    assert not limits.may_wait(KEY, began + 12, 5.0)
    monotonic.now = began + 40
    assert limits.may_wait(KEY, began + 44, 5.0)

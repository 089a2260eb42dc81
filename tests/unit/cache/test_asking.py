"""Rate limits: remembered, each for one client alone, and waited for in the middle of a flight."""

import pytest

from cacheyd.cache.asking import Asking
from cacheyd.protocol.headers import header
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.live import Live
from cacheyd.upstream.port import Relayed
from tests.support.fetching import (
    ACCEPT,
    ALICE,
    BLOB,
    BOB,
    BREAK,
    Scene,
    Script,
    blob_ref,
    read,
    reference,
    refusal,
    rest,
    whole,
)


async def test_a_rate_limit_is_remembered_until_its_retry_after(fetching: Scene) -> None:
    upstream = Script(refusal(429, ("Retry-After", "60"), ("ratelimit-remaining", "0;w=21600")), whole(BLOB))
    fetcher = fetching.fetcher(upstream)

    for _ in range(6):
        with pytest.raises(Relayed) as caught:
            await fetcher.asking.open(reference("manifests/1"), "HEAD", ALICE)
        assert caught.value.relay.status == 429
        assert header(caught.value.relay.headers, "retry-after") == "60"
    assert len(upstream.requests) == 1

    fetching.clock.now += 59.9
    with pytest.raises(Relayed):
        await fetcher.flight(blob_ref(BLOB), ALICE).opened()
    fetching.clock.now += 0.1
    assert await read(fetcher.flight(blob_ref(BLOB), ALICE)) == BLOB


async def test_a_rate_limit_is_one_clients_own(fetching: Scene) -> None:
    upstream = Script(refusal(429, ("Retry-After", "60")), refusal(404), refusal(404), refusal(404))
    fetcher = fetching.fetcher(upstream)
    with pytest.raises(Relayed):
        await fetcher.asking.open(reference("manifests/1"), "HEAD", ALICE)

    assert (await fetcher.asking.open(reference("manifests/1"), "HEAD", BOB)).status == 404
    assert (await fetcher.asking.open(reference("manifests/1"), "HEAD", ACCEPT)).status == 404
    elsewhere = parse_target("/v2/lab/img/manifests/1?ns=other.example")
    assert isinstance(elsewhere, Reference)
    assert (await fetcher.asking.open(elsewhere, "HEAD", ALICE)).status == 404


async def test_a_rate_limit_in_the_middle_of_a_flight_is_waited_for(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), refusal(429, ("Retry-After", "0")), rest(BLOB, 100_000))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_change_of_settings_ends_what_is_remembered(fetching: Scene) -> None:
    live = Live(fetching.settings)
    upstream = Script(refusal(429, ("Retry-After", "60")), refusal(404))
    asking = Asking(upstream, live, clock=fetching.clock, monotonic=fetching.clock)
    with pytest.raises(Relayed):
        await asking.open(reference("manifests/1"), "HEAD", ALICE)

    live.change(fetching.settings)

    assert (await asking.open(reference("manifests/1"), "HEAD", ALICE)).status == 404

"""The whole service in memory: pulls, what is served without upstream, changes of settings, start and stop."""

import asyncio
import json
from dataclasses import replace

import pytest

from cacheyd.service import readiness as readiness_module
from cacheyd.settings.settings import Settings
from cacheyd.settings.values import Size
from cacheyd.store.lock import DirectoryInUse
from tests.support.images import make_image, make_index
from tests.support.site import HOST, REGISTRY, Site, nothing, read
from tests.support.stores import Clock, eventually

IMAGE = make_image(layers=2, layer_size=100_000)
INDEX = make_index(IMAGE, make_image(seed=1, architecture="arm64"))
TAG = "/v2/lab/app/manifests/1.0"
MANIFEST = f"/v2/lab/app/manifests/{IMAGE.digest}"
BLOBS = [f"/v2/lab/app/blobs/{blob.digest}" for blob in IMAGE.blobs]


@pytest.fixture
def pushed(site: Site) -> Site:
    """An index at the registry, under one tag."""
    site.transport.push(HOST, "lab/app", "1.0", INDEX)
    return site


async def pull(site: Site) -> list[str]:
    """What containerd asks for; X-Cache of each answer."""
    head, _ = await site.ask(TAG, "HEAD")
    return [head.result, *(await site.results(f"/v2/lab/app/manifests/{INDEX.digest}", MANIFEST, *BLOBS))]


# Pulls


async def test_a_pull_is_fetched_once_then_served_from_disk(pushed: Site) -> None:
    assert await pull(pushed) == ["MISS"] * 6
    asked = len(pushed.transport.asked)
    assert await pull(pushed) == ["HIT"] * 6
    assert len(pushed.transport.asked) == asked


async def test_what_is_served_is_what_the_registry_has(pushed: Site) -> None:
    for _ in range(2):
        answer, body = await pushed.ask(TAG)
        assert (answer.status, body) == (200, INDEX.manifest)
        for path, blob in zip(BLOBS, IMAGE.blobs, strict=True):
            answer, body = await pushed.ask(path)
            assert (answer.status, answer.length, body) == (200, len(blob.data), blob.data)


async def test_a_token_service_is_asked_once(pushed: Site) -> None:
    pushed.transport.require_token(HOST)
    await pull(pushed)
    assert await pull(pushed) == ["HIT"] * 6
    assert pushed.transport.asked.count("GET /token") == 1


async def test_a_body_that_breaks_off_is_resumed(pushed: Site) -> None:
    pushed.transport.cut(BLOBS[1], 70_000)
    _, body = await pushed.ask(BLOBS[1])
    assert body == IMAGE.layers[0].data
    ranges = [request.header("Range") for request in pushed.transport.requests if request.path == BLOBS[1]]
    assert "bytes=70000-" in ranges


async def test_an_old_tag_is_revalidated(pushed: Site) -> None:
    await pull(pushed)
    pushed.clock.now += 61
    pushed.monotonic.now += 61
    asked = len(pushed.transport.asked)
    assert await pushed.results(TAG) == ["REVALIDATED"]
    assert pushed.transport.asked[asked:] == [f"HEAD {TAG}"]


async def test_an_outage_serves_the_last_known_tag(pushed: Site) -> None:
    await pull(pushed)
    pushed.clock.now += 61
    pushed.monotonic.now += 61
    pushed.transport.down(HOST)
    answer, body = await pushed.ask(TAG)
    assert (answer.result, body) == ("STALE", INDEX.manifest)
    assert dict(answer.headers)["Warning"].startswith("110")
    assert await pushed.results(BLOBS[0]) == ["HIT"]


async def test_what_is_not_known_fails_in_an_outage(pushed: Site) -> None:
    pushed.transport.down(HOST)
    answer, body = await pushed.ask(TAG)
    assert answer.status == 502
    assert "connection refused" in json.loads(body)["errors"][0]["message"]


async def test_what_the_registry_does_not_have_is_passed_on(pushed: Site) -> None:
    answer, body = await pushed.ask("/v2/lab/app/manifests/none")
    assert (answer.status, json.loads(body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


async def test_uploads_are_refused(pushed: Site) -> None:
    answer, _ = await pushed.ask(TAG, "PUT")
    assert answer.status == 405
    assert ("Allow", "GET, HEAD") in answer.headers


async def test_the_oldest_goes_when_there_is_no_room(settings: Settings, clock: Clock, monotonic: Clock) -> None:
    site = Site(replace(settings, max_size=Size(250_000)), clock, monotonic)
    await site.service.start()
    blobs = [site.transport.registry(HOST).add_blob("lab/app", bytes([n]) * 100_000) for n in range(4)]
    for digest in blobs:
        clock.now += 1
        await site.ask(f"/v2/lab/app/blobs/{digest}")
    store = site.service.components.store
    await eventually(lambda: blobs[3] in store.catalog.objects)
    assert blobs[0] not in store.catalog.objects
    assert store.size <= 250_000
    assert site.service.reporter.report().evictions["room"] >= 1
    await site.stop()


# Accounting and pages


async def test_requests_are_counted_and_logged(pushed: Site) -> None:
    await pull(pushed)
    await pull(pushed)
    report = pushed.service.reporter.report()
    assert (report.hits, report.misses) == (6, 6)
    line = pushed.log.lines[-1]
    assert (line.method, line.registry, line.repository, line.reference) == (
        "GET",
        REGISTRY,
        "lab/app",
        IMAGE.blobs[-1].digest,
    )
    assert (line.status, line.bytes, line.cache, line.client) == (200, len(IMAGE.blobs[-1].data), "HIT", "10.0.0.1:1234")


async def test_the_page_the_tools_and_the_metrics_say_the_same(pushed: Site) -> None:
    await pull(pushed)
    pushed.monotonic.now += 3600
    counters = pushed.service.reporter.counters()
    assert (counters["hits"], counters["misses"], counters["hit_ratio"], counters["uptime"]) == (0, 6, 0.0, 3600)
    _, page = await pushed.ask("/", accept="text/html")
    assert "2 manifests and 3 blobs" in page.decode()
    assert "0 d 1 h 0 min" in page.decode()
    _, metrics = await pushed.ask("/metrics")
    assert 'cacheyd_store_objects{kind="blob"} 3.0' in metrics.decode().splitlines()
    assert "cache_misses 6.0" in metrics.decode().splitlines()


async def test_pages_are_neither_counted_nor_logged(site: Site) -> None:
    for path in ("/v2/", "/metrics", "/healthz", "/readyz", "/"):
        answer, _ = await site.ask(path)
        assert answer.status == 200
    assert site.log.lines == []


# Settings


async def test_new_settings_are_in_force_at_once(pushed: Site) -> None:
    await pull(pushed)
    pushed.change(tag_ttl=0.0)
    assert await pushed.results(TAG) == ["REVALIDATED"]
    pushed.service.reload(replace(pushed.service.live.settings, deny=(f"{REGISTRY}/*",)))
    answer, _ = await pushed.ask(TAG)
    assert answer.status == 403


async def test_another_upstream_is_asked_from_now_on(pushed: Site) -> None:
    pushed.transport.down(HOST)
    assert (await pushed.ask(TAG))[0].status == 502
    pushed.transport.push("other.test", "lab/app", "1.0", INDEX)
    pushed.change(upstream=("http://other.test",))
    assert await pushed.results(TAG) == ["MISS"]


async def test_tokens_of_before_are_not_used_after_a_change(pushed: Site) -> None:
    pushed.transport.require_token(HOST)
    await pushed.ask(BLOBS[0])
    pushed.change(tag_ttl=30.0)
    await pushed.ask(BLOBS[1])
    assert pushed.transport.asked.count("GET /token") == 2


async def test_what_takes_a_restart_stays_and_is_said(pushed: Site, caplog: pytest.LogCaptureFixture) -> None:
    old = pushed.service.live.settings
    pushed.service.reload(replace(old, max_flights=1, retries=1, warnings=("odd",)))
    assert pushed.service.live.settings.max_flights == old.max_flights
    assert pushed.service.live.settings.retries == 1
    assert "these settings take a restart: max_flights" in caplog.text
    assert "odd" in caplog.text


# Start and stop


async def test_requests_wait_for_the_start_and_probes_do_not(settings: Settings, clock: Clock, monotonic: Clock) -> None:
    site = Site(settings, clock, monotonic)
    site.transport.push(HOST, "lab/app", "1.0", INDEX)
    assert (await site.ask("/healthz"))[0].status == 200
    assert (await site.ask("/readyz"))[0].status == 503
    asking = asyncio.create_task(site.ask(TAG))
    await asyncio.sleep(0)
    assert not asking.done()
    await site.service.start()
    answer, _ = await asking
    assert (answer.status, answer.result) == (200, "MISS")
    assert (await site.ask("/readyz"))[0].status == 200
    await site.stop()


async def test_nobody_waits_longer_than_a_start_takes(
    settings: Settings, clock: Clock, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness_module, "START_PATIENCE", 0.02)
    site = Site(settings, clock, monotonic)
    answer, body = await site.ask(TAG)
    assert answer.status == 503
    assert "cacheyd is starting" in body.decode()


async def test_another_process_has_the_directory(site: Site, settings: Settings, clock: Clock, monotonic: Clock) -> None:
    other = Site(settings, clock, monotonic)
    with pytest.raises(DirectoryInUse):
        await other.service.start(patience=0.0)
    assert (await other.ask(TAG))[0].status == 503


async def test_a_stop_waits_for_what_is_running(pushed: Site) -> None:
    await pushed.ask(BLOBS[1])
    answer = pushed.service.answering.hit("GET", f"{BLOBS[1]}?ns={REGISTRY}", ())
    assert answer is not None
    listening = True

    async def stop_listening() -> None:
        nonlocal listening
        listening = False

    stopping = asyncio.create_task(pushed.service.stop(stop_listening))
    await eventually(lambda: not listening)
    assert not stopping.done()
    assert (await pushed.ask("/readyz"))[0].status == 503
    assert await read(answer) == IMAGE.layers[0].data
    pushed.service.transfers.end()
    await stopping
    assert pushed.transport.closed
    assert pushed.log.closed
    assert (await pushed.ask(TAG))[0].status == 503


async def test_a_stop_is_cut_short(pushed: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pushed.service.transfers.begin()
    pushed.service.transfers.cut_short()  # Before the stop it means nothing.
    stopping = asyncio.create_task(pushed.service.stop(nothing))
    await asyncio.sleep(0)
    assert not stopping.done()
    pushed.service.transfers.cut_short()
    await stopping
    assert "1 transfers were cut off" in caplog.text


async def test_what_was_kept_is_there_after_a_restart(pushed: Site, clock: Clock, monotonic: Clock) -> None:
    await pull(pushed)
    await pushed.stop()
    again = Site(pushed.service.live.settings, clock, monotonic)
    await again.service.start()
    await eventually(lambda: again.service.components.store.loaded)
    assert await pull(again) == ["HIT"] * 6
    assert again.transport.asked == []
    await again.stop()

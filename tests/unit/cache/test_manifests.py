"""Manifests against a scripted upstream and a real store: once for all, verified, kept."""

import asyncio
import base64
import gzip
import json

import pytest

from cacheyd.cache.flight import NotKept
from cacheyd.cache.manifests import MANIFEST_MAX, MANIFESTS_MAX, ManifestContent
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.headers import header
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST, SCHEMA_1_SIGNED
from cacheyd.protocol.reference import Reference
from cacheyd.settings.load import load
from cacheyd.store.objects import SMALL
from cacheyd.upstream.port import Relayed, UpstreamBroken
from tests.support.fetching import (
    ACCEPT,
    ALICE,
    ASKED,
    BOB,
    BREAK,
    BY_DIGEST,
    BY_TAG,
    MANIFEST,
    Reply,
    Scene,
    Script,
    manifest_reply,
    reference,
    refusal,
)


@pytest.mark.parametrize("ref", [BY_TAG, BY_DIGEST])
async def test_a_manifest_is_fetched_once_verified_and_kept(fetching: Scene, ref: Reference) -> None:
    upstream = Script(manifest_reply())
    fetcher = fetching.fetcher(upstream)

    found = await asyncio.gather(*(fetcher.manifests.get(ref, ACCEPT, ASKED) for _ in range(10)))

    assert found == [ManifestContent(digest_of(MANIFEST), OCI_MANIFEST, MANIFEST, True)] * 10
    assert len(upstream.requests) == 1
    stored = fetching.store.objects.find(digest_of(MANIFEST))
    assert stored is not None
    assert stored.media_type == OCI_MANIFEST


async def test_who_asks_for_other_types_by_tag_is_asked_for_apart(fetching: Scene) -> None:
    upstream = Script(manifest_reply(), manifest_reply())
    fetcher = fetching.fetcher(upstream)
    await asyncio.gather(
        fetcher.manifests.get(BY_TAG, ACCEPT, ASKED), fetcher.manifests.get(BY_TAG, ACCEPT, frozenset({OCI_INDEX}))
    )
    assert len(upstream.requests) == 2


async def test_by_digest_the_types_do_not_matter(fetching: Scene) -> None:
    upstream = Script(manifest_reply())
    fetcher = fetching.fetcher(upstream)
    await asyncio.gather(
        fetcher.manifests.get(BY_DIGEST, ACCEPT, ASKED), fetcher.manifests.get(BY_DIGEST, ACCEPT, frozenset({OCI_INDEX}))
    )
    assert len(upstream.requests) == 1


async def test_a_later_request_asks_again(fetching: Scene) -> None:
    upstream = Script(manifest_reply(), manifest_reply())
    fetcher = fetching.fetcher(upstream)
    await fetcher.manifests.get(BY_TAG, ACCEPT, ASKED)
    await fetcher.manifests.get(BY_TAG, ACCEPT, ASKED)
    assert len(upstream.requests) == 2


async def test_parameters_of_the_media_type_are_dropped(fetching: Scene) -> None:
    """Of what is no manifest by its bytes: those that are have their own type."""
    reply = Reply(200, (("Content-Type", "application/vnd.acme.thing+json; charset=utf-8"),), [b"{}"])
    assert (
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    ).media_type == "application/vnd.acme.thing+json"


SIGNED_PAYLOAD = b'{\n   "schemaVersion": 1,\n   "name": "acme/app"\n}'


def signed() -> bytes:
    """As registries send manifests of the first schema: the payload with the signatures before its last brace."""
    tail = base64.urlsafe_b64encode(b"\n}").rstrip(b"=").decode()
    length = len(SIGNED_PAYLOAD) - 2
    protected = base64.urlsafe_b64encode(json.dumps({"formatLength": length, "formatTail": tail}).encode()).decode()
    signatures = json.dumps([{"signature": "x", "protected": protected.rstrip("=")}])
    return SIGNED_PAYLOAD[:length] + f',\n   "signatures": {signatures}\n}}'.encode()


@pytest.mark.parametrize(
    "stated", [OCI_INDEX, "application/evil+json", "text/plain", "application/octet-stream", "", "x" * 9000]
)
async def test_a_manifest_has_the_type_that_its_bytes_say(fetching: Scene, stated: str) -> None:
    reply = Reply(200, (("Content-Type", stated),), [MANIFEST])
    assert (await fetching.fetcher(Script(reply)).manifests.get(BY_DIGEST, ACCEPT, ASKED)).media_type == OCI_MANIFEST
    stored = fetching.store.objects.find(digest_of(MANIFEST))
    assert stored is not None
    assert stored.media_type == OCI_MANIFEST


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("application/vnd.acme.thing+json", "application/vnd.acme.thing+json"),
        ("text/html", "application/octet-stream"),
        ("application/" + "x" * 200, "application/octet-stream"),
        ("no type", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("data", [b"{}", b"no JSON", b'{"schemaVersion": 1, "x": ["', b"[" * 100_000])
async def test_what_is_no_manifest_is_passed_on_and_not_kept(fetching: Scene, stated: str, expected: str, data: bytes) -> None:
    ref = reference(f"manifests/{digest_of(data)}")
    found = await fetching.fetcher(Script(Reply(200, (("Content-Type", stated),), [data]))).manifests.get(ref, ACCEPT, ASKED)
    assert found == ManifestContent(digest_of(data), expected, data, False)
    assert list(fetching.store.blobs.scan()) == []


async def test_a_page_in_place_of_a_tag_is_refused(fetching: Scene) -> None:
    with pytest.raises(RequestError):
        await fetching.fetcher(Script(Reply(200, (("Content-Type", "text/html"),), [b"<html>"]))).manifests.get(
            BY_TAG, ACCEPT, ASKED
        )


async def test_a_signed_manifest_has_the_digest_of_what_was_signed(fetching: Scene) -> None:
    ref = reference(f"manifests/{digest_of(SIGNED_PAYLOAD)}")
    found = await fetching.fetcher(Script(manifest_reply(signed()))).manifests.get(ref, ACCEPT, ASKED)
    assert found == ManifestContent(digest_of(SIGNED_PAYLOAD), SCHEMA_1_SIGNED, signed(), False)
    assert list(fetching.store.blobs.scan()) == []

    with pytest.raises(RequestError):
        await fetching.fetcher(Script(manifest_reply(signed().replace(b"acme", b"evil")))).manifests.get(ref, ACCEPT, ASKED)


def padded(size: int) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "annotations": {"x": "y" * size}}).encode()


@pytest.mark.parametrize("size", [SMALL + 1, 1 << 20, 4_000_000])
async def test_a_large_manifest_is_on_disk_only(fetching: Scene, size: int) -> None:
    data = padded(size)
    ref = reference(f"manifests/{digest_of(data)}")
    fetcher = fetching.fetcher(Script(manifest_reply(data)))
    assert await fetcher.manifests.get(ref, ACCEPT, ASKED) == ManifestContent(digest_of(data), OCI_MANIFEST, b"", True)
    assert fetching.store.blobs.size(digest_of(data)) == len(data)
    assert fetcher.manifests._held_bytes == 0


async def test_a_manifest_that_clients_refuse_goes_straight_through(fetching: Scene) -> None:
    reply = manifest_reply(padded(5 << 20))
    with pytest.raises(NotKept):
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert reply.closed
    assert reply.pieces, "it was not read"


async def test_manifests_beyond_what_they_may_have_in_memory_go_straight_through(fetching: Scene) -> None:
    data = padded(1 << 20)
    fetcher = fetching.fetcher(Script(manifest_reply(data)))
    fetcher.manifests._held_bytes = MANIFESTS_MAX - 100
    with pytest.raises(NotKept):
        await fetcher.manifests.get(BY_TAG, ACCEPT, ASKED)
    assert fetcher.manifests._held_bytes == MANIFESTS_MAX - 100


async def test_a_manifest_by_sha512(fetching: Scene) -> None:
    ref = reference(f"manifests/{digest_of(MANIFEST, 'sha512')}")
    found = await fetching.fetcher(Script(manifest_reply())).manifests.get(ref, ACCEPT, ASKED)
    assert found.digest == digest_of(MANIFEST, "sha512")


async def test_the_digest_that_upstream_states_for_a_tag_is_kept(fetching: Scene) -> None:
    stated = digest_of(MANIFEST, "sha512")
    reply = manifest_reply(MANIFEST, ("Docker-Content-Digest", stated))
    assert (await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)).digest == stated


@pytest.mark.parametrize("stated", ["md5:abc", "nonsense", ":", ""])
async def test_a_stated_digest_that_cannot_be_checked_is_worth_nothing(fetching: Scene, stated: str) -> None:
    reply = manifest_reply(MANIFEST, ("Docker-Content-Digest", stated))
    assert (await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)).digest == digest_of(MANIFEST)


@pytest.mark.parametrize(
    ("ref", "reply"),
    [
        (BY_DIGEST, manifest_reply(b"{}")),
        (BY_DIGEST, manifest_reply(b"")),
        (BY_TAG, manifest_reply(MANIFEST, ("Docker-Content-Digest", digest_of(b"{}")))),
        (BY_TAG, manifest_reply(MANIFEST, ("Docker-Content-Digest", "sha256:../../../etc/passwd"))),
        (BY_DIGEST, manifest_reply(gzip.compress(b"{}"), ("Content-Encoding", "gzip"))),
        (BY_DIGEST, manifest_reply(b"\x1f\x8b broken", ("Content-Encoding", "gzip"))),
    ],
)
async def test_a_manifest_that_does_not_have_its_digest(fetching: Scene, ref: Reference, reply: Reply) -> None:
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(Reply(200, reply.headers, reply.pieces[:]))).manifests.get(ref, ACCEPT, ASKED)

    assert (caught.value.failure.status, caught.value.failure.code) == (502, Code.DIGEST_INVALID)
    assert fetching.mismatches == ["reg.example"]
    assert list(fetching.store.blobs.scan()) == []


async def test_a_manifest_that_was_compressed_all_the_same_is_decoded(fetching: Scene) -> None:
    reply = manifest_reply(gzip.compress(MANIFEST), ("Content-Encoding", "gzip"))
    assert (await fetching.fetcher(Script(reply)).manifests.get(BY_DIGEST, ACCEPT, ASKED)).data == MANIFEST


async def test_a_compression_bomb_is_refused(fetching: Scene) -> None:
    bomb = gzip.compress(bytes(4 * MANIFEST_MAX))
    with pytest.raises(RequestError):
        await fetching.fetcher(Script(manifest_reply(bomb, ("Content-Encoding", "gzip")))).manifests.get(
            BY_DIGEST, ACCEPT, ASKED
        )


async def test_a_manifest_that_is_too_large_is_refused_before_it_is_read_whole(fetching: Scene) -> None:
    reply = Reply(200, (("Content-Type", OCI_MANIFEST),), [bytes(1 << 20)] * 100)
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502
    assert len(reply.pieces) > 80
    assert reply.closed


@pytest.mark.parametrize(
    ("reply", "status"),
    [(BREAK, 502), (UpstreamBroken("late", timeout=True), 504), (Reply(304), 502), (Reply(204), 502)],
)
async def test_an_upstream_that_gives_no_manifest(fetching: Scene, reply: Reply | UpstreamBroken, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == status


async def test_a_manifest_that_breaks_off(fetching: Scene) -> None:
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(Reply(200, (), [MANIFEST[:10], BREAK]))).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502
    assert list(fetching.store.blobs.scan()) == []


async def test_a_manifest_by_tag_that_is_shorter_than_announced_is_not_taken_for_whole(fetching: Scene) -> None:
    """Without Docker-Content-Digest its length is all that tells."""
    reply = Reply(200, (("Content-Type", OCI_MANIFEST), ("Content-Length", str(len(MANIFEST)))), [MANIFEST[:10]])
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502


async def test_a_manifest_that_stalls_is_given_up(fetching: Scene) -> None:
    fetching.settings = load(environ={}, flags={"progress_timeout": "20ms"})
    reply = Reply(200, (), [MANIFEST[:10], asyncio.Event()])
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(reply)).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 504
    assert reply.closed


async def test_a_manifest_is_served_although_it_cannot_be_kept(fetching: Scene) -> None:
    fetching.store.health.report_write_error(OSError(28, "No space left on device"))
    found = await fetching.fetcher(Script(manifest_reply())).manifests.get(BY_TAG, ACCEPT, ASKED)
    assert (found.data, found.stored) == (MANIFEST, False)
    assert list(fetching.store.blobs.scan()) == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_one_client_may_not_see_another_asks_for_itself(fetching: Scene, status: int) -> None:
    upstream = Script(refusal(status), manifest_reply())
    upstream.gate.clear()
    fetcher = fetching.fetcher(upstream)
    alice = asyncio.create_task(fetcher.manifests.get(BY_TAG, ALICE, ASKED))
    await asyncio.sleep(0.01)
    bob = [asyncio.create_task(fetcher.manifests.get(BY_TAG, BOB, ASKED)) for _ in range(3)]
    await asyncio.sleep(0.01)
    upstream.gate.set()

    with pytest.raises(Relayed) as caught:
        await alice
    assert caught.value.relay.status == status
    assert [content.data for content in await asyncio.gather(*bob)] == [MANIFEST] * 3
    assert [header(request.headers, "authorization") for request in upstream.requests] == ["Basic alice", "Basic bob"]


async def test_an_upstream_that_is_down_is_asked_once_for_all(fetching: Scene) -> None:
    upstream = Script(refusal(503))
    upstream.gate.clear()
    fetcher = fetching.fetcher(upstream)
    asking = [asyncio.create_task(fetcher.manifests.get(BY_TAG, headers, ASKED)) for headers in (ALICE, BOB, ALICE)]
    await asyncio.sleep(0.01)
    upstream.gate.set()

    for result in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(result, Relayed)
    assert len(upstream.requests) == 1


async def test_the_client_that_asked_first_may_leave(fetching: Scene) -> None:
    upstream = Script(manifest_reply())
    upstream.gate.clear()
    fetcher = fetching.fetcher(upstream)
    first = asyncio.create_task(fetcher.manifests.get(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(fetcher.manifests.get(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0)
    first.cancel()
    upstream.gate.set()

    assert (await second).data == MANIFEST
    assert len(upstream.requests) == 1


async def test_a_stop_ends_manifests_that_are_under_way(fetching: Scene) -> None:
    upstream = Script(manifest_reply())
    upstream.gate.clear()
    fetcher = fetching.fetcher(upstream)
    asking = asyncio.create_task(fetcher.manifests.get(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0.01)

    async with asyncio.timeout(5):
        await fetcher.stop()
        await asyncio.wait([asking])
    assert asking.cancelled() or isinstance(asking.exception(), RequestError)

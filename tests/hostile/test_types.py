"""Manifests that are said to be something else, or nothing: the bytes say what they are, also to a HEAD."""

import base64
import json
from collections.abc import Iterator

import pytest

from cacheyd.protocol.media_types import OCI_INDEX, SCHEMA_1, SCHEMA_1_SIGNED
from tests.faults.client import Reply
from tests.faults.scene import manifest_target
from tests.hostile.peers import head
from tests.hostile.written import Thing, Written, written
from tests.policy.conftest import Starter
from tests.support.images import OCI_MANIFEST, digest_of

PAYLOAD = b'{\n   "schemaVersion": 1,\n   "name": "acme/%d"\n}'


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[Written]:
    with written(shared) as world:
        yield world


def signed(payload: bytes) -> bytes:
    """As registries send manifests of the first schema: the payload with the signatures before its last brace."""
    tail = base64.urlsafe_b64encode(b"\n}").rstrip(b"=").decode()
    length = len(payload) - 2
    protected = base64.urlsafe_b64encode(json.dumps({"formatLength": length, "formatTail": tail}).encode()).decode()
    signatures = json.dumps([{"signature": "x", "protected": protected.rstrip("=")}])
    return payload[:length] + f',\n   "signatures": {signatures}\n}}'.encode()


def serve(world: Written, thing: Thing, data: bytes, *fields: str) -> None:
    stated = head(200, f"Content-Length: {len(data)}", *fields)
    world.script(thing, lambda method: (stated + (b"" if method == "HEAD" else data), False))


def ask(world: Written, thing: Thing, reference: str, method: str, accept: str = "*/*") -> Reply:
    return world.daemon.get(manifest_target(thing.repo, reference, "raw.test"), {"Accept": accept}, method=method)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "tag with a digest", "digest"])
@pytest.mark.parametrize(
    "stated",
    [
        "text/plain",
        "text/plain; charset=utf-8",
        "TEXT/HTML",
        "application/octet-stream",
        "application/json",
        "",
        "none",
        OCI_INDEX,
    ],
)
def test_the_bytes_say_what_a_manifest_is(world: Written, stated: str, by: str, method: str) -> None:
    thing = world.thing(f"HEAD {by[:6]}" if method == "HEAD" else by)
    fields = [] if stated == "none" else [f"Content-Type: {stated}"]
    digest = digest_of(thing.manifest)
    serve(world, thing, thing.manifest, *fields, *([f"Docker-Content-Digest: {digest}"] if by != "tag" else []))
    reference = digest if by == "digest" else "1.0"
    if stated == OCI_INDEX and method == "HEAD":
        pytest.skip("nothing is known of it but what upstream says; test_manifests has what happens then")
    for accept in ("*/*", f"{OCI_MANIFEST}, {OCI_INDEX}"):
        reply = ask(world, thing, reference, method, accept)
        assert (reply.status, reply.header("Content-Type")) == (200, OCI_MANIFEST)
        assert reply.header("Docker-Content-Digest") == digest
        assert (reply.length, reply.body) == (len(thing.manifest), b"" if method == "HEAD" else thing.manifest)


@pytest.mark.parametrize("stated", [SCHEMA_1_SIGNED, SCHEMA_1, "application/json", "text/plain", "none"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_the_first_schema_passes_through_and_is_not_kept(world: Written, stated: str, by: str) -> None:
    """Its digest is over what was signed, so no file could be checked by it."""
    thing = world.thing(by)
    payload = PAYLOAD % next(world.numbers)
    data, digest = signed(payload), digest_of(payload)
    serve(world, thing, data, f"Docker-Content-Digest: {digest}", *([] if stated == "none" else [f"Content-Type: {stated}"]))
    reference = digest if by == "digest" else "1.0"
    for method in ("HEAD", "GET", "GET", "HEAD"):
        reply = ask(world, thing, reference, method)
        assert reply.status == 200, reply.body
        assert reply.header("Docker-Content-Digest") == digest
        assert (reply.length, reply.body) == (len(data), b"" if method == "HEAD" else data)
        assert reply.header("Content-Type") in (
            SCHEMA_1_SIGNED,
            *([stated] if method == "HEAD" and stated == SCHEMA_1 else []),
        )
        assert reply.cache != "HIT" or method == "HEAD"
    assert not world.daemon.has(digest)
    assert not world.daemon.has(digest_of(data))


def test_other_bytes_than_those_that_were_signed(world: Written) -> None:
    thing = world.thing("digest")
    payload = PAYLOAD % next(world.numbers)
    serve(world, thing, signed(payload).replace(b"acme", b"evil"), f"Content-Type: {SCHEMA_1_SIGNED}")
    assert ask(world, thing, digest_of(payload), "GET").status == 502

"""Manifests and blobs: distribution-spec, "Pull". Behind the cache is a real docker-registry."""

import json
import re
from collections.abc import Callable
from email import message_from_bytes

import pytest

from tests.conformance.conftest import Real, new_bytes
from tests.conformance.site import Site, Temperature, error_code, rests, talk
from tests.real.cache import Reply
from tests.support.images import Blob, Image, Index, digest_of

BLOB_SIZE = 2048
NOWHERE = "sha256:" + "0" * 64


def things(repository: str, content: Index) -> dict[str, tuple[str, str, bytes]]:
    """Digest, media type and bytes of each thing that there is to ask for."""
    found = {f"{repository}/manifests/1.0": (content.digest, content.media_type, content.manifest)}
    everything: list[Index | Image] = [content, *(image for _, image in content.images)]
    for manifest in everything:
        found[f"{repository}/manifests/{manifest.digest}"] = (manifest.digest, manifest.media_type, manifest.manifest)
    for blob in {blob for _, image in content.images for blob in image.blobs}:
        found[f"{repository}/blobs/{blob.digest}"] = (blob.digest, "application/octet-stream", blob.data)
    return found


def assert_object(reply: Reply, digest: str, media_type: str, data: bytes, *, head: bool) -> None:
    assert reply.status == 200
    assert reply.headers["docker-content-digest"] == digest
    assert reply.headers["etag"].strip('"') == digest
    assert reply.headers["content-type"] == media_type
    assert reply.headers["content-length"] == str(len(data))
    assert reply.body == (b"" if head else data)


def test_base(site: Site) -> None:
    for method, query in [("GET", ""), ("HEAD", ""), ("GET", "?ns=registry.test"), ("HEAD", "?ns=registry.test")]:
        reply = site.cache.request(method, f"/v2/{query}")
        assert reply.status == 200
        assert reply.headers["docker-distribution-api-version"] == "registry/2.0"
        assert reply.headers["content-length"] == "2"
        assert reply.body == (b"" if method == "HEAD" else b"{}")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_everything_of_an_image(site: Site, real: Real, repository: str, temperature: Temperature, method: str) -> None:
    content = real.publish(repository)
    if temperature == "warm":
        site.warm(*rests(repository, "1.0", content))
    before = site.asked_upstream()
    for rest, (digest, media_type, data) in things(repository, content).items():
        reply = site.ask(method, rest)
        assert_object(reply, digest, media_type, data, head=method == "HEAD")
        assert reply.headers["x-cache"] == "HIT" or temperature == "cold"
        site.assert_scoped(reply)
    if temperature == "warm":
        assert site.asked_upstream() == before


def test_head_and_get_share_a_connection(site: Site, real: Real, repository: str, temperature: Temperature) -> None:
    """A HEAD that sent a body would be read as the next answer; a body that is too short would leave it waiting."""
    content = real.publish(repository)
    if temperature == "warm":
        site.warm(*rests(repository, "1.0", content))
    wanted = things(repository, content)
    targets = [site.address.target(rest) for rest in wanted]
    replies = iter(talk(site.cache, *((method, target, {}) for target in targets for method in ("HEAD", "GET"))))
    for digest, media_type, data in wanted.values():
        assert_object(next(replies), digest, media_type, data, head=True)
        assert_object(next(replies), digest, media_type, data, head=False)


def test_an_answer_is_not_conditional_unless_asked(site: Site, real: Real, repository: str) -> None:
    """304 without a condition is fatal to containerd; with one it saves the body."""
    content = real.publish(repository)
    rest = f"{repository}/manifests/{content.digest}"
    site.warm(rest)
    known = site.get(rest, **{"If-None-Match": f'"{content.digest}"'})
    assert (known.status, known.body) == (304, b"")
    other = site.get(rest, **{"If-None-Match": f'"{NOWHERE}"'})
    assert_object(other, content.digest, content.media_type, content.manifest, head=False)


# What is not there


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("manifests/nope", "MANIFEST_UNKNOWN"),
        (f"manifests/{NOWHERE}", "MANIFEST_UNKNOWN"),
        ("manifests/.INVALID_MANIFEST_NAME", "MANIFEST_UNKNOWN"),
        (f"blobs/{NOWHERE}", "BLOB_UNKNOWN"),
    ],
)
def test_unknown(site: Site, real: Real, repository: str, rest: str, code: str) -> None:
    real.publish(repository)
    # Asked for twice, as a refusal must not be kept as if it were the object.
    for _ in range(2):
        head = site.head(f"{repository}/{rest}")
        assert (head.status, head.body) == (404, b"")
        reply = site.get(f"{repository}/{rest}")
        assert reply.status == 404
        assert error_code(reply) == code


def test_unknown_repository(site: Site) -> None:
    manifest = site.get("conformance/nowhere/manifests/1.0")
    assert manifest.status == 404
    assert error_code(manifest) in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")
    blob = site.get(f"conformance/nowhere/blobs/{NOWHERE}")
    assert blob.status == 404
    assert error_code(blob) in ("BLOB_UNKNOWN", "NAME_UNKNOWN")
    tags = site.get("conformance/nowhere/tags/list")
    assert tags.status == 404
    assert error_code(tags) == "NAME_UNKNOWN"


def test_what_appears_later_is_found(site: Site, real: Real, repository: str) -> None:
    """No 404 is kept."""
    assert site.get(f"{repository}/manifests/1.0").status == 404
    content = real.publish(repository)
    for rest, expected in things(repository, content).items():
        assert_object(site.get(rest), *expected, head=False)


def test_bad_digest(site: Site, repository: str) -> None:
    for kind in ("manifests", "blobs"):
        reply = site.get(f"{repository}/{kind}/sha256:baddigeststring")
        assert reply.status in (400, 404)
        assert error_code(reply) == "DIGEST_INVALID"
        assert site.head(f"{repository}/{kind}/sha256:baddigeststring").status == reply.status


def test_referrers_and_tags_are_what_the_registry_says(site: Site, real: Real, repository: str) -> None:
    """docker-registry 2.8 knows no referrers; clients take 404 for that, and fall back to a tag."""
    content = real.publish(repository)
    real.pusher.image(repository, "1.1", content)
    assert site.get(f"{repository}/referrers/{content.digest}").status == 404
    tags = site.get(f"{repository}/tags/list")
    assert tags.status == 200
    content_of_tags = json.loads(tags.body)
    assert (content_of_tags["name"], sorted(content_of_tags["tags"])) == (repository, ["1.0", "1.1"])
    site.assert_scoped(tags)


# Ranges


@pytest.fixture
def blob(site: Site, real: Real, repository: str, temperature: Temperature) -> Blob:
    data = new_bytes(BLOB_SIZE)
    real.pusher.blob(repository, data)
    if temperature == "warm":
        site.warm(f"{repository}/blobs/{digest_of(data)}")
    return Blob(data)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("500-1499", 500, 1499),
        ("500-", 500, 2047),
        ("-500", 1548, 2047),
        ("2000-5000", 2000, 2047),
        ("0-0", 0, 0),
        ("0-", 0, 2047),
        ("-5000", 0, 2047),
        ("2047-2047", 2047, 2047),
    ],
)
def test_range(site: Site, blob: Blob, repository: str, wanted: str, first: int, last: int) -> None:
    reply = site.get(f"{repository}/blobs/{blob.digest}", Range=f"bytes={wanted}")
    assert reply.status == 206
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{BLOB_SIZE}"
    assert reply.headers["content-length"] == str(last - first + 1)
    assert reply.headers["docker-content-digest"] == blob.digest
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.body == blob.data[first : last + 1]
    site.assert_scoped(reply)


@pytest.mark.parametrize("wanted", ["500-0", "5000-10000", "2048-", "-0"])
def test_range_of_nothing(site: Site, blob: Blob, repository: str, wanted: str) -> None:
    reply = site.get(f"{repository}/blobs/{blob.digest}", Range=f"bytes={wanted}")
    assert reply.status == 416
    assert reply.headers["content-range"] == f"bytes */{BLOB_SIZE}"
    assert reply.headers["content-length"] == str(len(reply.body))
    site.assert_scoped(reply)


@pytest.mark.parametrize("wanted", ["lines=1-2", "bytes=x-y", "bytes=", "bytes=-", "500-1499"])
def test_range_that_means_nothing_is_ignored(site: Site, blob: Blob, repository: str, wanted: str) -> None:
    reply = site.get(f"{repository}/blobs/{blob.digest}", Range=wanted)
    assert_object(reply, blob.digest, "application/octet-stream", blob.data, head=False)


def test_head_with_a_range_tells_of_all_of_it(site: Site, blob: Blob, repository: str) -> None:
    """RFC 9110 section 14.2: Range is defined for GET."""
    reply = site.head(f"{repository}/blobs/{blob.digest}", Range="bytes=500-1499")
    assert_object(reply, blob.digest, "application/octet-stream", blob.data, head=True)


def parts(reply: Reply) -> dict[str, bytes]:
    """Content-Range and bytes of each part of a multipart/byteranges answer."""
    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + reply.body)
    found = {}
    for part in message.get_payload():
        assert not isinstance(part, str)
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found[part["Content-Range"]] = payload
    return found


def test_several_ranges(site: Site, real: Real, repository: str, temperature: Temperature) -> None:
    """All of it, or each of them as a part; never one of them alone."""
    # Printable, as the mail parser that reads the parts again changes line ends.
    data = b"".join(re.sub(rb"[^0-9a-f]", b"", new_bytes(64).hex().encode()) for _ in range(16))
    assert len(data) == BLOB_SIZE
    digest = real.pusher.blob(repository, data)
    if temperature == "warm":
        site.warm(f"{repository}/blobs/{digest}")
    reply = site.get(f"{repository}/blobs/{digest}", Range="bytes=0-99,1000-1099")
    if reply.status == 206:
        assert parts(reply) == {f"bytes 0-99/{BLOB_SIZE}": data[:100], f"bytes 1000-1099/{BLOB_SIZE}": data[1000:1100]}
        assert reply.headers["content-length"] == str(len(reply.body))
    else:
        assert_object(reply, digest, "application/octet-stream", data, head=False)


@pytest.mark.parametrize(
    ("condition", "status"),
    [(lambda blob: f'"{blob.digest}"', 206), (lambda blob: f'"{NOWHERE}"', 200), (lambda blob: f'W/"{blob.digest}"', 200)],
    ids=["same", "other", "weak"],
)
def test_if_range(site: Site, blob: Blob, repository: str, condition: Callable[[Blob], str], status: int) -> None:
    """RFC 9110 section 13.1.5: only the same strong ETag lets a part be sent."""
    headers = {"Range": "bytes=500-1499", "If-Range": condition(blob)}
    reply = site.get(f"{repository}/blobs/{blob.digest}", **headers)
    assert reply.status == status
    assert reply.body == (blob.data[500:1500] if status == 206 else blob.data)


def test_range_in_one_connection(site: Site, blob: Blob, repository: str) -> None:
    """Each answer has exactly the bytes that its head announces."""
    target = site.address.target(f"{repository}/blobs/{blob.digest}")
    asked = ["bytes=500-1499", "bytes=5000-10000", "bytes=-500", None, "bytes=500-0", "bytes=2000-5000"]
    replies = talk(site.cache, *(("GET", target, {"Range": wanted} if wanted else {}) for wanted in asked))
    assert [reply.status for reply in replies] == [206, 416, 206, 200, 416, 206]
    assert [len(reply.body) for reply in replies if reply.status != 416] == [1000, 500, 2048, 48]

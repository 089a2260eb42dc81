"""Tag lists and referrers: distribution-spec, "Content Discovery". docker-registry 2.8 has neither pages nor referrers."""

import json
import re
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urljoin

import pytest

from tests.conformance.conftest import new_image
from tests.conformance.site import Site, error_code
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Blob, digest_of
from tests.support.origin import Origin

TAGS = ["1.0", "1.1", "2.0", "edge", "latest"]
SIGNATURE, SBOM = "application/vnd.example.signature", "application/vnd.example.sbom"
_NUMBERS = count()


@pytest.fixture
def tagged(upstream: Origin, repository: str) -> str:
    image = new_image()
    for tag in TAGS:
        upstream.push(repository, tag, image)
    return repository


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", TAGS),
        ("?n=0", []),
        ("?n=2", TAGS[:2]),
        ("?n=5", TAGS),
        ("?n=50", TAGS),
        ("?last=1.1", TAGS[2:]),
        ("?n=2&last=1.1", TAGS[2:4]),
        ("?last=latest", []),
    ],
)
def test_tags(full_site: Site, tagged: str, query: str, expected: list[str]) -> None:
    for method in ("GET", "HEAD"):
        reply = full_site.ask(method, f"{tagged}/tags/list{query}")
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        if method == "GET":
            assert json.loads(reply.body) == {"name": tagged, "tags": expected}
            assert reply.headers["content-length"] == str(len(reply.body))
        assert ("link" in reply.headers) == (query in ("?n=2", "?n=2&last=1.1"))
        full_site.assert_scoped(reply)


def test_next_page_is_here_too(full_site: Site, tagged: str) -> None:
    """Link is relative to the request (RFC 8288 section 3.2): a client that follows it asks this cache again."""
    target = full_site.address.target(f"{tagged}/tags/list?n=2")
    pages: list[list[str]] = []
    while target and len(pages) < 5:
        reply = full_site.cache.request("GET", target)
        assert reply.status == 200, (target, reply)
        assert reply.headers["x-proxied-for"] == full_site.address.registry, target
        pages.append(json.loads(reply.body)["tags"])
        link = re.fullmatch(r'<([^>]+)>; *rel="?next"?', reply.headers.get("link", ""))
        target = urljoin(target, link[1]) if link else ""
    assert pages == [["1.0", "1.1"], ["2.0", "edge"], ["latest"]]


def test_tags_are_kept_like_a_tag(full_site: Site, upstream: Origin, tagged: str) -> None:
    """For `tag_ttl`: what a tag means is not known better either."""
    assert json.loads(full_site.get(f"{tagged}/tags/list").body)["tags"] == TAGS
    upstream.delete_tag(tagged, "edge")
    assert json.loads(full_site.get(f"{tagged}/tags/list").body)["tags"] == TAGS
    assert upstream.count("GET", "/tags/list") == 1


def test_tags_of_nothing(full_site: Site, repository: str) -> None:
    reply = full_site.get(f"{repository}/tags/list")
    assert reply.status == 404
    assert error_code(reply) == "NAME_UNKNOWN"


def referrer(subject: str, kind: str) -> bytes:
    """A manifest that says something of another one (image-spec, "subject")."""
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 7},
        "annotations": {"test": str(next(_NUMBERS))},
    }
    return json.dumps(content).encode()


@pytest.fixture
def referred(upstream: Origin, repository: str) -> dict[str, str]:
    """Digest of each manifest that refers to the image `subject`."""
    image = new_image()
    upstream.push(repository, "1.0", image)
    found = {"subject": image.digest}
    for kind in (SIGNATURE, SBOM):
        data = referrer(image.digest, kind)
        found[kind] = upstream.add_manifest(repository, digest_of(data), data, OCI_MANIFEST)
    return found


@pytest.mark.parametrize("kind", [None, SIGNATURE, SBOM, "application/vnd.example.none"])
def test_referrers(full_site: Site, repository: str, referred: dict[str, str], kind: str | None) -> None:
    query = f"?artifactType={kind.replace('+', '%2B').replace('/', '%2F')}" if kind else ""
    reply = full_site.get(f"{repository}/referrers/{referred['subject']}{query}")
    assert reply.status == 200
    assert reply.headers["content-type"] == OCI_INDEX
    content = json.loads(reply.body)
    assert (content["schemaVersion"], content["mediaType"]) == (2, OCI_INDEX)
    expected = {referred[name] for name in (SIGNATURE, SBOM) if kind in (None, name)}
    assert {manifest["digest"] for manifest in content["manifests"]} == expected
    assert reply.headers.get("oci-filters-applied") == ("artifactType" if kind else None)
    full_site.assert_scoped(reply)


def test_referrers_are_manifests_like_others(full_site: Site, repository: str, referred: dict[str, str]) -> None:
    for kind in (SIGNATURE, SBOM):
        reply = full_site.get(f"{repository}/manifests/{referred[kind]}")
        assert (reply.status, reply.headers["docker-content-digest"]) == (200, referred[kind])
        assert digest_of(reply.body) == referred[kind]


def test_referrers_of_nothing(full_site: Site, upstream: Origin, repository: str) -> None:
    """An empty list, not 404."""
    reply = full_site.get(f"{repository}/referrers/{Blob(repository.encode()).digest}")
    assert reply.status == 200
    assert reply.headers["content-type"] == OCI_INDEX
    assert json.loads(reply.body)["manifests"] == []
    assert upstream.count("GET", "/referrers/") == 1


def test_referrers_are_kept_like_a_tag(full_site: Site, upstream: Origin, repository: str, referred: dict[str, str]) -> None:
    """For `tag_ttl`, by what was asked for: each pod's admission asks for them."""
    rest = f"{repository}/referrers/{referred['subject']}"
    assert len(json.loads(full_site.get(rest).body)["manifests"]) == 2
    data = referrer(referred["subject"], SIGNATURE)
    upstream.add_manifest(repository, digest_of(data), data, OCI_MANIFEST)
    assert len(json.loads(full_site.get(rest).body)["manifests"]) == 2
    assert len(json.loads(full_site.get(f"{rest}?artifactType=any%2Fother").body)["manifests"]) == 0
    assert upstream.count("GET", "/referrers/") == 2


def test_query_goes_upstream_as_it_came(full_site: Site, upstream: Origin, tagged: str) -> None:
    """But for `ns`, which is none of upstream's business."""
    query = "last=1.0&n=3&x=a%2Bb+c"
    assert full_site.get(f"{tagged}/tags/list?{query}").status == 200
    (request,) = upstream.requests
    assert request.query == query
    assert request.path == f"/v2/{tagged}/tags/list"
    assert parse_qsl(request.query)[-1] == ("x", "a+b c")

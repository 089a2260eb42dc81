"""What is served besides content, and what is not: the distribution-spec's paths, and pages of cacheyd's own."""

import json
import re
from itertools import pairwise

import pytest

from tests.faults.client import End, Reply, request
from tests.faults.scene import Scene


def assert_oci_error(reply: Reply, *codes: str) -> None:
    """distribution-spec, "Error Codes"."""
    (error,) = json.loads(reply.body)["errors"]
    assert error["code"] in codes
    assert error["message"]
    assert reply.header("Content-Type") == "application/json"


# What is not served


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", "/v2/", "/v2/app/blobs/uploads/", "/nothing", "/metrics", "tag"])
def test_uploads_are_405_everywhere(scene: Scene, method: str, path: str) -> None:
    target = scene.tag_target("1.0") if path == "tag" else path
    with scene.cache.connect() as client:
        client.send(request(target, {"Content-Length": "4"}, method=method) + b"{}\r\n")
        reply = client.read_reply()
    assert reply.status == 405
    assert reply.header("Allow") == "GET, HEAD"
    assert_oci_error(reply, "UNSUPPORTED")
    assert scene.asked() == []


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/", "/v2/app", "/v2/app/what/1.0", "/v2/_catalog", "/v2/app/tags/", "//", "/%00"]
)
def test_an_unknown_path_is_404(scene: Scene, path: str) -> None:
    reply = scene.get(path)
    assert reply.status == 404
    assert_oci_error(reply, "UNSUPPORTED", "NAME_UNKNOWN")


@pytest.mark.parametrize("what", ["manifests/1.0", "blobs/sha256:" + "0" * 64, "tags/list", "referrers/sha256:" + "0" * 64])
@pytest.mark.parametrize("query", ["", "?", "?ns=", "?other=1"])
def test_no_registry_is_400_and_says_what_is_missing(scene: Scene, what: str, query: str) -> None:
    reply = scene.get(f"/v2/app/{what}{query}")
    assert reply.status == 400
    assert_oci_error(reply, "NAME_INVALID")
    assert b"ns" in reply.body


@pytest.mark.parametrize(
    ("what", "statuses"),
    [
        ("manifests/sha256:baddigest", {400, 404}),
        ("manifests/.INVALID", {404}),
        ("manifests/" + "a" * 129, {404}),
        ("blobs/1.0", {400, 404}),
        ("blobs/sha256:" + "A" * 64, {400, 404}),
        ("blobs/md5:" + "0" * 32, {400, 404}),
        ("referrers/1.0", {400, 404}),
    ],
)
def test_what_no_registry_can_have_asks_nobody(scene: Scene, what: str, statuses: set[int]) -> None:
    reply = scene.get(f"/v2/{scene.repo}/{what}?ns={scene.ns()}")
    assert reply.status in statuses
    assert_oci_error(reply, "DIGEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID")
    assert scene.asked() == []


@pytest.mark.parametrize(
    "name", ["UPPER", "a//b", "../../etc", "a/../b", "-a", "a" * 256, "a b", "%2e%2e/x", "a\\b", "caf%C3%A9"]
)
def test_a_name_that_is_none_asks_nobody(scene: Scene, name: str) -> None:
    before = len(scene.origin().requests)
    with scene.cache.connect() as client:
        client.send(f"GET /v2/{name}/manifests/1.0?ns={scene.ns()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.read_reply().status in (400, 404)
    assert len(scene.origin().requests) == before


def test_a_tunnel_is_refused(scene: Scene) -> None:
    """Not 405: its target has a form of its own."""
    for target in ("registry.test:443", "/v2/"):
        with scene.cache.connect() as client:
            client.ask(target, method="CONNECT")
            assert client.read_reply().status in (400, 405)
            assert client.rest() == (b"", End.FIN)


# Pages of its own


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v2/", "application/json", rb"\{\}"),
        ("/v2", "application/json", rb"\{\}"),
        ("/v2/?x=y", "application/json", rb"\{\}"),
        ("/healthz", "text/plain", rb"ok\n"),
        ("/readyz", "text/plain", rb"ready\n"),
        ("/metrics", "text/plain", rb"(?s).*\ncache_hits [0-9].*\ncacheyd_flights .*"),
        ("/", "text/plain", rb"cacheyd\n"),
    ],
)
def test_pages(scene: Scene, path: str, content_type: str, body: bytes) -> None:
    get, head = scene.get(path), scene.get(path, method="HEAD")
    assert get.status == head.status == 200
    assert (get.header("Content-Type") or "").startswith(content_type)
    assert re.fullmatch(body, get.body)
    assert head.header("Content-Type") == get.header("Content-Type")
    if path.startswith("/v2"):
        assert get.header("Docker-Distribution-API-Version") == "registry/2.0"


def test_the_status_page_is_for_browsers(scene: Scene) -> None:
    reply = scene.get("/", {"Accept": "text/html,application/xhtml+xml"})
    assert (reply.header("Content-Type") or "").startswith("text/html")
    assert b"<html" in reply.body


def test_metrics_only_grow(scene: Scene) -> None:
    blob = scene.blob(5000)
    scene.assert_served(blob)
    counts = []
    for _ in range(3):
        scene.get(blob)
        counts.append(scene.cache.metric("cache_hits"))
    assert all(after > before for before, after in pairwise(counts))

"""Refusals: what is wrong is answered here, without asking upstream; what upstream refuses is passed on."""

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.conformance.conftest import new_image
from tests.conformance.site import NS_REGISTRY, Site, error_code
from tests.real.cache import Cacheyd
from tests.real.procs import wait_until
from tests.support.origin import Origin

HEX = "0123456789abcdef" * 4


@pytest.fixture
def unasked(upstream: Origin) -> Iterator[None]:
    """Nothing of this test goes upstream."""
    yield
    assert upstream.requests == []


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    "digest",
    [
        "sha256:baddigeststring",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX[:-1]}g",
        f"sha512:{HEX}",
        f"md5:{HEX[:32]}",
        f"SHA256:{HEX}",
        f"sha256:{HEX}%0a",
        f"sha256:{HEX[:-2]}%00",
        "sha256:",
        f":{HEX}",
    ],
)
def test_bad_digest(full_site: Site, repository: str, digest: str) -> None:
    for kind in ("manifests", "blobs", "referrers"):
        reply = full_site.get(f"{repository}/{kind}/{digest}")
        assert reply.status == 400, kind
        assert error_code(reply) == "DIGEST_INVALID", kind
        head = full_site.head(f"{repository}/{kind}/{digest}")
        assert (head.status, head.body) == (400, b""), kind
        assert head.headers["content-length"] == reply.headers["content-length"], kind


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("kind", ["blobs", "referrers"])
def test_tag_is_no_digest(full_site: Site, repository: str, kind: str) -> None:
    reply = full_site.get(f"{repository}/{kind}/1.0")
    assert reply.status == 400
    assert error_code(reply) == "DIGEST_INVALID"


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    "tag", [".INVALID_MANIFEST_NAME", "-x", "a" * 129, "a b".replace(" ", "%20"), "a%2fb", "%c3%a4", "a+b"]
)
def test_no_tag_can_have_this_name(full_site: Site, repository: str, tag: str) -> None:
    reply = full_site.get(f"{repository}/manifests/{tag}")
    assert reply.status == 404
    assert error_code(reply) in ("MANIFEST_UNKNOWN", "UNSUPPORTED", "NAME_INVALID")


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    "name",
    [
        "lab/App",
        "lab//app",
        "/app",
        "lab/app/",
        "lab/-app",
        "lab/app-",
        "lab/a..b",
        "lab/a___b",
        "lab/../app",
        "lab/%2e%2e/app",
        "lab/app%00",
        "lab/%C3%A4pp",
        "lab/app:1.0",
        "lab/app@sha256",
        "l" * 300,
    ],
)
def test_bad_name(full_site: Site, name: str) -> None:
    for tail in ("manifests/1.0", f"blobs/sha256:{HEX}", "tags/list"):
        reply = full_site.get(f"{name}/{tail}")
        assert reply.status == 400, tail
        assert error_code(reply) == "NAME_INVALID", tail


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    "ns",
    [
        "https%3A%2F%2Fregistry.test",
        "registry.test%2Flab",
        "user%40registry.test",
        "user%3Apassword%40registry.test",
        "registry.test%3A0",
        "registry.test%3A99999",
        "registry.test%3Aport",
        "registry..test",
        "-registry.test",
        "registry.test%20",
        "registry.test%0d%0aX-Injected%3A%201",
        "%5B%3A%3A1",
        "x" * 300,
    ],
)
def test_bad_ns(origin_cache: Cacheyd, ns: str) -> None:
    reply = origin_cache.request("GET", f"/v2/lab/app/manifests/1.0?ns={ns}")
    assert reply.status == 400
    assert error_code(reply) == "NAME_INVALID"
    assert "x-injected" not in reply.headers


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    "target",
    [
        "/v2/_catalog",
        "/v1/",
        "/v2/lab/app",
        "/v2/lab/app/blobs/uploads/",
        "/v2/lab/app/manifests/",
        "/v2/lab/app%0d%0ax/manifests/1.0",
    ],
)
def test_path_that_is_not_served(origin_cache: Cacheyd, target: str) -> None:
    reply = origin_cache.request("GET", f"{target}?ns={NS_REGISTRY}")
    assert reply.status in (400, 404)
    assert error_code(reply) in ("UNSUPPORTED", "DIGEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID")


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_read_only(full_site: Site, repository: str, method: str) -> None:
    for rest in ("manifests/1.0", f"blobs/sha256:{HEX}", "blobs/uploads/"):
        reply = full_site.ask(method, f"{repository}/{rest}")
        assert reply.status == 405, rest
        assert error_code(reply) == "UNSUPPORTED", rest
        assert reply.headers["allow"] == "GET, HEAD", rest


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
def test_upload_with_a_body(full_site: Site, repository: str, method: str) -> None:
    """The answer arrives although nobody reads the body to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", full_site.cache.port, timeout=10)
    try:
        connection.request(method, full_site.address.target(f"{repository}/blobs/uploads/x"), bytes(300_000))
        response = connection.getresponse()
        assert response.status == 405
        assert json.loads(response.read())["errors"][0]["code"] == "UNSUPPORTED"
    finally:
        connection.close()


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_request_body_changes_nothing(full_site: Site, repository: str, method: str) -> None:
    """The conformance suite sends one with its GET of a bad digest."""
    connection = http.client.HTTPConnection("127.0.0.1", full_site.cache.port, timeout=10)
    try:
        target = full_site.address.target(f"{repository}/manifests/sha256:baddigeststring")
        connection.request(method, target, b"not what a GET has", {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        assert response.status == 400
        assert method == "HEAD" or json.loads(body)["errors"][0]["code"] == "DIGEST_INVALID"
    finally:
        connection.close()


@pytest.mark.usefixtures("unasked")
def test_registry_that_is_denied(origin_cache: Cacheyd) -> None:
    for tail in ("manifests/1.0", f"blobs/sha256:{HEX}", "tags/list"):
        reply = origin_cache.request("GET", f"/v2/lab/app/{tail}?ns=denied.test")
        assert reply.status == 403
        assert error_code(reply) == "DENIED"
        assert reply.headers["oci-namespace"] == "denied.test"


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(("rest", "status"), [("manifests/sha256:bad", 400), ("manifests/.INVALID", 404), ("blobs/1.0", 400)])
def test_refusal_says_which_registry_was_meant(full_site: Site, repository: str, rest: str, status: int) -> None:
    reply = full_site.get(f"{repository}/{rest}")
    assert reply.status == status
    full_site.assert_scoped(reply)


def test_no_registry_named(bare_cache: Cacheyd) -> None:
    """Without a default registry such a request says what is missing."""
    for tail in ("manifests/1.0", f"blobs/sha256:{HEX}", "tags/list", f"referrers/sha256:{HEX}"):
        reply = bare_cache.request("GET", f"/v2/lab/app/{tail}")
        assert reply.status == 400
        assert error_code(reply) == "NAME_INVALID"
        assert "ns=" in json.loads(reply.body)["errors"][0]["message"]
        assert "oci-namespace" not in reply.headers


# What upstream refuses


def test_login_is_passed_on(full_site: Site, upstream: Origin, repository: str) -> None:
    challenge = (
        "WWW-Authenticate",
        f'Bearer realm="https://auth.test/token",service="test",scope="repository:{repository}:pull"',
    )
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":null}]}'
    headers = [challenge, ("Content-Type", "application/json")]
    fault = upstream.fault(f"/v2/{repository}/", status=401, headers=headers, body=body)
    for rest in ("manifests/1.0", f"blobs/sha256:{HEX}", "tags/list"):
        reply = full_site.get(f"{repository}/{rest}")
        assert reply.status == 401
        assert error_code(reply) == "UNAUTHORIZED"
        assert reply.headers["www-authenticate"] == challenge[1]
        assert full_site.head(f"{repository}/{rest}").headers["www-authenticate"] == challenge[1]
        full_site.assert_scoped(reply)
    fault.remove()


def test_rate_limit_is_passed_on(full_site: Site, upstream: Origin, repository: str) -> None:
    """With Retry-After, until which upstream is left alone."""
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}'
    headers = [("Retry-After", "1"), ("Content-Type", "application/json")]
    fault = upstream.fault(f"/v2/{repository}/", status=429, headers=headers, body=body)
    for _ in range(6):
        reply = full_site.get(f"{repository}/manifests/1.0")
        assert reply.status == 429
        assert error_code(reply) == "TOOMANYREQUESTS"
        assert 0 <= int(reply.headers["retry-after"]) <= 1
        full_site.assert_scoped(reply)
    assert len(upstream.requests) == 1
    fault.remove()
    wait_until(lambda: full_site.get(f"{repository}/manifests/1.0").status == 404, "upstream is asked again", seconds=5)


def test_broken_upstream_is_a_gateway_error(full_site: Site, upstream: Origin, repository: str) -> None:
    """Not 404, which would say that there is no such image."""
    upstream.push(repository, "1.0", new_image())
    fault = upstream.fault(f"/v2/{repository}/", garbage=b"hello\r\n\r\n")
    reply = full_site.get(f"{repository}/manifests/1.0")
    fault.remove()
    assert reply.status in (502, 503, 504)
    content = json.loads(reply.body)
    assert content["errors"][0]["code"]
    assert full_site.get(f"{repository}/manifests/1.0").status == 200

"""Redirects are followed, as far as they lead somewhere that this cache may go."""

import socket
from collections.abc import Iterator

import pytest

from tests.faults.client import Stopwatch
from tests.faults.conftest import MakeDaemon
from tests.faults.scene import Scene, assert_whole, bearer, blob_target, closed_port, manifest_target, registry_table
from tests.support.certs import make_ca
from tests.support.images import Blob, digest_of
from tests.support.origin import Origin

SMALL = 5000


def onward(blob: Blob) -> str:
    """Matches requests for the blob that were not redirected yet."""
    return f"{blob.digest}$"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_kind_of_redirect_is_followed(scene: Scene, status: int) -> None:
    blob = scene.blob(SMALL)
    scene.fault(onward(blob), redirect=f"{scene.url()}/v2/{scene.repo}/blobs/{blob.digest}?x", redirect_status=status)
    assert_whole(scene.get(blob), blob)
    assert [request.query for request in scene.asked(blob)] == ["", "x"]


@pytest.mark.parametrize("form", ["absolute-path", "relative", "query-only", "no-scheme", "dots", "fragment"])
def test_each_form_of_location_is_followed(scene: Scene, form: str) -> None:
    """RFC 9110 section 10.2.2: a URI reference, resolved against the request's."""
    blob = scene.blob(SMALL)
    path = f"/v2/{scene.repo}/blobs/{blob.digest}"
    location = {
        "absolute-path": f"{path}?x",
        "relative": f"./{blob.digest}?x",
        "query-only": "?x",
        "no-scheme": scene.url().removeprefix("http:") + f"{path}?x",
        "dots": f"../blobs/./{blob.digest}?x",
        "fragment": f"{path}?x#part",
    }[form]
    scene.fault(onward(blob), redirect=location)
    assert_whole(scene.get(blob), blob)
    assert [request.target for request in scene.asked(blob)] == [path, f"{path}?x"]


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=a%2Fb%2Bc&x=1%20y",
        "sig=a+b%2fc%2F%7E~",
        "empty=&&twice==&plain",
        "q=%C3%A9%00%ff",
        "se=2026-01-01T00:00:00Z&sig=a/b:c@d!$'()*,;=[]",
        "a=b?c=d",
        'odd="<>|\\^`{}',
    ],
)
def test_a_signed_query_is_kept_byte_for_byte(scene: Scene, query: str) -> None:
    blob = scene.blob(SMALL)
    path = f"/v2/{scene.repo}/blobs/{blob.digest}"
    scene.fault(onward(blob), redirect=f"{scene.url()}{path}?{query}")
    assert_whole(scene.get(blob), blob)
    assert scene.asked(blob)[-1].target == f"{path}?{query}"


def test_no_login_goes_to_the_cdn(scene: Scene) -> None:
    """It would refuse the request: it has a signature already. And it has no business with it."""
    blob = scene.blob(registry="signed")
    assert_whole(scene.get(scene.target(blob, "signed"), bearer("secret")), blob)
    assert scene.asked(blob, registry="signed")[0].header("Authorization") == "Bearer secret"
    (request,) = scene.asked(blob, registry="cdn")
    assert request.header("Authorization") is None
    assert request.host == f"127.0.0.1:{scene.origin('cdn').port}"


def test_a_login_stays_with_its_origin(scene: Scene) -> None:
    blob = scene.blob(SMALL)
    scene.fault(onward(blob), redirect="?x")
    assert_whole(scene.get(blob, bearer("secret")), blob)
    assert [r.header("Authorization") for r in scene.asked(blob)] == ["Bearer secret"] * 2


def test_a_login_does_not_come_back_with_a_redirect_back(scene: Scene) -> None:
    """As curl and Go do: once the origin has changed, the login is gone."""
    blob = scene.blob(SMALL)
    back = f"{scene.url()}/v2/{scene.repo}/blobs/{blob.digest}?back"
    scene.fault("/away", registry="cdn", redirect=back)
    scene.fault(onward(blob), redirect=f"{scene.origin('cdn').url}/away")
    assert_whole(scene.get(blob, bearer("secret")), blob)
    assert [r.header("Authorization") for r in scene.asked(blob)] == ["Bearer secret", None]


def test_what_is_sent_to_the_cdn(scene: Scene) -> None:
    """Neither ns nor cookies nor anything that concerns the client's connection."""
    blob = scene.blob(registry="signed")
    headers = {"Cookie": "a=b", "Connection": "X-Hop", "X-Hop": "1", "User-Agent": "containerd/2.0", "Accept": "*/*"}
    assert_whole(scene.get(scene.target(blob, "signed"), headers), blob)
    for registry in ("signed", "cdn"):
        (request,) = scene.asked(blob, registry=registry)
        assert "ns=" not in request.target
        names = {name.lower() for name, _ in request.headers}
        assert names == {"host", "user-agent", "accept", "accept-encoding"}


def test_redirects_of_manifests_and_heads_are_followed(scene: Scene) -> None:
    image = scene.image()
    location = f"/v2/{scene.repo}/manifests/1.0?x"
    scene.fault("manifests/1.0$", method="(GET|HEAD)", redirect=location)
    head = scene.get(scene.tag_target("1.0"), method="HEAD")
    assert (head.status, head.header("Docker-Content-Digest")) == (200, image.digest)
    assert scene.get(scene.tag_target("1.0")).body == image.manifest
    assert [r.method for r in scene.asked()] == ["HEAD", "HEAD", "GET", "GET"]


@pytest.mark.parametrize(("hops", "status"), [(5, 200), (6, 502)])
def test_five_hops_and_no_more(scene: Scene, hops: int, status: int) -> None:
    blob = scene.blob(SMALL)
    scene.fault(onward(blob), redirect="?1")
    for hop in range(1, hops):
        scene.fault(rf"{blob.digest}\?{hop}$", redirect=f"?{hop + 1}")
    assert scene.get(blob).status == status
    assert len(scene.asked(blob)) == 6


@pytest.mark.parametrize("location", ["", "?x", "absolute"])
def test_a_loop_is_502(scene: Scene, location: str) -> None:
    blob = scene.blob(SMALL)
    scene.fault(blob, redirect=f"{scene.url()}/v2/{scene.repo}/blobs/{blob.digest}" if location == "absolute" else location)
    watch = Stopwatch()
    assert scene.get(blob).status == 502
    assert watch.seconds < 0.5
    assert len(scene.asked(blob)) <= 6


def test_https_to_http_is_refused(scene: Scene) -> None:
    blob = scene.blob(SMALL, registry="tls")
    scene.origin().add_blob(scene.repo, blob.data)
    scene.fault(blob, registry="tls", redirect=f"{scene.url()}/v2/{scene.repo}/blobs/{blob.digest}")
    assert scene.get(scene.target(blob, "tls")).status == 502
    assert scene.asked(blob) == []


def test_http_to_https_is_followed(scene: Scene) -> None:
    """The registry's own authorities are trusted for what it redirects to as well, or the public ones."""
    blob = scene.blob(SMALL, registry="tls")
    assert_whole(scene.get(scene.target(blob, "tls")), blob)
    other = scene.blob(SMALL)
    scene.origin("tls").add_blob(scene.repo, other.data)
    scene.fault(other, redirect=f"{scene.origin('tls').url}/v2/{scene.repo}/blobs/{other.digest}")
    assert scene.get(other).status == 502  # Nobody said that this authority is to be trusted for reg.test.


@pytest.mark.parametrize("trouble", ["stalls", "refuses", "garbage", "loops", "leads-nowhere"])
def test_where_a_registry_redirects_to_may_fail_without_harm_to_it(scene: Scene, trouble: str) -> None:
    """Its own host has answered each time: manifests and other blobs are to be had as before."""
    blobs = [scene.blob(SMALL, registry="flaky") for _ in range(4)]
    location = {
        "refuses": f"http://127.0.0.1:{closed_port()}/",
        "loops": "?again",
        "leads-nowhere": "ftp://files.test/",
    }.get(trouble, f"{scene.url()}/{scene.repo}/cdn")
    for blob in blobs[1:]:
        scene.fault(blob, registry="flaky", redirect=location)
    if trouble == "stalls":
        scene.fault(f"{scene.repo}/cdn", stall_head=30)
    else:
        scene.fault(f"{scene.repo}/cdn", garbage=b"\r\n\r\n")
    for blob in blobs[1:]:
        assert 502 <= scene.get(scene.target(blob, "flaky")).status <= 504
    assert_whole(scene.get(scene.target(blobs[0], "flaky")), blobs[0])


GARBAGE = {
    "bad-ipv6": "http://[::1",
    "no-host": "http://",
    "other-scheme": "ftp://127.0.0.1/x",
    "file": "file:///etc/passwd",
    "javascript": "javascript:alert(1)",
    "data": "data:text/plain,hello",
    "user-info": "http://user:password@127.0.0.1/",
    "port-too-high": "http://127.0.0.1:99999/",
    "port-zero": "http://127.0.0.1:0/",
    "port-text": "http://127.0.0.1:http/",
    "port-negative": "http://127.0.0.1:-80/",
    "space": "http://exa mple.test/",
    "label-too-long": f"http://{'a' * 64}.test/",
    "name-too-long": f"http://{'a.' * 150}test/",
    "empty-label": "http://a..test/",
    "dots": "http://.../",
    "underscores": "http://_/",
    "not-ascii": "http://\xe9\xff.invalid/",
    "percent": "http://%31%32%37.0.0.1/",
    "percent-bad": "http://%zz/",
    "star": "http://*/",
    "control": "http://a\x01b.test/",
    "tab": "ht\ttp://a\tb.test/",
    "ipv4-short": "http://127.1:1/",
    "ipv4-huge": "http://999.999.999.999/",
    "ipv6-zone": "http://[fe80::1%25eth0]:1/",
    "ipvfuture": "http://[v1.x]/",
    "brackets": "http://]/",
    "surrogates": "http://\xed\xa0\x80.test/",
    "long": "http://127.0.0.1:1/" + "x" * 60_000,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_redirect_to_nowhere_is_a_quick_5xx(scene: Scene, kind: str) -> None:
    blob = scene.blob(SMALL)
    scene.fault(blob, redirect=GARBAGE[kind])
    watch = Stopwatch()
    reply = scene.get(blob)
    assert 502 <= reply.status <= 504
    assert watch.seconds < 1
    assert b"password" not in reply.body


def test_a_redirect_without_location_is_5xx(scene: Scene) -> None:
    blob, image = scene.blob(SMALL), scene.image()
    scene.fault(scene.repo, method="(GET|HEAD)", status=307)
    assert scene.get(blob).status == 502
    for method in ("GET", "HEAD"):
        assert scene.get(scene.tag_target("1.0"), method=method).status == 502
        assert scene.get(scene.tag_target(image.digest), method=method).status == 502


@pytest.mark.parametrize("status", [300, 304, 305])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_3xx_is_5xx(scene: Scene, status: int, method: str) -> None:
    """It is fatal to containerd, and nobody sent a condition."""
    blob, image = scene.blob(SMALL), scene.image()
    scene.fault(scene.repo, method=method, status=status)
    for target in (scene.target(blob), scene.tag_target("1.0"), scene.tag_target(image.digest)):
        assert scene.get(target, method=method).status == 502


# Addresses that only a configured registry may have


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody on loopback whom nobody configured."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def assert_untouched(listener: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]"])
def test_a_registry_on_loopback_has_to_be_configured(scene: Scene, listener: socket.socket, host: str) -> None:
    ns = f"{host}:{listener.getsockname()[1]}"
    for target in (manifest_target("a/b", "1.0", ns), blob_target("a/b", digest_of(b"x"), ns)):
        watch = Stopwatch()
        assert scene.get(target).status in (400, 403, 502)
        assert watch.seconds < 0.5
    assert_untouched(listener)


@pytest.mark.parametrize("ns", ["169.254.169.254", "[fe80::1]", "224.0.0.1", "[ff02::1]", "metadata.invalid:80"])
def test_link_local_and_multicast_are_refused(scene: Scene, ns: str) -> None:
    watch = Stopwatch()
    assert scene.get(manifest_target("a/b", "1.0", ns)).status in (400, 403, 502)
    assert watch.seconds < 1.5


@pytest.mark.parametrize(
    "ns",
    ["x/../y", "user@host", "host:0", "host:99999", "host:port", "http://host", "host/path", "a b", "..", "-", "h\n", "%"],
)
def test_ns_that_is_no_registry_is_400(scene: Scene, ns: str) -> None:
    assert scene.get(manifest_target("a/b", "1.0", ns)).status == 400


@pytest.mark.parametrize(
    "ns",
    ["a" * 64 + ".test", "a." * 120 + "test", "1" * 200, "xn--.test", "xn--a.test"],
    ids=["label-too-long", "name-too-long", "number-too-long", "idna-empty", "idna-bad"],
)
def test_ns_that_no_name_server_takes_is_a_quick_error(scene: Scene, ns: str) -> None:
    watch = Stopwatch()
    assert scene.get(manifest_target("a/b", "1.0", ns)).status in (400, 502, 503)
    assert watch.seconds < 1


def outer_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


@pytest.mark.parametrize("to", ["loopback", "169.254.169.254", "[fe80::1]", "localhost"])
def test_a_registry_elsewhere_may_not_redirect_there(
    make_daemon: MakeDaemon, tmp_path_factory: pytest.TempPathFactory, listener: socket.socket, to: str
) -> None:
    """Cloud metadata, for one: the answer would go to whoever asked.

    The registry is at this machine's address, where it has to be configured; tests/hostile has one that is elsewhere.
    """
    address = outer_address()
    if address is None:
        pytest.skip("this machine has loopback only")
    ca = make_ca(tmp_path_factory.mktemp("public-ca"))
    port = listener.getsockname()[1]
    host = {"loopback": f"127.0.0.1:{port}", "localhost": f"localhost:{port}"}.get(to, to)
    registry = Origin(tls=ca.server_context(address))
    registry.host = address
    with registry:
        table = registry_table(f"{address}:{registry.port}", registry.url)
        daemon = make_daemon(table, env={"SSL_CERT_FILE": str(ca.ca_file)})
        good = registry.add_blob("a/b", b"reachable")
        assert daemon.get(blob_target("a/b", good, f"{address}:{registry.port}")).body == b"reachable"
        bad = registry.add_blob("a/b", b"somewhere else")
        registry.fault(bad, redirect=f"https://{host}/latest/meta-data")
        watch = Stopwatch()
        assert daemon.get(blob_target("a/b", bad, f"{address}:{registry.port}")).status in (403, 502)
        assert watch.seconds < 0.5
    assert_untouched(listener)


def test_a_configured_registry_may_be_on_loopback(make_daemon: MakeDaemon, origin: Origin) -> None:
    digest = origin.add_blob("a/b", b"content")
    ns = f"127.0.0.1:{origin.port}"
    daemon = make_daemon(registry_table(ns, origin.url))
    assert daemon.get(blob_target("a/b", digest, ns)).body == b"content"

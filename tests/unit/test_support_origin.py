"""The test origin does what it says: a fault that is not made proves nothing."""

from __future__ import annotations

import base64
import gc
import gzip
import http.client
import json
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certs import make_ca
from tests.support.images import (
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    Blob,
    digest_of,
    make_image,
    make_index,
    random_bytes,
    write_layout,
)
from tests.support.origin import FaultSpec, Origin

DATA = random_bytes(2048, 7)
DIGEST = digest_of(DATA)
BLOB = f"/v2/lab/img/blobs/{DIGEST}"
IMAGE = make_image()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        origin.push("lab/img", "1.0", IMAGE)
        origin.add_blob("lab/img", DATA)
        yield origin


def ask(origin: Origin, target: str, *, method: str = "GET", **headers: str) -> Reply:
    with closing(http.client.HTTPConnection(origin.host, origin.port, timeout=5)) as connection:
        connection.request(method, target, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


@dataclass
class Raw:
    """What the client's socket saw: the bytes, and whether a RST rather than a FIN ended them."""

    head: bytes
    body: bytes
    reset: bool


def raw(origin: Origin, target: str = BLOB, extra: str = "Connection: close\r\n") -> Raw:
    received, reset = b"", False
    with connect(origin) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\n{extra}\r\n".encode())
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            reset = True
    head, _, body = received.partition(b"\r\n\r\n")
    return Raw(head, body, reset)


def connect(origin: Origin) -> socket.socket:
    return socket.create_connection((origin.host, origin.port), timeout=5)


def receive_until_silence(client: socket.socket) -> bytes:
    """What comes until nothing has come for 50 ms; the connection must still be open then."""
    received = b""
    client.settimeout(0.05)
    try:
        while data := client.recv(65536):
            received += data
    except TimeoutError:
        return received
    raise AssertionError("closed")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def code(reply: Reply) -> str:
    return str(json.loads(reply.body)["errors"][0]["code"])


class TestRegistry:
    def test_manifest_by_tag_and_by_digest(self, origin: Origin) -> None:
        for reference in ("1.0", IMAGE.digest):
            reply = ask(origin, f"/v2/lab/img/manifests/{reference}")
            assert (reply.status, reply.body) == (200, IMAGE.manifest)
            assert reply.headers["Docker-Content-Digest"] == IMAGE.digest
            assert reply.headers["Content-Type"] == OCI_MANIFEST

    def test_an_index_brings_its_images(self, origin: Origin) -> None:
        index = make_index(IMAGE, make_image(architecture="arm64", seed=3))
        origin.push("lab/multi", "1.0", index)
        assert ask(origin, "/v2/lab/multi/manifests/1.0").headers["Content-Type"] == OCI_INDEX
        for entry in json.loads(index.manifest)["manifests"]:
            manifest = json.loads(ask(origin, f"/v2/lab/multi/manifests/{entry['digest']}").body)
            for part in (manifest["config"], *manifest["layers"]):
                reply = ask(origin, f"/v2/lab/multi/blobs/{part['digest']}")
                assert (digest_of(reply.body), len(reply.body)) == (part["digest"], part["size"])

    @pytest.mark.parametrize(
        ("accept", "status"),
        [("", 404), (DOCKER_LIST, 404), (f"{DOCKER_LIST}, {OCI_MANIFEST};q=0.5", 200), (f"{DOCKER_LIST}, */*", 200)],
    )
    def test_a_tag_is_unknown_to_those_who_do_not_accept_it(self, origin: Origin, accept: str, status: int) -> None:
        assert ask(origin, "/v2/lab/img/manifests/1.0", Accept=accept).status == status
        assert ask(origin, f"/v2/lab/img/manifests/{IMAGE.digest}", Accept=accept).status == 200

    def test_all_accept_lines_count(self, origin: Origin) -> None:
        lines = f"Connection: close\r\nAccept: {DOCKER_LIST}\r\naccept: {OCI_MANIFEST}\r\n"
        assert b" 200 " in raw(origin, "/v2/lab/img/manifests/1.0", lines).head

    def test_head_has_the_length_and_no_body(self, origin: Origin) -> None:
        reply = ask(origin, BLOB, method="HEAD")
        assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "2048")

    @pytest.mark.parametrize(
        ("asked", "content_range", "body"),
        [
            ("bytes=500-1499", "bytes 500-1499/2048", DATA[500:1500]),
            ("bytes=500-", "bytes 500-2047/2048", DATA[500:]),
            ("bytes=-500", "bytes 1548-2047/2048", DATA[-500:]),
            ("bytes=2000-5000", "bytes 2000-2047/2048", DATA[2000:]),
        ],
    )
    def test_range(self, origin: Origin, asked: str, content_range: str, body: bytes) -> None:
        reply = ask(origin, BLOB, Range=asked)
        assert (reply.status, reply.headers["Content-Range"], reply.body) == (206, content_range, body)

    @pytest.mark.parametrize("asked", ["bytes=500-0", "bytes=5000-10000", "bytes=-0", "bytes=x"])
    def test_range_that_cannot_be_satisfied(self, origin: Origin, asked: str) -> None:
        reply = ask(origin, BLOB, Range=asked)
        assert (reply.status, reply.headers["Content-Range"]) == (416, "bytes */2048")

    def test_if_range_and_if_none_match(self, origin: Origin) -> None:
        assert ask(origin, BLOB, Range="bytes=1-", If_Range=f'"{DIGEST}"').status == 206
        assert ask(origin, BLOB, Range="bytes=1-", If_Range='"other"').body == DATA
        assert ask(origin, BLOB, If_None_Match=f'"{DIGEST}"').status == 304

    @pytest.mark.parametrize(
        ("target", "status", "error"),
        [
            (f"/v2/lab/img/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
            ("/v2/lab/img/manifests/nope", 404, "MANIFEST_UNKNOWN"),
            ("/v2/lab/none/manifests/1.0", 404, "MANIFEST_UNKNOWN"),
            ("/v2/lab/none/tags/list", 404, "NAME_UNKNOWN"),
            ("/v2/lab/img/manifests/sha256:bad", 400, "DIGEST_INVALID"),
        ],
    )
    def test_errors_are_oci_json(self, origin: Origin, target: str, status: int, error: str) -> None:
        reply = ask(origin, target)
        assert (reply.status, code(reply)) == (status, error)

    def test_tags_in_pages(self, origin: Origin) -> None:
        for tag in ("3", "2"):
            origin.push("lab/img", tag, IMAGE)
        reply = ask(origin, "/v2/lab/img/tags/list?n=2")
        assert json.loads(reply.body) == {"name": "lab/img", "tags": ["1.0", "2"]}
        following = reply.headers["Link"].split(">")[0].lstrip("<")
        rest = ask(origin, following)
        assert (json.loads(rest.body)["tags"], rest.headers["Link"]) == (["3"], None)
        nothing = ask(origin, "/v2/lab/img/tags/list?n=0")
        assert (json.loads(nothing.body)["tags"], nothing.headers["Link"]) == ([], None)

    def test_a_deleted_tag_is_gone_and_its_digest_is_not(self, origin: Origin) -> None:
        origin.delete_tag("lab/img", "1.0")
        assert ask(origin, "/v2/lab/img/manifests/1.0").status == 404
        assert ask(origin, f"/v2/lab/img/manifests/{IMAGE.digest}").status == 200

    def test_referrers(self, origin: Origin) -> None:
        manifest = {"subject": {"digest": IMAGE.digest}, "artifactType": "test/sbom", "mediaType": OCI_MANIFEST}
        data = json.dumps(manifest).encode()
        origin.add_manifest("lab/img", digest_of(data), data, OCI_MANIFEST)
        found = ask(origin, f"/v2/lab/img/referrers/{IMAGE.digest}")
        assert found.headers["Content-Type"] == OCI_INDEX
        assert [each["digest"] for each in json.loads(found.body)["manifests"]] == [digest_of(data)]
        other = ask(origin, f"/v2/lab/img/referrers/{IMAGE.digest}?artifactType=test/other")
        assert (json.loads(other.body)["manifests"], other.headers["OCI-Filters-Applied"]) == ([], "artifactType")

    def test_keep_alive_and_what_was_asked(self, origin: Origin) -> None:
        with closing(http.client.HTTPConnection(origin.host, origin.port, timeout=5)) as connection:
            connection.request("GET", "/v2/?ns=a%3A1", headers={"X-CaSe": "1"}, body=b"dropped")
            connection.getresponse().read()
            connection.request("HEAD", BLOB)
            connection.getresponse().read()
        first, second = origin.requests
        assert (first.target, first.path, first.query) == ("/v2/?ns=a%3A1", "/v2/", "ns=a%3A1")
        assert ("X-CaSe", "1") in first.headers
        assert first.header("x-case") == "1"
        assert first.host == f"{origin.host}:{origin.port}"
        assert second.at > first.at
        assert (origin.count("GET"), origin.count(path_contains="/blobs/"), origin.count()) == (1, 1, 2)
        origin.clear()
        assert origin.requests == []


class TestFaults:
    def test_newest_first_and_only_so_often(self, origin: Origin) -> None:
        always = origin.fault("GET .*/blobs/", status=500)
        twice = origin.fault("GET .*/blobs/", times=2, status=503, headers=[("Retry-After", "1")], body=b"busy")
        replies = [ask(origin, BLOB) for _ in range(3)]
        assert [reply.status for reply in replies] == [503, 503, 500]
        assert (replies[0].headers["Retry-After"], replies[0].body) == ("1", b"busy")
        assert (always.hits, twice.hits) == (1, 2)
        always.remove()
        assert ask(origin, BLOB).status == 200
        assert ask(origin, BLOB, method="HEAD").status == 200

    def test_unknown_fields_are_refused(self, origin: Origin) -> None:
        with pytest.raises(TypeError, match="cut_of"):
            origin.fault("", cut_of=1)  # type: ignore[call-arg]

    def test_headers_and_body_of_the_normal_answer(self, origin: Origin) -> None:
        origin.fault("", headers=[("content-type", "text/plain")], remove_headers=["etag"], body=b"wrong")
        reply = ask(origin, BLOB)
        assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"wrong", "5")
        assert reply.headers.get_all("Content-Type") == ["text/plain"]
        assert reply.headers["ETag"] is None
        assert reply.headers["Docker-Content-Digest"] == DIGEST

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_cut_in_the_body(self, origin: Origin, how: str) -> None:
        origin.fault("", cut_after=100, how="rst" if how == "rst" else "fin")
        answer = raw(origin, extra="")
        assert b"Content-Length: 2048" in answer.head
        assert (answer.body, answer.reset) == (DATA[:100], how == "rst")
        (request,) = origin.requests
        assert (request.body_sent, request.done, request.aborted) == (100, True, False)

    def test_cut_far_in_delivers_all_before_the_reset(self, origin: Origin) -> None:
        data = random_bytes(3_000_000, 1)
        target = f"/v2/lab/img/blobs/{origin.add_blob('lab/img', data)}"
        origin.fault("", cut_after=2_500_000, how="rst")
        answer = raw(origin, target)
        assert (answer.body == data[:2_500_000], answer.reset) == (True, True)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_close_before_the_head(self, origin: Origin, how: str) -> None:
        origin.fault("", close_before_head=True, how="rst" if how == "rst" else "fin")
        assert raw(origin) == Raw(b"", b"", how == "rst")

    def test_chunked_whole_and_cut(self, origin: Origin) -> None:
        origin.fault("", chunked=True)
        reply = ask(origin, BLOB)
        assert (reply.body, reply.headers["Content-Length"]) == (DATA, None)
        origin.fault("", chunked=True, cut_after=100)
        assert raw(origin, extra="").body == b"64\r\n" + DATA[:100] + b"\r\n"

    def test_no_length(self, origin: Origin) -> None:
        origin.fault("", no_length=True)
        answer = raw(origin, extra="")
        assert (answer.body, b"Content-Length" in answer.head, b"chunked" in answer.head) == (DATA, False, False)

    @pytest.mark.parametrize("length", [10, 5000])
    def test_a_wrong_length(self, origin: Origin, length: int) -> None:
        origin.fault("", length=length)
        answer = raw(origin, extra="")
        assert f"Content-Length: {length}".encode() in answer.head
        assert answer.body == DATA

    def test_corrupt(self, origin: Origin) -> None:
        origin.fault("", corrupt_at=5)
        body = ask(origin, BLOB).body
        assert [at for at in range(len(DATA)) if body[at] != DATA[at]] == [5]

    def test_ranges_gone_wrong(self, origin: Origin) -> None:
        origin.fault("", times=1, ignore_range=True)
        reply = ask(origin, BLOB, Range="bytes=100-")
        assert (reply.status, reply.body) == (200, DATA)
        origin.fault("", times=1, bad_content_range=True)
        reply = ask(origin, BLOB, Range="bytes=100-")
        assert (reply.status, reply.body, reply.headers["Content-Range"]) == (206, DATA[100:], "bytes 101-2048/2049")

    def test_redirect(self, origin: Origin) -> None:
        origin.fault("", redirect="/else?a=%2F", redirect_status=302)
        reply = ask(origin, BLOB)
        assert (reply.status, reply.headers["Location"], reply.body) == (302, "/else?a=%2F", b"")

    def test_content_encoding(self, origin: Origin) -> None:
        origin.fault("", content_encoding="gzip")
        reply = ask(origin, BLOB, Accept_Encoding="identity")
        assert (gzip.decompress(reply.body), reply.headers["Content-Encoding"]) == (DATA, "gzip")

    def test_garbage_and_extra(self, origin: Origin) -> None:
        origin.fault("", times=1, garbage=b"SSH-2.0-x\r\n")
        assert raw(origin, extra="") == Raw(b"SSH-2.0-x\r\n", b"", False)
        origin.fault("", times=1, extra=b"more")
        assert raw(origin).body == DATA + b"more"

    def test_stalls(self, origin: Origin) -> None:
        origin.fault("", times=1, stall_head=0.05)
        began = time.monotonic()
        ask(origin, BLOB)
        assert 0.05 <= time.monotonic() - began < 1
        origin.fault("", stall_at=100)
        with connect(origin) as client:
            client.sendall(f"GET {BLOB} HTTP/1.1\r\n\r\n".encode())
            until(lambda: origin.requests[-1].body_sent == 100)
            assert b"\r\n\r\n" + DATA[:100] in receive_until_silence(client)
        until(lambda: origin.requests[-1].done)
        assert (origin.requests[-1].aborted, origin.requests[-1].body_sent) == (True, 100)

    def test_rate(self, origin: Origin) -> None:
        origin.fault("", rate=20_000)
        began = time.monotonic()
        assert ask(origin, BLOB).body == DATA
        assert 0.09 < time.monotonic() - began < 1

    @pytest.mark.parametrize("hold_at", [-1, 0, 1000])
    def test_hold(self, origin: Origin, hold_at: int) -> None:
        event = threading.Event()
        origin.fault("", hold=event, hold_at=hold_at)
        with connect(origin) as client:
            client.sendall(f"GET {BLOB} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            until(lambda: origin.count() == 1 and origin.requests[0].body_sent == max(0, hold_at))
            received = receive_until_silence(client)
            assert received.partition(b"\r\n\r\n")[2] == DATA[: max(0, hold_at)]
            assert (received == b"") == (hold_at < 0)
            event.set()
            client.settimeout(5)
            while data := client.recv(65536):
                received += data
        assert received.partition(b"\r\n\r\n")[2] == DATA

    def test_a_head_request_meets_no_fault_of_the_body(self, origin: Origin) -> None:
        spec: FaultSpec = {"cut_after": 1, "stall_at": 0, "corrupt_at": 0, "extra": b""}
        origin.fault("", **spec)
        assert ask(origin, BLOB, method="HEAD").headers["Content-Length"] == "2048"

    def test_down_and_up(self, origin: Origin) -> None:
        with connect(origin) as client:
            origin.down()
            assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(origin)
        origin.up()
        assert ask(origin, BLOB).body == DATA


class TestLoginAndCdn:
    def test_token(self, origin: Origin) -> None:
        with Origin() as realm:
            origin.require_token(realm)
            challenge = ask(origin, BLOB)
            scope = "repository:lab/img:pull"
            expected = f'Bearer realm="{realm.url}/token",service="test",scope="{scope}"'
            assert (challenge.status, code(challenge)) == (401, "UNAUTHORIZED")
            assert challenge.headers["WWW-Authenticate"] == expected
            token = json.loads(ask(realm, f"/token?service=test&scope={scope}").body)["token"]
            assert ask(origin, BLOB, Authorization=f"Bearer {token}").status == 200
            assert ask(origin, "/v2/", Authorization=f"Bearer {token}").status == 200
            elsewhere = ask(origin, "/v2/lab/other/manifests/1.0", Authorization=f"Bearer {token}")
            assert 'error="insufficient_scope"' in elsewhere.headers["WWW-Authenticate"]
            realm.expire_tokens()
            assert ask(origin, BLOB, Authorization=f"Bearer {token}").status == 401

    def test_basic(self, origin: Origin) -> None:
        origin.require_basic("user", "pass:word")
        right = base64.b64encode(b"user:pass:word").decode()
        assert ask(origin, BLOB).headers["WWW-Authenticate"] == 'Basic realm="test"'
        assert ask(origin, BLOB, Authorization="Basic d3Jvbmc=").status == 401
        assert ask(origin, BLOB, Authorization=f"Basic {right}").status == 200

    def test_basic_at_the_token_service(self, origin: Origin) -> None:
        origin.require_token()
        origin.require_basic("user", "word")
        right = base64.b64encode(b"user:word").decode()
        assert ask(origin, "/token?scope=repository:lab/img:pull").status == 401
        reply = ask(origin, "/token?scope=repository:lab/img:pull", Authorization=f"Basic {right}")
        token = json.loads(reply.body)["access_token"]
        assert ask(origin, BLOB, Authorization=f"Bearer {token}").status == 200

    def test_cdn(self, origin: Origin) -> None:
        with Origin() as cdn:
            origin.redirect_blobs_to(cdn)
            cdn.serve_cdn(origin)
            for method in ("GET", "HEAD"):
                reply = ask(origin, BLOB, method=method)
                assert reply.status == 307
            location = reply.headers["Location"]
            assert location == f"{cdn.url}/cdn/{DIGEST[7:]}?X-Amz-Signature=a%2Fb%2Bc&x=1%20y"
            target = location.removeprefix(cdn.url)
            assert ask(cdn, target, Range="bytes=9-").body == DATA[9:]
            assert ask(cdn, target.replace("%2F", "/")).status == 404
            assert ask(cdn, target, Authorization="Bearer x").status == 400
            assert ask(origin, f"/v2/lab/img/blobs/sha256:{'0' * 64}").status == 404


class TestServer:
    def test_tls(self, tmp_path: Path) -> None:
        ca = make_ca(tmp_path)
        with Origin(tls=ca.server_context("127.0.0.1", "localhost")) as origin:
            assert origin.url == f"https://127.0.0.1:{origin.port}"
            origin.add_blob("lab/img", DATA)
            for how, expected in (("fin", b""), ("rst", None)):
                origin.fault("", cut_after=100, how="rst" if how == "rst" else "fin", times=1)
                with connect(origin) as plain, ca.client_context().wrap_socket(plain, server_hostname="localhost") as s:
                    s.sendall(f"GET {BLOB} HTTP/1.1\r\n\r\n".encode())
                    received = b""
                    while not received.endswith(DATA[:100]):
                        received += s.recv(65536)
                    if expected is None:
                        with pytest.raises(ConnectionResetError):
                            s.recv(1)
                    else:
                        assert s.recv(1) == expected
            with connect(origin) as plain, pytest.raises(ssl.SSLError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")

    async def test_inside_an_asynchronous_test(self) -> None:
        with Origin() as origin:
            assert ask(origin, "/v2/").body == b"{}"

    @pytest.mark.parametrize("tls", [False, True])
    @pytest.mark.filterwarnings("error")
    def test_nothing_is_left_behind(self, tmp_path: Path, capfd: pytest.CaptureFixture[str], tls: bool) -> None:
        context = make_ca(tmp_path).server_context("127.0.0.1") if tls else None
        with warnings.catch_warnings():
            # What other tests left to the garbage collector goes before it is counted, and is not this test's.
            warnings.simplefilter("ignore")
            gc.collect()
        descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
        began = time.monotonic()
        clients = []
        with Origin(tls=context) as origin:
            origin.add_blob("lab/img", random_bytes(20_000_000, 1))
            origin.add_blob("lab/img", DATA)
            origin.fault("stall", stall_head=60)
            for target in ("/stall", BLOB, f"/v2/lab/img/blobs/{digest_of(random_bytes(20_000_000, 1))}"):
                client = connect(origin)
                clients.append(client)
                client.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
            if not tls:
                until(lambda: origin.count() == 3 and origin.requests[-1].body_sent > 0)
        assert time.monotonic() - began < 2
        for client in clients:
            client.close()
        assert (os.listdir("/proc/self/fd"), threading.active_count()) == (descriptors, threads)
        assert capfd.readouterr() == ("", "")


def test_layout(tmp_path: Path) -> None:
    image = make_image(layers=2, layer_size=10)
    write_layout(tmp_path, {"1.0": make_index(image), "one": image})
    (index, one) = json.loads((tmp_path / "index.json").read_text())["manifests"]
    assert (index["mediaType"], one["digest"]) == (OCI_INDEX, image.digest)
    for path in (tmp_path / "blobs" / "sha256").iterdir():
        assert Blob(path.read_bytes()).digest == f"sha256:{path.name}"
    config = json.loads(image.config.data)
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in image.layers]

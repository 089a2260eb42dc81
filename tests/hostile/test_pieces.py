"""Small pieces of cold blobs, and permissions: what an upstream, or a gate before it, passes off as what it is not."""

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.faults.client import Client, Reply, Stopwatch
from tests.faults.scene import blob_target, registry_table
from tests.hostile.peers import RawOrigin, head, whole
from tests.policy.conftest import Starter
from tests.policy.lab import login
from tests.support.images import OCI_MANIFEST, digest_of, random_bytes

SIZE = 12 << 20
GOOD, BAD = random_bytes(SIZE, 901), random_bytes(SIZE, 902)
RANGE = re.compile(rb"range: bytes=(\d*)-(\d*)", re.IGNORECASE)
type Answer = Callable[[socket.socket, bytes, int, int], None]


def pieces(data: bytes, answer: Answer, *, slow: bool = True) -> Callable[[socket.socket, bytes], None]:
    """An origin whose whole body of `data` takes long, and that answers ranges as `answer` does."""

    def handle(connection: socket.socket, request: bytes) -> None:
        if (match := RANGE.search(request)) is None:
            connection.sendall(head(200, f"Content-Length: {len(data)}") + data[: len(data) if not slow else 100_000])
            time.sleep(6 if slow else 0)
            return
        first = int(match[1]) if match[1] else len(data) - int(match[2])
        last = int(match[2]) if match[1] and match[2] else len(data) - 1
        answer(connection, request, first, last)

    return handle


def ask(port: int, digest: str, spec: str) -> Reply:
    with Client(port, patience=15.0) as client:
        client.ask(blob_target("a/b", digest, "evil.test"), {"Range": f"bytes={spec}"})
        return client.read_reply()


@pytest.mark.parametrize("spec", ["0-1048575", "0-49999", "0-10,20-49999", "-50000"])
def test_a_whole_blob_is_no_piece(own: Starter, spec: str) -> None:
    """Whatever its Content-Range leaves out: all of a blob goes out verified, or not at all."""
    good, bad = random_bytes(50_000, 903), random_bytes(50_000, 904)

    def answer(connection: socket.socket, request: bytes, first: int, last: int) -> None:
        connection.sendall(head(206, "Content-Range: bytes 0-49999/*", "Content-Length: 50000") + bad)

    def handle(connection: socket.socket, request: bytes) -> None:
        if RANGE.search(request):
            answer(connection, request, 0, 0)
        else:
            time.sleep(3)

    with RawOrigin(handle) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), {"head_timeout": "2s"})
        reply = ask(daemon.port, digest_of(good), spec)
    assert reply.body != bad
    assert reply.status in (502, 503, 504)


@pytest.mark.parametrize("kind", ["more", "chunked", "less", "length"])
def test_a_piece_is_as_long_as_it_says(own: Starter, kind: str) -> None:
    def answer(connection: socket.socket, request: bytes, first: int, last: int) -> None:
        said = f"Content-Range: bytes {first}-{last}/{SIZE}"
        if kind == "chunked":
            connection.sendall(head(206, said, "Transfer-Encoding: chunked"))
            while True:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        length = {"more": 1000, "less": 100, "length": 99}[kind]
        sent = {"more": 1000, "less": 50, "length": 99}[kind]
        connection.sendall(head(206, said, f"Content-Length: {length}") + bytes(sent))

    with RawOrigin(pieces(GOOD, answer)) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url))
        reply = ask(daemon.port, digest_of(GOOD), "5000000-5000099")
    assert reply.status == 502 or (reply.status == 206 and len(reply.body) <= 100 and reply.end != "complete"), reply


def test_who_ignores_ranges_sends_all_of_it_once(own: Starter) -> None:
    sent = 0

    def handle(connection: socket.socket, request: bytes) -> None:
        nonlocal sent
        connection.sendall(head(200, f"Content-Length: {SIZE}"))
        for at in range(0, SIZE, 65536):
            connection.sendall(GOOD[at : at + 65536])
            sent += 65536
            time.sleep(0.005)

    with RawOrigin(handle) as origin, ExitStack() as stack:
        daemon = own.daemon(registry_table("evil.test", origin.url))
        clients = [stack.enter_context(Client(daemon.port, patience=15.0)) for _ in range(12)]
        for number, client in enumerate(clients):
            first = SIZE - 1000 - 100 * number
            client.ask(blob_target("a/b", digest_of(GOOD), "evil.test"), {"Range": f"bytes={first}-{first + 50}"})
        for number, client in enumerate(clients):
            first = SIZE - 1000 - 100 * number
            reply = client.read_reply()
            assert (reply.status, reply.body) == (206, GOOD[first : first + 51])
    # Those that came at the same time find out at the same time; each ends what it does not want.
    assert sent < 8 * SIZE


def test_one_that_has_no_ranges_costs_others_nothing(own: Starter) -> None:
    """Any client can find a layer of a registry that is labelled wrong."""
    labelled = random_bytes(50_000, 907)

    def answer(connection: socket.socket, request: bytes, first: int, last: int) -> None:
        connection.sendall(head(206, f"Content-Range: bytes {first}-{last}/{SIZE}", f"Content-Length: {last + 1 - first}"))
        connection.sendall(GOOD[first : last + 1])

    others = pieces(GOOD, answer)

    def handle(connection: socket.socket, request: bytes) -> None:
        if digest_of(labelled).encode() not in request:
            others(connection, request)
        elif RANGE.search(request):
            connection.sendall(whole(labelled, "Content-Encoding: gzip"))
        else:
            time.sleep(0.5)
            connection.sendall(whole(labelled, "Content-Encoding: gzip"))

    with RawOrigin(handle) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url))
        assert ask(daemon.port, digest_of(labelled), "-51").body == labelled[-51:]
        watch = Stopwatch()
        reply = ask(daemon.port, digest_of(GOOD), "-51")
        assert (reply.status, reply.body, reply.cache) == (206, GOOD[-51:], "BYPASS")
        assert watch.seconds < 2


def test_slow_readers_of_pieces_are_in_nobodys_way(own: Starter) -> None:
    other = random_bytes(5000, 905)

    def answer(connection: socket.socket, request: bytes, first: int, last: int) -> None:
        connection.sendall(head(206, f"Content-Range: bytes {first}-{last}/{SIZE}", f"Content-Length: {last + 1 - first}"))
        connection.sendall(GOOD[first : last + 1])

    layers = pieces(GOOD, answer)

    def handle(connection: socket.socket, request: bytes) -> None:
        if digest_of(other).encode() in request:
            connection.sendall(whole(other))
        else:
            layers(connection, request)

    with RawOrigin(handle) as origin, ExitStack() as stack:
        daemon = own.daemon(registry_table("evil.test", origin.url) + "max_fetches = 4\n", {"head_timeout": "5s"})
        for number in range(8):
            client = stack.enter_context(Client(daemon.port, receive_buffer=4096))
            client.ask(blob_target("a/b", digest_of(GOOD), "evil.test"), {"Range": f"bytes={4_000_000 + number}-{11_000_000}"})
        time.sleep(1.5)
        watch = Stopwatch()
        reply = daemon.get(blob_target("a/b", digest_of(other), "evil.test"))
        assert (reply.status, reply.body) == (200, other)
        assert watch.seconds < 2


CONFIG_BLOB = b'{"a":1}'
LAYER = random_bytes(100_000, 906)
MANIFEST = json.dumps(
    {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "a/b", "size": len(CONFIG_BLOB), "digest": digest_of(CONFIG_BLOB)},
        "layers": [{"mediaType": "a/c", "size": len(LAYER), "digest": digest_of(LAYER)}],
    }
).encode()  # fmt: skip
PAGES = {
    "html": (b"<html>please log in</html>", "text/html; charset=utf-8"),
    "json": (b'{"login": "https://sso.test"}', "application/json"),
    "octets": (b"please log in", "application/octet-stream"),
    "none": (b"", ""),
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("redirected", [True, False])
def test_the_page_of_a_gate_is_no_permission(own: Starter, page: str, redirected: bool) -> None:
    """Cloudflare Access, oauth2-proxy and their like answer 200 to those without a login."""
    body, media_type = PAGES[page]
    objects = {"v1": MANIFEST, digest_of(MANIFEST): MANIFEST, digest_of(LAYER): LAYER}

    def handle(connection: socket.socket, request: bytes) -> None:
        path, is_head = request.split(b" ")[1].decode(), request.startswith(b"HEAD")
        if b"secret" in request and not path.startswith("/login"):
            data = objects[path.rpartition("/")[2]]
            fields = [f"Docker-Content-Digest: {digest_of(data)}", f"Content-Length: {len(data)}"]
            fields.append(f"Content-Type: {OCI_MANIFEST if data is MANIFEST else 'application/octet-stream'}")
            connection.sendall(head(200, *fields) + (b"" if is_head else data))
        elif redirected and not path.startswith("/login"):
            connection.sendall(head(302, f"Location: {gate.url}/login?back=x", "Content-Length: 0"))
        else:
            fields = [f"Content-Length: {len(body)}", *([f"Content-Type: {media_type}"] if media_type else [])]
            connection.sendall(head(200, *fields) + (b"" if is_head else body))

    with RawOrigin(handle) as gate, RawOrigin(handle) as origin:
        config = f'[registries."corp.test"]\nupstream = "{origin.url}"\naccess = "verify"\ntag_ttl = "1h"\n'
        daemon = own.daemon(config)
        targets = [f"/v2/x/{what}?ns=corp.test" for what in
                   ("manifests/v1", f"manifests/{digest_of(MANIFEST)}", f"blobs/{digest_of(LAYER)}")]  # fmt: skip
        accept = {"Accept": OCI_MANIFEST}
        for target in targets:
            assert daemon.get(target, login("Bearer secret") | accept).status == 200
        for target in targets * 2:
            for method in ("GET", "HEAD"):
                reply = daemon.get(target, accept, method=method)
                assert reply.body not in (MANIFEST, LAYER), target
                assert reply.header("X-Cache") not in ("HIT", "STALE", "REVALIDATED"), target
        for target in targets:
            assert daemon.get(target, login("Bearer secret") | accept).cache == "HIT"

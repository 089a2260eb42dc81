"""A daemon whose registries are one origin that writes what a test tells it to, byte for byte, and keeps its connections."""

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from tests.faults.client import Client, Reply
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.hostile.peers import PATIENCE, RawOrigin, head
from tests.policy.conftest import Starter
from tests.support.images import OCI_MANIFEST, digest_of

# Everything that is asked of an upstream.
KINDS = ("digest", "tag", "blob", "HEAD digest", "HEAD tag", "HEAD blob", "tags", "token")
TOKEN = "a.b-c"

# What a request gets, by its method: the bytes, and whether the connection is closed then.
type Script = Callable[[str], tuple[bytes, bool]]


class Thing:
    """One object of a repository of its own: `data` is what the answer's body is to be, `target` what a client asks for."""

    def __init__(self, kind: str, number: int, ns: str) -> None:
        self.kind = kind
        self.method = "HEAD" if kind.startswith("HEAD ") else "GET"
        self.repo = f"t{number}/img"
        what = kind.removeprefix("HEAD ")
        self.manifest = manifest(number)
        self.data, self.media_type = self.manifest, OCI_MANIFEST
        if what == "blob":
            self.data, self.media_type = b"blob %d " % number * 30, "application/octet-stream"
        elif what == "tags":
            self.data = json.dumps({"name": self.repo, "tags": [str(number)] * 20}).encode()
        elif what == "token":
            self.data = json.dumps({"token": TOKEN, "for": number}).encode()
        if what in ("tags", "token"):
            self.media_type = "application/json"
        match what:
            case "blob":
                self.target = blob_target(self.repo, digest_of(self.data), ns)
            case "tags":
                self.target = f"/v2/{self.repo}/tags/list?ns={ns}"
            case "tag":
                self.target = manifest_target(self.repo, "1.0", ns)
            case _:
                self.target = manifest_target(self.repo, digest_of(self.manifest), ns)

    def set_blob(self, data: bytes) -> None:
        """Other bytes than a few."""
        self.target = self.target.replace(digest_of(self.data), digest_of(data))
        self.data = data

    @property
    def verified(self) -> bool:
        """Whether the digest says what is right."""
        return self.kind in ("digest", "blob", "HEAD digest")


def manifest(number: int) -> bytes:
    """A manifest that no other number has."""
    content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [], "annotations": {"n": str(number)}}
    return json.dumps(content).encode()


class Written:
    """`raw.test` and, for tokens, `token.test`. Repositories without a script have what is right."""

    def __init__(
        self,
        starter: Starter,
        *,
        settings: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.scripts: dict[str, Script] = {}
        self.closing: Callable[[socket.socket], None] = lambda connection: None
        self.piecemeal = False
        self.numbers = count(1)
        # Each request's head, and the connection that it came on.
        self.requests: list[str] = []
        self.came_on: list[int] = []
        self._connections = count()
        self.origin = RawOrigin(self._serve, tls=tls, host="127.0.0.1").__enter__()
        table = registry_table("token.test", self.origin.url, ca_file=ca_file)
        config = registry_table("raw.test", self.origin.url, ca_file=ca_file) + table + 'auth = "anonymous"\n'
        self.daemon: Daemon = starter.daemon(config, settings)

    def close(self) -> None:
        """Ends the origin."""
        self.origin.__exit__(None, None, None)

    def script(self, thing: Thing, script: Script) -> None:
        """What requests for this get, those for its token where that is what it is."""
        self.scripts[f"token {thing.repo}" if thing.kind == "token" else thing.repo] = script

    def thing(self, kind: str) -> Thing:
        """Something that nobody has asked for."""
        return Thing(kind, next(self.numbers), "token.test" if kind == "token" else "raw.test")

    def ask(self, thing: Thing, *, headers: dict[str, str] | None = None) -> Reply:
        """What a client gets."""
        with Client(self.daemon.port, patience=PATIENCE) as client:
            return client.exchange(thing.target, headers, method=thing.method)

    def assert_in_order(self) -> None:
        """The next request gets its own answer."""
        probe = self.thing("digest")
        reply = self.ask(probe)
        assert (reply.status, reply.body) == (200, probe.data), (reply.status, reply.body[:300])

    # The origin

    def _serve(self, connection: socket.socket, buffer: bytes) -> None:
        number = next(self._connections)
        while True:
            request, _, buffer = buffer.partition(b"\r\n\r\n")
            data, closes = self._answer(number, request.decode("latin-1"))
            for at in range(0, len(data), size := 1 if self.piecemeal else len(data) or 1):
                connection.sendall(data[at : at + size])
            if closes:
                with suppress(OSError):
                    self.closing(connection)
                return
            while b"\r\n\r\n" not in buffer:
                more = connection.recv(1 << 16)
                if not more:
                    return
                buffer += more

    def _answer(self, number: int, request: str) -> tuple[bytes, bool]:
        match = re.match(r"(GET|HEAD) (?:/v2|/token)/t(\d+)/img(\S*) HTTP/1\.1\r\n", request)
        assert match, request
        method, at = match[1], int(match[2])
        repo = f"t{at}/img"
        self.requests.append(request)
        self.came_on.append(number)
        token = "/token/" in request.partition("\r\n")[0]
        if token:
            script = self.scripts.get(f"token {repo}")
            return script(method) if script else (_whole(json.dumps({"token": TOKEN}).encode(), method), False)
        if f"token {repo}" in self.scripts and f"Bearer {TOKEN}" not in request:
            realm = f'WWW-Authenticate: Bearer realm="{self.origin.url}/token/{repo}",service="x"'
            return head(401, "Content-Length: 0", realm), False
        if repo in self.scripts:
            return self.scripts[repo](method)
        return _whole(manifest(at), method), False


def _whole(body: bytes, method: str) -> bytes:
    return head(200, f"Content-Length: {len(body)}", f"Content-Type: {OCI_MANIFEST}") + (b"" if method == "HEAD" else body)


@contextmanager
def written(
    starter: Starter, *, settings: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, ca_file: Path | None = None
) -> Iterator[Written]:
    """One for a `with` block."""
    world = Written(starter, settings=settings, tls=tls, ca_file=ca_file)
    try:
        yield world
    finally:
        world.close()

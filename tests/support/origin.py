"""A registry, CDN and token service for tests, on a real socket, with faults on purpose.

    with Origin() as origin:
        origin.push("lab/img", "1.0", make_image())
        origin.fault("GET .*/blobs/", times=1, cut_after=100)

It runs in its own thread, so the code under test can be synchronous or asynchronous. This module and the origin_* modules
write every byte on the wire: no HTTP library corrects a fault.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Self, Unpack

from tests.support.images import Image, Index
from tests.support.origin_auth import Gate, TokenService, encode_basic
from tests.support.origin_delivery import Peer, deliver
from tests.support.origin_faults import Fault, Faults, FaultSpec, shape
from tests.support.origin_http import Answer, Request, oci_error, read_request
from tests.support.origin_registry import Registry

__all__ = ["Fault", "FaultSpec", "Origin", "Request"]

SIGNATURE = "X-Amz-Signature=a%2Fb%2Bc&x=1%20y"
JOIN_TIMEOUT = 10.0


class Origin:
    """One server on 127.0.0.1. Any thread can change its content, faults and logins, also before the server starts."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self._tls = tls
        self._registry = Registry()
        self._faults = Faults()
        self._tokens = TokenService()
        self._gate = Gate()
        self._realm_origin: Origin | None = None
        self._cdn: tuple[Origin, str] | None = None
        self._cdn_for: Origin | None = None
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._errors: list[Exception] = []
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._listener: socket.socket | None = None

    # Content

    def push(self, repo: str, tag: str, content: Image | Index) -> None:
        """Adds everything that a pull of `repo:tag` needs, for an index also its images."""
        self._registry.push(repo, tag, content)

    def add_blob(self, repo: str, data: bytes) -> str:
        """Adds a blob; gives its digest."""
        return self._registry.add_blob(repo, data)

    def add_manifest(self, repo: str, reference: str, data: bytes, media_type: str) -> str:
        """Adds a manifest; gives its digest. The reference is a tag, or any digest, also one that `data` does not have."""
        return self._registry.add_manifest(repo, reference, data, media_type)

    def delete_tag(self, repo: str, tag: str) -> None:
        self._registry.delete_tag(repo, tag)

    # What was asked

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """A copy of the list of requests, in the order in which heads came in. The requests themselves still change."""
        with self._lock:
            return list(self._requests)

    def count(self, method: str | None = None, path_contains: str | None = None) -> int:
        return sum(
            (method is None or request.method == method) and (path_contains is None or path_contains in request.path)
            for request in self.requests
        )

    def clear(self) -> None:
        """Forgets only the requests."""
        with self._lock:
            self._requests.clear()

    # Faults and roles

    def fault(self, match: str, *, times: int | None = None, **what: Unpack[FaultSpec]) -> Fault:
        """Adds a fault for requests whose `METHOD target` contains a match of the regex, for `times` requests or without end.

        A request meets one fault: the newest one that matches and is not used up. Faults come before logins and redirects,
        which are a part of the normal answer that a fault replaces or changes.
        """
        return self._faults.add(match, times, what)

    def redirect_blobs_to(self, cdn: Origin, query: str = SIGNATURE) -> None:
        """From now on, answers GET and HEAD of existing blobs with 307 to `<cdn>/cdn/<hex>?<query>`."""
        self._cdn = (cdn, query)

    def serve_cdn(self, origin: Origin) -> None:
        """Serves `origin`'s blobs like S3: 400 for a request with Authorization, 404 without the query of `origin`."""
        self._cdn_for = origin

    def require_token(self, realm_origin: Origin | None = None) -> None:
        """From now on, each read needs a Bearer token from `/token` of the realm origin (default: this origin)."""
        self._realm_origin = realm_origin or self
        self._gate.tokens = self._realm_origin._tokens

    def require_basic(self, user: str, password: str) -> None:
        """From now on, `/token` needs these credentials; each read needs them, too, unless it needs a token."""
        self._gate.user = self._tokens.user = encode_basic(user, password)

    def expire_tokens(self) -> None:
        """Makes all tokens invalid that this origin has issued."""
        self._tokens.issued.clear()

    # Running

    def __enter__(self) -> Self:
        listener = self._bind()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(listener),), name="origin", daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Drops every connection. Raises the first error that the origin itself, and not a client, caused."""
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(JOIN_TIMEOUT)
        assert not self._thread.is_alive()
        if self._errors and error is None:
            raise self._errors[0]

    def down(self) -> None:
        """Drops all connections, and refuses new ones until `up`."""
        self._run(self._drop_all())

    def up(self) -> None:
        """Listens again on the same port."""
        self._run(self._listen(self._bind()))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(JOIN_TIMEOUT)

    def _bind(self) -> socket.socket:
        listener = socket.create_server((self.host, self.port), backlog=1024)
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        return listener

    async def _main(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        # What asyncio reports there (a failed handshake, say) is the client's doing; ours goes to _errors.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._stop = asyncio.Event()
        await self._listen(listener)
        self._ready.set()
        await self._stop.wait()
        await self._drop_all()

    async def _listen(self, listener: socket.socket) -> None:
        self._listener = listener
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        accepted.setblocking(False)
        connection = asyncio.create_task(self._serve(accepted))
        self._connections[connection] = accepted
        connection.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _drop_all(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        connections = dict(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets one turn after abort()
        for accepted in connections.values():
            accepted.close()  # a task that was cancelled before it began has not

    async def _serve(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                peer = await Peer.open(accepted, self._tls)
            except OSError:
                return
            try:
                while await self._exchange(peer):
                    pass
            except (OSError, EOFError):
                pass  # the client went away
            except Exception as error:
                self._errors.append(error)
            finally:
                peer.abort()
                await asyncio.sleep(0)

    async def _exchange(self, peer: Peer) -> bool:
        request = await read_request(peer.reader)
        if request is None:
            await peer.close("fin")
            return False
        with self._lock:
            self._requests.append(request)
        spec = self._faults.meet(request)
        try:
            keep = await deliver(peer, request, shape(request, self._answer(request), spec), spec)
        except OSError:
            request.aborted = True
            raise
        finally:
            request.done = True
        if not keep:
            await peer.close(spec.get("how", "fin"))
        return keep

    def _answer(self, request: Request) -> Answer:
        if request.path == "/token":
            return self._tokens.answer(request)
        if request.path.startswith("/cdn/") and self._cdn_for is not None:
            return self._cdn_for._signed_blob(request)
        if self._realm_origin is not None:
            self._gate.realm = f"{self._realm_origin.url}/token"
        return self._gate.challenge(request) or self._redirected(request) or self._registry.answer(request)

    def _redirected(self, request: Request) -> Answer | None:
        match = re.fullmatch(r"/v2/(.+)/blobs/sha256:([0-9a-f]{64})", request.route)
        if self._cdn is None or match is None or request.method not in ("GET", "HEAD"):
            return None
        cdn, query = self._cdn
        name, digits = match.groups()
        if self._registry.find_blob(f"sha256:{digits}", name) is None:
            return None
        return Answer(307, (("Location", f"{cdn.url}/cdn/{digits}?{query}"),))

    def _signed_blob(self, request: Request) -> Answer:
        if request.header("Authorization") is not None:
            return Answer(400, (("Content-Type", "application/xml"),), b"<Error><Code>InvalidArgument</Code></Error>")
        data = self._registry.find_blob("sha256:" + request.path.removeprefix("/cdn/"))
        if data is None or self._cdn is None or request.query != self._cdn[1]:
            return oci_error(404, "BLOB_UNKNOWN")
        headers = (("Content-Type", "binary/octet-stream"), ("Accept-Ranges", "bytes"), ("ETag", '"test-cdn"'))
        return Answer(200, headers, data, ranges=True)

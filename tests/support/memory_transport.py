"""A Transport without sockets: registries and token services in memory, for tests of the code above HTTP."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from cacheyd.protocol.headers import HeaderList
from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import UpstreamBroken
from tests.support.images import Image, Index
from tests.support.origin_auth import Gate, TokenService
from tests.support.origin_http import Answer, Request, apply_range
from tests.support.origin_registry import Registry

PIECE = 64 << 10


class MemoryResponse:
    """A response whose body comes in pieces, and breaks off after `cut` bytes."""

    by_other_host = False

    def __init__(self, status: int, headers: HeaderList, body: bytes, cut: int | None = None) -> None:
        self.status = status
        self.headers = headers
        self._body = memoryview(body)
        self._cut = cut
        self.closed = False

    async def read(self) -> Sequence[bytes]:
        """The next piece of the body; empty at its end."""
        if self._cut == 0:
            raise UpstreamBroken("connection closed")
        size = PIECE if self._cut is None else min(PIECE, self._cut)
        piece, self._body = bytes(self._body[:size]), self._body[size:]
        if self._cut is not None:
            self._cut -= len(piece)
        return [piece] if piece else []

    def close(self) -> None:
        """Notes that the response was closed."""
        self.closed = True


class MemoryTransport:
    """Registries by `host:port`; tests push their content. A host without a registry refuses connections."""

    def __init__(self) -> None:
        self.budget = Budget(64 << 20)
        self.closed = False
        # What was asked, as `METHOD path`, and what each asked with.
        self.asked: list[str] = []
        self.requests: list[Request] = []
        self._registries: dict[str, Registry] = {}
        self._gates: dict[str, Gate] = {}
        self._down: set[str] = set()
        self._cut: dict[str, int] = {}

    def registry(self, host: str) -> Registry:
        """The registry at a host. Makes a new one if there is none."""
        return self._registries.setdefault(host, Registry())

    def push(self, host: str, repository: str, tag: str, content: Image | Index) -> None:
        """Adds everything that a pull of this tag needs."""
        self.registry(host).push(repository, tag, content)

    def require_token(self, host: str) -> TokenService:
        """From now on, each read needs a token from `/token` of the same host."""
        tokens = TokenService()
        self._gates[host] = Gate(tokens=tokens, realm=f"http://{host}/token")
        return tokens

    def down(self, host: str) -> None:
        """The host refuses connections until `up`."""
        self._down.add(host)

    def up(self, host: str) -> None:
        """The host answers again."""
        self._down.discard(host)

    def cut(self, path: str, size: int) -> None:
        """The next body of `path` breaks off after `size` bytes."""
        self._cut[path] = size

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> MemoryResponse:
        """The registry's answer."""
        parts = urlsplit(url)
        target = f"{parts.path}{'?' if parts.query else ''}{parts.query}"
        request = Request(method, target, parts.path, parts.query, list(headers))
        self.asked.append(f"{method} {parts.path}")
        self.requests.append(request)
        found = self._registries.get(parts.netloc)
        if found is None or parts.netloc in self._down:
            raise UpstreamBroken(f"{parts.netloc}: connection refused")
        answer, part = apply_range(request, self._answer(parts.netloc, found, request))
        body = answer.body[part.start : part.end]
        fields = (*answer.headers, ("Content-Length", str(len(body))))
        cut = self._cut.pop(parts.path, None) if method == "GET" else None
        return MemoryResponse(answer.status, fields, b"" if method == "HEAD" or answer.status == 304 else body, cut)

    def _answer(self, host: str, registry: Registry, request: Request) -> Answer:
        gate = self._gates.get(host)
        if gate is not None and gate.tokens is not None and request.path == "/token":
            return gate.tokens.answer(request)
        return (gate.challenge(request) if gate is not None else None) or registry.answer(request)

    def close(self) -> None:
        """Notes that the service closed the transport."""
        self.closed = True

"""One service over registries in memory, with a real store, and clocks that the tests move."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from cacheyd.cache.answer import Answer
from cacheyd.observe.logs import AccessLine, AccessLog
from cacheyd.service.service import Service
from cacheyd.settings.settings import RegistrySettings, Settings
from tests.support.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.support.memory_transport import MemoryTransport
from tests.support.stores import Clock

HOST, REGISTRY = "origin.test:5000", "reg.test"
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))


class Lines(AccessLog):
    """An access log that keeps its lines, without a thread."""

    def __init__(self) -> None:
        self.lines: list[AccessLine] = []
        self.closed = False

    def write(self, line: AccessLine) -> None:
        """Keeps the line."""
        self.lines.append(line)

    def close(self) -> None:
        """Notes that the log was closed."""
        self.closed = True


class Site:
    """The service, its upstreams, and clients that ask it as the proxy does."""

    def __init__(self, settings: Settings, clock: Clock, monotonic: Clock) -> None:
        self.transport = MemoryTransport()
        self.log = Lines()
        self.clock, self.monotonic = clock, monotonic
        self.service = Service(settings, self.transport, self.log, clock=clock, monotonic=monotonic)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[Answer, bytes]:
        """The answer and its body: a hit if there is one, else the answer to a flow."""
        fields = (("accept", ACCEPT), *((name.replace("_", "-"), value) for name, value in headers.items()))
        target = path if "?" in path or not path.startswith("/v2/") or path == "/v2/" else f"{path}?ns={REGISTRY}"
        service = self.service
        answer = service.answering.hit(method, target, fields)
        begun = answer is not None and answer.source is not None
        if answer is None:
            service.transfers.begin()
            begun = True
            answer = await service.answering.answer(method, target, fields, lambda: False)
            service.transfers.sending(answer)
        body = bytes(answer.body) + await read(answer)
        if begun:
            service.transfers.end()
            service.transfers.sent(answer)
        await self.landed()
        service.accounting.answered(method, answer, len(body), self.monotonic(), ("10.0.0.1", 1234))
        return answer, body

    async def landed(self) -> None:
        """Waits until no flight runs: an object is stored a moment after its client has all bytes."""
        while self.service.components.fetcher.flights:
            await asyncio.sleep(0.001)

    async def results(self, *paths: str) -> list[str]:
        """The X-Cache value of the answer to each path."""
        return [(await self.ask(path))[0].result for path in paths]

    async def stop(self) -> None:
        """Stops the service. It has no listener here."""
        await self.service.stop(nothing)

    def change(self, **changes: Any) -> None:
        """Reloads the service with changed settings of the registry."""
        old = self.service.live.settings
        self.service.reload(replace(old, registries={REGISTRY: replace(old.registries[REGISTRY], **changes)}))


async def nothing() -> None:
    """Does nothing: stops listening where there is no listener."""


async def read(answer: Answer) -> bytes:
    """All bytes of the answer's source; empty if it has none."""
    if answer.source is None:
        return b""
    body = bytearray()
    try:
        while piece := await answer.source.read():
            body += piece
    finally:
        answer.source.close()
    return bytes(body)


def settings_in(directory: Path) -> Settings:
    """Settings with one registry in memory, whose tags are fresh for a minute."""
    row = RegistrySettings(upstream=(f"http://{HOST}",), configured=True, tag_ttl=60.0, tag_ttls=(), auth="anonymous")
    return Settings(cache_dir=directory / "cache", registries={REGISTRY: row})

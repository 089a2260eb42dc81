"""What a process does that is to be killed, and what its successor is asked: a real store and fetcher under load."""

import asyncio
import logging
import os
import re
import time
from pathlib import Path
from random import Random

from cacheyd.cache.answer import BYPASS
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import Settings
from cacheyd.settings.values import Size
from cacheyd.store import room, upkeep
from cacheyd.store.store import Store
from tests.faults.crash_content import MAX_SIZE, Content, ContentUpstream
from tests.support.files import sizes

CLIENTS = 6
ACCEPT = f"{OCI_MANIFEST}, {OCI_INDEX}, */*"
# What a fetch goes on with: an object of a registry; a manifest has no suffix.
PARTIAL = re.compile(r"sha256-([0-9a-f]{64})(-[0-9a-f]{16})?")
# The index and its journal (bytes).
OTHER = 8 << 20
# In seconds: how soon a process has to serve, and how long it may take to be at rest.
READY, REST = 2.0, 20.0


class WrongError(Exception):
    """An invariant does not hold."""


class Raise(logging.Handler):
    """Errors in the log are failures of the test."""

    def emit(self, record: logging.LogRecord) -> None:
        """Ends the process, so that nothing can hide it."""
        if record.levelno >= logging.ERROR:
            text = logging.Formatter().format(record)
            os.write(2, f"logged: {text}\n".encode())
            os._exit(3)


class Run:
    """A store with its fetcher in this process, and clients of it. `clock` may be put forward."""

    def __init__(self, root: Path, content: Content, random: Random | None, durability: str) -> None:
        self.content = content
        self.ahead = 0.0
        settings = Settings(max_size=Size(MAX_SIZE), min_free=Size(), retries=2, durability=durability)
        self.store = Store(root, settings)
        self.fetcher = Fetcher(self.store, ContentUpstream(content, random), settings, monotonic=self.monotonic)
        self.store.in_flight = self.fetcher.in_flight
        self.cache = Cache(self.store, self.fetcher, settings)

    def monotonic(self) -> float:
        """The time, and what was added to it."""
        return time.monotonic() + self.ahead

    async def start(self) -> None:
        """Opens the store, in time."""
        before = time.monotonic()
        await self.store.start()
        if (took := time.monotonic() - before) > READY:
            raise WrongError(f"not ready for {took:.1f} s")

    async def stop(self) -> None:
        """Ends as the daemon does."""
        await self.fetcher.stop()
        await self.store.stop()

    async def get(self, digest: str, *, tag: str = "", wanted: tuple[int, int] | None = None) -> bool:
        """Asks as a client does; whether the answer was whole. Raises WrongError for a wrong byte."""
        data, media_type = self.content.objects[digest]
        kind = Kind.MANIFEST if media_type else Kind.BLOB
        ref = Reference("up.test", "lab/img", kind, tag or digest, None if tag else digest, "up.test")
        text = None if wanted is None else f"bytes={wanted[0]}-{wanted[1] - 1}"
        answer = await self.cache.answer(Request("GET", ref, (("Accept", ACCEPT),), (ACCEPT,), text))
        if answer.status not in (200, 206):
            return False
        body, whole = bytearray(answer.body), True
        if answer.source is not None:
            try:
                while piece := await answer.source.read():
                    body += piece
            except BodyBroken:
                whole = False
            finally:
                answer.source.close()
        whole = whole and answer.length in (None, len(body))
        expected = data[slice(*wanted)] if wanted is not None and answer.status == 206 else data
        if digest in self.content.liars and not (whole and answer.status == 200 and answer.result != BYPASS):
            return whole  # Of a blob that turns out to be wrong, clients have the beginning, as from the registry itself.
        if bytes(body) != (expected if whole else expected[: len(body)]):
            raise WrongError(f"{answer.result} {digest} {text}: {len(body)} bytes, not the right ones of {len(expected)}")
        return whole


def load(root: Path, content: Content, durability: str, seed: int) -> None:
    """Serves clients of a bad upstream until it is killed."""
    quicken()
    asyncio.run(_load(Run(root, content, Random(seed), durability), Random(seed)))


def quicken() -> None:
    """Background work that takes seconds otherwise happens all the time."""
    room.EVICT_EVERY = 0.004
    upkeep.FLUSH_EVERY, upkeep.SYNC_EVERY, upkeep.SAVE_USED_EVERY, upkeep.LOOK_EVERY = 0.003, 0.006, 0.01, 0.01


async def _load(run: Run, random: Random) -> None:
    await run.start()
    await asyncio.gather(*(_client(run, Random(random.random())) for _ in range(CLIENTS)))


async def _client(run: Run, random: Random) -> None:
    content = run.content
    while True:
        root = random.choice(content.roots)
        if random.random() < 0.5:
            tag = f"v{random.randrange(1000)}"
            root = content.tagged(tag)
            await run.get(root, tag=tag)
        for digest in content.tree(root):
            size = len(content.objects[digest][0])
            start = random.randrange(size)
            wanted = (start, random.randrange(start, size) + 1) if random.random() < 0.2 else None
            await run.get(digest, wanted=None if content.objects[digest][1] else wanted)
        await asyncio.sleep(0)


# After the crash


def check(root: Path, content: Content, durability: str) -> None:
    """Restarts on what a crash left: everything can be had, the bounds hold, the counters are right. Raises WrongError."""
    quicken()
    asyncio.run(_check(root, Run(root, content, None, durability)))


async def _check(root: Path, run: Run) -> None:
    content = run.content
    await run.start()
    first = asyncio.gather(*(run.get(digest) for digest in content.objects))
    await at_rest(run, root)
    # What is left of a liar's bytes is refused once, and then for a while.
    if len(failed := [digest for digest, whole in zip(content.objects, await first, strict=True) if not whole]) > len(
        content.liars
    ):
        raise WrongError(f"{failed} could not be had")
    run.ahead = 600.0
    for digest in content.objects:
        if not await run.get(digest):
            raise WrongError(f"{digest} could not be had")
    for tag in ("v1", "v2", "v3"):
        if not await run.get(content.tagged(tag), tag=tag):
            raise WrongError(f"{tag} could not be had")
    await at_rest(run, root)
    await run.stop()
    if problems := at_rest_on_disk(root, run.content):
        raise WrongError("; ".join(problems))


async def at_rest(run: Run, root: Path) -> None:
    """Until counters, bounds and files agree."""
    deadline = time.monotonic() + REST
    while problems := [*at_rest_on_disk(root, run.content), *_miscounted(run, root)]:
        if time.monotonic() > deadline:
            raise WrongError("; ".join(problems))
        await asyncio.sleep(0.005)


def _miscounted(run: Run, root: Path) -> list[str]:
    there = sizes(root / "blobs")
    manifests = sum(bool(run.content.objects[f"sha256:{path.name}"][1]) for path in there)
    counted = (run.store.size, run.store.counts[Kind.MANIFEST], run.store.counts[Kind.BLOB])
    real = (sum(there.values()), manifests, len(there) - manifests)
    return [] if counted == real and not len(run.fetcher.flights) else [f"counted {counted}, there are {real}"]


def at_rest_on_disk(root: Path, content: Content) -> list[str]:
    """What there is too much of, or of no use, below a directory that nobody fetches into."""
    problems = []
    blobs = {path.name: size for path, size in sizes(root / "blobs").items()}
    if sum(blobs.values()) > MAX_SIZE:
        problems.append(f"{sum(blobs.values())} bytes are stored")
    for path, size in sizes(root / "partial").items():
        name = PARTIAL.fullmatch(path.name)
        whole = len(content.objects[f"sha256:{name[1]}"][0]) if name else 0
        if name is None or name[1] in blobs or size > whole:
            problems.append(f"nobody will go on with {path.name} of {size} bytes")
    other = sum(size for path, size in sizes(root).items() if path.parent.name not in ("sha256", "partial"))
    if other > OTHER:
        problems.append(f"{other} bytes are neither objects nor partial files")
    return problems

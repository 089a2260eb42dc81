"""What the crash tests pull: the same images in each process, and an upstream that is slow, breaks off and sends rubbish."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from random import Random

from cacheyd.protocol.headers import HeaderList
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.images import Image, Index, make_image, make_index, random_bytes

# From what is kept in memory to what is streamed and mapped (bytes).
SIZES = (300, 9_000, 70_000, 200_000, 700_000, 1_500_000)
IMAGES = 8
# Holds about a third of it.
MAX_SIZE = 3 << 20


class Content:
    """Images and indexes by digest. Of some blobs, the liars, the upstream sends wrong bytes now and then."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.roots: list[str] = []
        for seed in range(IMAGES):
            image = make_image(layers=1 + seed % 3, layer_size=SIZES[seed % len(SIZES)], seed=9_000 + seed)
            twin = make_image(
                layers=1 + seed % 3, layer_size=SIZES[seed % len(SIZES)], seed=9_000 + seed, architecture="arm64"
            )
            self._add(make_index(image, twin) if seed % 2 else image)
        for number, size in enumerate(SIZES):
            self.roots.append(self._add_object(random_bytes(size, 9_500 + number), ""))
        self.liars = {self.roots[-1], self.roots[-3]}

    def _add(self, content: Image | Index) -> None:
        images = [image for _, image in content.images] if isinstance(content, Index) else [content]
        for image in images:
            for blob in image.blobs:
                self._add_object(blob.data, "")
            self._add_object(image.manifest, image.media_type)
        self.roots.append(self._add_object(content.manifest, content.media_type))

    def _add_object(self, data: bytes, media_type: str) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.objects[digest] = (data, media_type)
        return digest

    @cached_property
    def manifests(self) -> list[str]:
        """The roots that tags may name."""
        return [digest for digest in self.roots if self.objects[digest][1]]

    def tagged(self, tag: str) -> str:
        """What a tag means: each tag means something, always the same."""
        return self.manifests[int(hashlib.sha256(tag.encode()).hexdigest(), 16) % len(self.manifests)]

    def children(self, digest: str) -> list[str]:
        """What a pull asks for next."""
        data, media_type = self.objects[digest]
        if not media_type:
            return []
        manifest = json.loads(data)
        return [entry["digest"] for entry in manifest.get("manifests") or [manifest["config"], *manifest["layers"]]]

    def tree(self, digest: str) -> Iterator[str]:
        """The object and all below it."""
        yield digest
        for child in self.children(digest):
            yield from self.tree(child)


class Body:
    """A response that may stop for a while, break off, end early or have a wrong byte in it."""

    by_other_host = False

    def __init__(self, status: int, headers: HeaderList, data: bytes, random: Random | None, *, lies: bool) -> None:
        self.status, self.headers = status, headers
        self._data, self._random = memoryview(data), random
        self._at = 0
        self._lies = lies

    async def read(self) -> list[bytes]:
        """The next pieces; raises UpstreamBroken."""
        random = self._random
        if random is None:
            piece, self._at = bytes(self._data[self._at :]), len(self._data)
            return [piece] if piece else []
        await asyncio.sleep(random.choice((0, 0, 0, 0.001, 0.01)))
        chance = random.random()
        if chance < 0.01:
            raise UpstreamBroken("connection reset")
        if chance < 0.02 or self._at >= len(self._data):
            return []
        piece = bytes(self._data[self._at : self._at + random.choice((500, 16_384, 100_000, 600_000))])
        self._at += len(piece)
        if self._lies and random.random() < 0.1:
            piece = bytes([piece[0] ^ 0xFF]) + piece[1:]
        return [piece]

    def close(self) -> None:
        """Nothing to let go of."""


class ContentUpstream:
    """Answers from the content; without `random`, always right and at once."""

    def __init__(self, content: Content, random: Random | None) -> None:
        self._content, self._random = content, random

    async def open(self, request: UpstreamRequest) -> Body:
        """The head of a response; raises UpstreamBroken."""
        random = self._random
        await asyncio.sleep(random.choice((0, 0, 0.002)) if random else 0)
        if random and random.random() < 0.02:
            raise UpstreamBroken("connection refused")
        digest = request.ref.digest or self._content.tagged(request.ref.reference)
        data, media_type = self._content.objects[digest]
        headers = {"Content-Type": media_type or "application/octet-stream", "Docker-Content-Digest": digest}
        status, start = 200, 0
        wanted = next((value for name, value in request.headers if name.lower() == "range"), None)
        if wanted is not None and not (random and random.random() < 0.05):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
            if start >= len(data):
                return Body(416, (("Content-Range", f"bytes */{len(data)}"), ("Content-Length", "0")), b"", None, lies=False)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(data)}"
            data = data[start:end]
        headers["Content-Length"] = str(len(data))
        body = b"" if request.method == "HEAD" else data
        return Body(status, tuple(headers.items()), body, random, lies=digest in self._content.liars)

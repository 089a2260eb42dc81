"""Newer containerd fetches a layer in parallel pieces. It is not in Debian, so its requests are made here.

containerd 2.1 and later with `concurrent_layer_fetch_buffer` (core/remotes/docker/fetcher.go): the first request has
`Range: bytes=0-`, and what it tells of the size decides on the pieces. Each further one asks for `bytes=N-`, open-ended,
reads its piece and drops the connection. A 200 after a 206 is an error there, and one 5xx on a later piece is fatal.
"""

import hashlib
import http.client
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache
from tests.real.lab import registry_table
from tests.real.procs import wait_until
from tests.support.images import Image, make_image
from tests.support.origin import Origin

REGISTRY = "parallel.test:5000"
LAYER_SIZE = 24 << 20
CHUNK = 4 << 20
WORKERS = 4
READ = 64 << 10


@dataclass(frozen=True, slots=True)
class Piece:
    """What one request gave: status, Content-Range, and the bytes that were read before it was dropped."""

    status: int
    content_range: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Scene:
    origin: Origin
    cache: Cacheyd
    image: Image

    @property
    def layer(self) -> str:
        return self.image.layers[0].digest

    @property
    def data(self) -> bytes:
        return self.image.layers[0].data

    def fetch(self, start: int, size: int | None = None) -> Piece:
        """GET with `bytes=start-`, dropped after `size` bytes; None reads all of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.cache.port, timeout=30)
        try:
            target = f"/v2/lab/big/blobs/{self.layer}?ns={quote(REGISTRY, safe='')}"
            headers = {"Range": f"bytes={start}-", "Accept": "application/vnd.oci.image.layer.v1.tar, */*"}
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status == 206:
                assert response.headers["Content-Length"] == str(len(self.data) - start)
            left, got = len(self.data) if size is None else size, bytearray()
            while left > 0 and (piece := response.read(min(READ, left))):
                got += piece
                left -= len(piece)
            return Piece(response.status, response.headers.get("Content-Range", ""), bytes(got))
        finally:
            connection.close()

    def pull(self) -> tuple[bytes, list[Piece]]:
        """The layer put together as containerd does, and each piece."""
        size = len(self.data)
        starts = range(0, size, CHUNK)
        with ThreadPoolExecutor(WORKERS) as workers:
            pieces = list(workers.map(lambda start: self.fetch(start, min(CHUNK, size - start)), starts))
        return b"".join(piece.data for piece in pieces), pieces

    def upstream(self) -> list[str | None]:
        """The Range of each request for the layer that came to the registry."""
        return [request.header("Range") for request in self.origin.requests if request.path.endswith(self.layer)]

    def assert_whole(self, data: bytes, pieces: list[Piece]) -> None:
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == self.layer
        size = len(self.data)
        assert [(piece.status, piece.content_range) for piece in pieces] == [
            (206, f"bytes {start}-{size - 1}/{size}") for start in range(0, size, CHUNK)
        ]


@pytest.fixture(scope="module")
def image() -> Image:
    return make_image(layer_size=LAYER_SIZE, seed=4711)


@pytest.fixture
def scene(make_cache: MakeCache, image: Image) -> Iterator[Scene]:
    with Origin() as origin:
        origin.push("lab/big", "1.0", image)
        yield Scene(origin, make_cache(registry_table(REGISTRY, origin.url)), image)


def test_cold_pull_is_one_body_from_upstream(scene: Scene) -> None:
    data, pieces = scene.pull()
    scene.assert_whole(data, pieces)
    scene.cache.keeps({scene.layer})
    assert scene.upstream() == [None]


def test_warm_pull_asks_nobody(scene: Scene) -> None:
    scene.pull()
    scene.cache.keeps({scene.layer})
    data, pieces = scene.pull()
    scene.assert_whole(data, pieces)
    assert scene.upstream() == [None]


def test_pieces_of_a_slow_body_wait_for_it(scene: Scene) -> None:
    """A piece far ahead gets its head at once, and its bytes when they are here; still one body from upstream."""
    fault = scene.origin.fault("GET .*/blobs/", rate=12 << 20)
    data, pieces = scene.pull()
    fault.remove()
    scene.assert_whole(data, pieces)
    scene.cache.keeps({scene.layer})
    assert scene.upstream() == [None]


def test_the_rest_is_fetched_although_everybody_has_left(scene: Scene) -> None:
    """What containerd 2.1.0 to 2.1.2 send always: `bytes=0-`, here given up after the first piece."""
    first = scene.fetch(0, READ)
    assert (first.status, first.data) == (206, scene.data[:READ])
    scene.cache.keeps({scene.layer})
    assert scene.fetch(0).data == scene.data
    assert scene.upstream() == [None]


def test_nodes_in_parallel_pieces(scene: Scene) -> None:
    nodes = 5
    with ThreadPoolExecutor(nodes) as pool:
        for data, pieces in pool.map(lambda _: scene.pull(), range(nodes)):
            scene.assert_whole(data, pieces)
    assert scene.upstream() == [None]


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_broken_body_is_no_error_for_any_piece(scene: Scene, how: str) -> None:
    """Upstream breaks in the middle: resumed there, and no piece sees more than a pause."""
    scene.origin.fault("GET .*/blobs/", times=1, cut_after=10 << 20, how="fin" if how == "fin" else "rst")
    data, pieces = scene.pull()
    scene.assert_whole(data, pieces)
    scene.cache.keeps({scene.layer})
    whole, resumed = scene.upstream()
    assert whole is None
    match = re.fullmatch(r"bytes=(\d+)-", resumed or "")
    assert match
    assert 0 < int(match[1]) <= 10 << 20


def test_wrong_bytes_are_never_all_given(scene: Scene) -> None:
    """The last piece is held back until the digest is right; here it is not."""
    scene.origin.fault("GET .*/blobs/", corrupt_at=1 << 20)
    size = len(scene.data)
    got: list[int] = []
    lock = threading.Lock()

    def last_piece(_: int) -> None:
        try:
            piece = scene.fetch(size - CHUNK, CHUNK)
        except http.client.IncompleteRead as error:
            length = len(error.partial)
        else:
            length = len(piece.data) if piece.status == 206 else 0
        with lock:
            got.append(length)

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(last_piece, range(WORKERS)))
    assert all(length < CHUNK for length in got)
    wait_until(lambda: scene.cache.metric("cacheyd_flights") == 0, "it is given up")
    assert scene.cache.stored() == set()

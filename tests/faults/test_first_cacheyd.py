"""Bugs proven in the first cacheyd (in Go), each of them a rule here.

| bug | covered by |
| --- | --- |
| 1. a cut body, or a client that leaves, is stored as complete | test_cuts, test_flights "Clients that leave" |
| 2. no digest is checked | test_corruption |
| 3. a transport error is a crash | test_stalls, test_lengths (garbage) |
| 4. keys collide; one tag's sidecar is another tag's data | here, "Keys" |
| 5. concurrent writers corrupt the sidecar | here, "One tag, many writers" |
| 6. Accept is ignored | here, "Accept" |
| 7. HEAD on a miss is a GET, headers wait for the body; HEAD on a hit reads | test_flights |
| 8. Range: 200 on a hit, not kept on a miss | test_http, test_flights; the parallel fetch here |
| 9. Content-Encoding is lost on hits | test_lengths (gzip); that none is ever claimed here |
| 10. `ns` reaches any host, port and path; https to http | test_redirects |
| 11. 50 clients are 50 fetches; no timeouts; unwritable is an empty 200 | here; test_stalls; test_disks |
| 12. PUT is GET; no /v2/, eviction, sweep, graceful stop | test_http, test_disks, test_processes; eviction here |
"""

import gzip
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.scene import STREAMED, Scene, assert_whole, blob_target, eventually, manifest_target, registry_table
from tests.support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Blob, Image, make_image, make_index, random_bytes
from tests.support.origin import Origin

NS = "up.test"
MEBI = 1 << 20


# Keys (4)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("acme/app", "db-v1"), ("acme/app-db", "v1")),
        (("foo_bar", "1"), ("foo/bar", "1")),
        (("foo__bar", "1"), ("foo_bar", "1")),
        (("foo/bar", "1"), ("foo", "bar_1")),
        (("app", "v1.json"), ("app", "v1")),
        (("app", "v1.headers"), ("app", "v1")),
        (("app", "V1"), ("app", "v1")),
        (("app", "1.0"), ("app", "1_0")),
        (("app/manifests", "v1"), ("app", "v1")),
        (("app/manifests/v1", "v1"), ("app/manifests", "v1")),
        (("app/blobs", "v1"), ("app", "v1")),
    ],
)
def test_two_names_are_two_things(scene: Scene, one: tuple[str, str], two: tuple[str, str]) -> None:
    """Whichever comes first, and from the cache as from upstream."""
    images: dict[tuple[str, str], Image] = {}
    for seed, (name, tag) in enumerate((one, two)):
        images[name, tag] = make_image(seed=scene.number * 10 + seed)
        scene.origin().push(f"{scene.repo}/{name}", tag, images[name, tag])
    for result in ("MISS", "HIT"):
        for (name, tag), image in images.items():
            reply = scene.get(manifest_target(f"{scene.repo}/{name}", tag, scene.ns()))
            assert (reply.body, reply.cache) == (image.manifest, result)
            assert reply.header("Docker-Content-Digest") == image.digest


def test_the_same_name_in_two_registries_is_two_things(scene: Scene) -> None:
    one, two = scene.image(registry="reg"), scene.image(registry="flaky")
    for result in ("MISS", "HIT"):
        for registry, image in (("reg", one), ("flaky", two)):
            reply = scene.get(scene.tag_target("1.0", registry))
            assert (reply.body, reply.cache) == (image.manifest, result)


# One tag, many writers (5)


def test_a_tag_that_changes_under_many_readers(scene: Scene) -> None:
    """Each answer is one of the images whole, with its own digest; in the end it is the last one."""
    images = [make_image(seed=scene.number * 100 + seed, docker=bool(seed % 2)) for seed in range(12)]
    known = {image.digest: image for image in images}
    done = threading.Event()
    scene.origin().push(scene.repo, "latest", images[0])
    target = scene.tag_target("latest")

    def read() -> int:
        count = 0
        while not done.is_set():
            for method in ("GET", "HEAD"):
                reply = scene.get(target, method=method)
                assert reply.status == 200
                image = known[reply.header("Docker-Content-Digest") or ""]
                assert reply.header("Content-Type") == image.media_type
                assert reply.length == len(image.manifest)
                assert reply.body == (image.manifest if method == "GET" else b"")
                count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(8)]
        try:
            for image in images:
                scene.origin().push(scene.repo, "latest", image)
                eventually(lambda: scene.get(target).header("Docker-Content-Digest"), image.digest)
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)
    assert scene.get(target).body == images[-1].manifest


# Accept (6)


def test_a_client_gets_a_type_that_it_accepts(scene: Scene) -> None:
    """docker-registry serves an index to who takes it, and 404 to who does not; the cache does neither worse nor mix them."""
    index = make_index(make_image(seed=scene.number))
    scene.origin().push(scene.repo, "1.0", index)
    target = scene.tag_target("1.0")
    for _ in range(2):
        assert scene.get(target, {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}).header("Content-Type") == OCI_INDEX
        assert scene.get(target, {"Accept": DOCKER_MANIFEST}).status == 404


def test_a_tag_is_kept_for_each_accept(scene: Scene) -> None:
    """Upstream answers by Accept; so does the cache, from disk."""
    oci, docker = make_image(seed=scene.number), make_image(seed=scene.number, docker=True)
    answers = {OCI_MANIFEST: oci, DOCKER_MANIFEST: docker}
    for media_type, image in answers.items():
        scene.origin().push(scene.repo, "1.0", image)
        assert scene.get(scene.tag_target("1.0"), {"Accept": media_type}).body == image.manifest
    asked = len(scene.asked())
    for media_type, image in answers.items():
        reply = scene.get(scene.tag_target("1.0"), {"Accept": media_type})
        assert (reply.cache, reply.header("Content-Type"), reply.body) == ("HIT", media_type, image.manifest)
    assert len(scene.asked()) == asked


def test_every_accept_line_goes_upstream(scene: Scene) -> None:
    """podman sends six."""
    image = scene.image()
    lines = [OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST]
    with scene.cache.connect() as client:
        accept = "".join(f"Accept: {line}\r\n" for line in lines)
        client.send(f"GET {scene.tag_target('1.0')} HTTP/1.1\r\nHost: x\r\n{accept}\r\n".encode())
        assert client.read_reply().body == image.manifest
    (request,) = scene.asked()
    assert [part.strip() for line in request.header_all("Accept") for part in line.split(",")] == lines


# Ranges (8) and encodings (9)


def test_a_parallel_fetch_fills_the_cache(scene: Scene) -> None:
    """As containerd 2.1 does it: open-ended ranges at once, most of them dropped when their chunk is full."""
    blob = scene.blob(6 * STREAMED)
    starts = range(0, 6 * STREAMED, STREAMED)
    with ExitStack() as stack:
        clients = [stack.enter_context(scene.asking(blob, {"Range": f"bytes={start}-"})) for start in starts]
        for start, client in zip(starts, clients, strict=True):
            head = client.read_head()
            assert (head.status, head.length) == (206, len(blob.data) - start)
            assert client.read(STREAMED) == blob.data[start : start + STREAMED]
            client.leave()
    scene.assert_served(blob)
    assert scene.ranges(blob) == [None]


@pytest.mark.parametrize("accepted", ["gzip", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5", "identity"])
def test_a_gzip_layer_is_bytes_like_others(scene: Scene, accepted: str) -> None:
    """It is not decoded on the way, and no encoding is claimed that would make the client do so."""
    blob = Blob(gzip.compress(random_bytes(50_000, scene.number), mtime=0))
    scene.origin().add_blob(scene.repo, blob.data)
    for _ in range(2):
        assert_whole(scene.get(blob, {"Accept-Encoding": accepted}), blob)
    scene.wait_kept(blob)
    assert {request.header("Accept-Encoding") for request in scene.asked(blob)} == {"identity"}


# One fetch (11)


def test_fifty_clients_of_a_whole_image_are_one_fetch_of_each_part(scene: Scene) -> None:
    image = make_image(seed=scene.number, layers=2, layer_size=300_000)
    scene.origin().push(scene.repo, "1.0", image)

    def pull(_: int) -> Sequence[bytes]:
        with scene.cache.connect() as client:
            manifest = client.exchange(scene.tag_target("1.0")).body
            return [manifest, *(client.exchange(scene.target(blob)).body for blob in image.blobs)]

    with ThreadPoolExecutor(50) as pool:
        for pulled in pool.map(pull, range(50)):
            assert pulled == [image.manifest, *(blob.data for blob in image.blobs)]
    asked = [(request.method, request.path) for request in scene.asked()]
    assert len(asked) == len(set(asked)) == 1 + len(image.blobs)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_clients_that_come_while_a_tag_arrives_do_not_ask_again(scene: Scene, method: str) -> None:
    """Not even in the moment between the end of the fetch and what is known of the tag from then on."""
    images = [scene.image(f"v{number}") for number in range(20)]

    def ask(_: int) -> list[str | None]:
        with scene.cache.connect() as client:
            targets = [scene.tag_target(f"v{number}") for number in range(len(images))]
            return [client.exchange(target, method=method).header("Docker-Content-Digest") for target in targets]

    with ThreadPoolExecutor(50) as pool:
        for digests in pool.map(ask, range(50)):
            assert digests == [image.digest for image in images]
    asked = [request.path for request in scene.asked()]
    assert len(asked) == len(set(asked)) == len(images)


# Eviction (12)


@pytest.fixture
def small(make_daemon: MakeDaemon, origin: Origin) -> Daemon:
    """A cache for four and a half blobs of 1 MiB."""
    return make_daemon(registry_table(NS, origin.url), {"max_size": str(4 * MEBI + MEBI // 2), "pin": f"{NS}/app:pinned"})


def test_what_was_not_used_for_longest_makes_room(small: Daemon, origin: Origin) -> None:
    """Never what is pinned, and no client notices."""
    pinned = make_image(seed=1, layer_size=MEBI // 2)
    origin.push("app", "pinned", pinned)
    blobs = [Blob(random_bytes(MEBI, seed)) for seed in range(8)]
    for blob in blobs:
        origin.add_blob("app", blob.data)
    assert small.get(manifest_target("app", "pinned", NS)).body == pinned.manifest
    for part in pinned.blobs:
        assert_whole(small.get(blob_target("app", part.digest, NS)), part)
    with small.connect(receive_buffer=4096) as slow:
        for blob in blobs:
            assert_whole(small.get(blob_target("app", blob.digest, NS)), blob)
            eventually(lambda blob=blob: small.get(blob_target("app", blob.digest, NS), method="HEAD").cache, "HIT")  # type: ignore[misc]
            if blob is blobs[0]:
                slow.ask(blob_target("app", blob.digest, NS))
                head = slow.read_head()
                assert head.cache == "HIT"
        eventually(lambda: small.metric("cacheyd_store_bytes") < 4.5 * MEBI, True)
        eventually(lambda: small.has(blobs[0].digest), False)
        reply = slow.read_body(head)
        assert blobs[0].data.startswith(reply.body)
    assert small.has(blobs[-1].digest)
    assert small.metric("cacheyd_evictions_total") >= 3
    kept = small.stored()
    assert {pinned.digest, *(blob.digest for blob in pinned.blobs)} <= kept
    assert small.metric("cacheyd_store_objects") == len(kept)
    assert_whole(small.get(blob_target("app", blobs[0].digest, NS)), blobs[0])


def test_what_is_larger_than_the_cache_goes_through(small: Daemon, origin: Origin) -> None:
    blob = Blob(random_bytes(6 * MEBI, 9))
    origin.add_blob("app", blob.data)
    for _ in range(2):
        assert_whole(small.get(blob_target("app", blob.digest, NS)), blob)
    assert not small.has(blob.digest)
    eventually(lambda: small.partial(blob.digest), 0)

"""A day's bad luck in minutes: clients that leave, bodies cut or corrupt, evictions, reloads, kills and wipes at once.

No client ever gets wrong bytes as whole, nothing crashes, and in the end memory and descriptors are what they were.
`make soak` runs it for SOAK_SECONDS (300), with SEED as a failure printed it.
"""

import hashlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.daemon import CRASHES, Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.hostile.peers import MIB, RawOrigin, head, rss_anon, whole
from tests.real.procs import wait_until
from tests.support.images import Image, make_image

SECONDS = float(os.environ.get("SOAK_SECONDS") or 300)
SEED = int(os.environ.get("SEED") or random.randrange(1 << 32))
IMAGES, LAYERS, CLIENTS = 24, (30_000, 3 * MIB), 12
REPO, NS = "soak/img", "soak.test"
SETTINGS = {"max_size": "60MiB", "progress_timeout": "2s", "retries": "2", "tag_ttls": "*=1s"}


@dataclass
class Site:
    """What the origin has, and how often it goes wrong."""

    images: list[Image]
    tags: dict[str, Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blobs = {blob.digest: blob.data for image in self.images for blob in image.blobs}
        self.manifests = {image.digest: image for image in self.images}
        self.random = random.Random(SEED)

    def answer(self, connection: socket.socket, request: bytes) -> None:
        """Most answers are right; of the bodies 3 % are corrupt, 5 % are cut, 2 % stall."""
        while True:
            method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
            reference = target.rpartition("/")[2]
            if image := self.tags.get(reference) or self.manifests.get(reference):
                fields = (f"Docker-Content-Digest: {image.digest}", f"Content-Type: {image.media_type}")
                answer = head(200, f"Content-Length: {len(image.manifest)}", *fields)
                connection.sendall(answer + (b"" if method == "HEAD" else image.manifest))
            elif (data := self.blobs.get(reference)) is not None:
                if not self._send_blob(connection, request, data, method):
                    return
            else:
                connection.sendall(whole(b"{}", status=404))
                return
            request = b""
            while b"\r\n\r\n" not in request:
                if not (more := connection.recv(1 << 16)):
                    return
                request += more

    def _send_blob(self, connection: socket.socket, request: bytes, data: bytes, method: str) -> bool:
        start = int(found[1]) if (found := re.search(rb"(?i)\r\nrange: bytes=(\d+)-", request)) else 0
        if start >= len(data) > 0:
            connection.sendall(head(416, "Content-Length: 0", f"Content-Range: bytes */{len(data)}"))
            return True
        fields = [f"Content-Length: {len(data) - start}"]
        if found:
            fields.append(f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}")
        body = bytearray(data[start:])
        luck = self.random.random()
        if luck < 0.03:
            body[self.random.randrange(len(body))] ^= 1
        elif luck < 0.10:
            body = body[: self.random.randrange(len(body))]
        connection.sendall(head(206 if found else 200, *fields) + (b"" if method == "HEAD" else bytes(body)))
        if 0.08 <= luck < 0.10:
            time.sleep(3)
        return method == "HEAD" or len(body) == len(data) - start


class Clients:
    """Threads that pull at random; `wrong` is what none of them may ever see."""

    def __init__(self, daemon: Daemon, site: Site) -> None:
        self.daemon, self.site = daemon, site
        self.ended = threading.Event()
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._run, args=(SEED + n,), daemon=True) for n in range(CLIENTS)]

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.ended.is_set():
            try:
                self._pull(chance)
            except (OSError, http.client.HTTPException) as error:
                self.seen[type(error).__name__] += 1
                time.sleep(0.01)
            except Exception as error:
                self.wrong.append(repr(error))
                return

    def _pull(self, chance: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=20)
        try:
            for _ in range(chance.randrange(1, 8)):
                image = chance.choice(self.site.images)
                tag = chance.choice(list(self.site.tags))
                match chance.randrange(6):
                    case 0:
                        self._ask(connection, "HEAD", manifest_target(REPO, tag, NS), {}, None)
                    case 1:
                        self._ask(connection, "GET", manifest_target(REPO, tag, NS), {}, None)
                    case 2:
                        self._ask(connection, "GET", manifest_target(REPO, image.digest, NS), {}, image.manifest)
                    case _:
                        self._blob(connection, chance, image)
        finally:
            connection.close()

    def _blob(self, connection: http.client.HTTPConnection, chance: random.Random, image: Image) -> None:
        blob = chance.choice(image.blobs)
        target = blob_target(REPO, blob.digest, NS)
        if chance.random() < 0.1:
            # Leaves in the middle.
            connection.request("GET", target)
            connection.getresponse().read(1000)
            raise ConnectionAbortedError
        if chance.random() < 0.2 and len(blob.data) > 10:
            first = chance.randrange(len(blob.data) - 1)
            last = chance.randrange(first, len(blob.data))
            self._ask(connection, "GET", target, {"Range": f"bytes={first}-{last}"}, blob.data, blob.data[first : last + 1])
        else:
            self._ask(connection, "GET", target, {}, blob.data)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        data: bytes | None,
        part: bytes | None = None,
    ) -> None:
        connection.request(method, target, headers={"Accept": "*/*", **headers})
        response = connection.getresponse()
        body = response.read()  # IncompleteRead where it ended early: no wrong bytes, an error.
        self.seen[f"{response.status} {response.headers.get('X-Cache')}"] += 1
        if response.status not in (200, 206) or method == "HEAD":
            return
        if data is None:
            data = self.site.manifests[response.headers["Docker-Content-Digest"]].manifest
        # A piece that passes through is upstream's own, and only the whole can be verified.
        if response.headers.get("X-Cache") == "BYPASS" and response.status == 206:
            return
        if body != (part if response.status == 206 else data):
            digest = hashlib.sha256(body).hexdigest()
            self.wrong.append(f"{response.status} {response.headers.get('X-Cache')} {target} {headers}: {digest}")


def misfortunes(daemon: Daemon, site: Site, seconds: float, *, kills: bool) -> None:
    """Reloads, moved tags, wipes and, if wanted, kills."""
    chance, until = random.Random(SEED), time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)
        match chance.randrange(20 if kills else 18):
            case 0 | 1 | 2:
                os.kill(daemon.pid, signal.SIGHUP)
            case 3:
                shutil.rmtree(daemon.cache_dir, ignore_errors=True)
            case 4 | 5 | 6 | 7:
                site.tags[chance.choice(list(site.tags))] = chance.choice(site.images)
            case 18 | 19:
                daemon.kill()
                daemon.start()
            case _:
                pass


def at_rest(daemon: Daemon, settle: float) -> tuple[int, int]:
    """Anonymous memory in bytes and descriptors, when nothing is under way."""
    wait_until(lambda: daemon.metric("cacheyd_flights") == 0, "no flights", seconds=60)
    time.sleep(settle)
    return rss_anon(daemon.pid), daemon.descriptors()


def soak(directory: Path, seconds: float, *, growth: float, settle: float) -> None:
    """So many seconds of it; memory at the end is at most `growth` times what it was before the last third."""
    site = Site([make_image(seed=n, layers=2, layer_size=LAYERS[n % len(LAYERS)]) for n in range(IMAGES)])
    site.tags.update({f"v{number}": image for number, image in enumerate(site.images[:8])})
    print(f"SEED={SEED}")
    with RawOrigin(site.answer) as origin, Daemon(directory, registry_table(NS, origin.url), SETTINGS) as daemon:

        def work(seconds: float, *, kills: bool) -> Clients:
            clients = Clients(daemon, site)
            for thread in clients.threads:
                thread.start()
            misfortunes(daemon, site, seconds, kills=kills)
            clients.ended.set()
            for thread in clients.threads:
                thread.join(60)
            assert not clients.wrong, clients.wrong[:5]
            print(dict(clients.seen))
            assert clients.seen["200 MISS"]
            assert clients.seen["200 HIT"]
            return clients

        work(seconds / 2, kills=True)
        daemon.restart()
        work(seconds / 6, kills=False)
        before = at_rest(daemon, settle)
        work(seconds / 3, kills=False)
        after = at_rest(daemon, settle)
        print(f"anonymous memory {before[0] / 1e6:.0f} MB, then {after[0] / 1e6:.0f} MB; descriptors {before[1]}, {after[1]}")
        assert after[0] < before[0] * growth
        assert after[1] <= before[1] + 8
        daemon.stored()
        assert daemon.stop() == 0
        with suppress(FileNotFoundError):
            lines = daemon.process.log_file.read_text("utf-8", "replace").splitlines()
            assert not [line for line in lines if any(crash in line for crash in CRASHES)]


def test_a_short_one(tmp_path: Path) -> None:
    soak(tmp_path, 9, growth=1.5, settle=0.5)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(tmp_path: Path) -> None:
    soak(tmp_path, SECONDS, growth=1.1, settle=10)

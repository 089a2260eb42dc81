"""The store against everything at once: pulls, hits, tags, pins, eviction, wipes, changed files, restarts and crashes.

A long run: `HYPOTHESIS_PROFILE=soak pytest tests/unit/test_store_model.py`.
"""

import asyncio
import copy
import gc
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.mapped import Mapped
from cacheyd.store.records import Stored, TagVariant
from cacheyd.store.store import Store

MACHINE = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
PROFILES = {
    "default": settings(MACHINE, max_examples=60, stateful_step_count=25, derandomize=True, database=None),
    "soak": settings(MACHINE, max_examples=3000, stateful_step_count=80),
}


# Content: blobs, images that share layers, indexes of them, and one index of indexes


class Thing:
    """An object of the registry; `needs` are the digests that it refers to."""

    def __init__(self, name: str, data: bytes, media_type: str = "", *needs: "Thing") -> None:
        self.name = name
        self.data = data
        self.digest = digest_of(data)
        self.media_type = media_type
        self.needs = tuple(thing.digest for thing in needs)

    def __repr__(self) -> str:
        return self.name


def _blob(name: str, size: int) -> Thing:
    return Thing(name, random.Random(name).randbytes(size))


def _manifest(name: str, config: Thing, *layers: Thing) -> Thing:
    content: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {"digest": config.digest}}
    content["layers"] = [{"digest": layer.digest} for layer in layers]
    return Thing(name, json.dumps(content).encode(), OCI_MANIFEST, config, *layers)


def _index(name: str, *manifests: Thing) -> Thing:
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": thing.digest} for thing in manifests]}
    return Thing(name, json.dumps(content).encode(), OCI_INDEX, *manifests)


CONFIGS = [_blob(f"config{n}", 300 + n) for n in range(5)]
LAYERS = [_blob(f"layer{n}", size) for n, size in enumerate((0, 20_000, 30_000, 70_000, 90_000, 40_000))]
IMAGES = [
    _manifest("image0", CONFIGS[0], LAYERS[1], LAYERS[3]),
    _manifest("image1", CONFIGS[1], LAYERS[1], LAYERS[4]),
    _manifest("image2", CONFIGS[2], LAYERS[1], LAYERS[2], LAYERS[3]),
    _manifest("image3", CONFIGS[3], LAYERS[5], LAYERS[0]),
    _manifest("image4", CONFIGS[4], LAYERS[5]),
]
INDEXES = [_index("index0", IMAGES[0], IMAGES[1]), _index("index1", IMAGES[1], IMAGES[2], IMAGES[3])]
INDEXES.append(_index("indexes", INDEXES[0], IMAGES[4]))
POOL = {thing.digest: thing for thing in (*CONFIGS, *LAYERS, *IMAGES, *INDEXES)}
ROOTS = [*IMAGES, *INDEXES]


def closure(digest: str) -> set[str]:
    """An object and all that it needs."""
    return {digest}.union(*(closure(need) for need in POOL[digest].needs))


things = st.sampled_from(list(POOL.values()))
blobs = st.sampled_from([thing for thing in POOL.values() if not thing.media_type])
roots = st.sampled_from(ROOTS)
repositories = st.sampled_from(["docker.io/a", "docker.io/b", "ghcr.io/c"])
tags = st.sampled_from(["1", "2", "pinned"])
pins = st.sampled_from(
    ["", "docker.io/a:pinned", "*:pinned", f"*@{INDEXES[0].digest}", f"*@{IMAGES[1].digest}", "docker.io/b@*"]
)
sizes = st.sampled_from(["", "60kB", "150kB", "250kB", "400kB"])


class WatchedStore(Store):
    """A store that says what it evicts, when it does."""

    def __init__(self, root: Path, settings: Settings, *, clock: "Clock") -> None:
        super().__init__(root, settings, clock=clock, monotonic=clock.monotonic)
        self.wrong: list[str] = []
        self._unlink_all = self.objects.unlink_all
        self.objects.unlink_all = self._watch  # type: ignore[method-assign]

    async def _watch(self, removed: Sequence[Stored], reason: str) -> None:
        for stored in removed:
            assert stored.digest not in self.catalog.objects
            if self.catalog.parents(stored.digest):
                self.wrong.append(f"{stored} went before what needs it ({reason})")
            if reason != "test" and self.catalog.is_pinned(stored.digest):
                self.wrong.append(f"{stored} is pinned and went ({reason})")
            if reason != "test" and stored.digest in self.partials.reservations.expected():
                self.wrong.append(f"{stored} is on its way in and went ({reason})")
        await self._unlink_all(removed, reason)


class Clock:
    """Time that jumps; `monotonic` goes on."""

    def __init__(self) -> None:
        self.now = time.time()
        self.passed = 1000.0

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.passed

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.passed += max(0.0, seconds)


class StoreMachine(RuleBasedStateMachine):
    """Each rule is a step; what must hold is looked at after each."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="cacheyd-model-"))
        self.root = self.folder / "cache"
        self.clock = Clock()
        self.flags = {"min_free": "0", "max_size": "250kB"}
        self.tags: dict[str, TagVariant] = {}
        self.saved_tags: dict[str, TagVariant] = {}
        self.coming: dict[str, int] = {}
        self.readers: list[tuple[str, Mapped]] = []
        self.steps = 0

    @initialize()
    def begin(self) -> None:
        self._start()

    def teardown(self) -> None:
        with suppress(AttributeError):
            self.runner.run(self.store.stop())
        self.runner.close()
        self.readers.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Beginning and end of the process

    def _start(self) -> None:
        self.store = WatchedStore(self.root, load(environ={}, flags=self.flags), clock=self.clock)
        began = time.monotonic()
        self.runner.run(self.store.start(background=False))
        assert time.monotonic() - began < 10, "a start that waits keeps everybody waiting"

    def _end(self, *, crashed: bool = False) -> None:
        """The process ends; diskcache's connections, one for each thread, end with it."""
        self._abandon() if crashed else self.runner.run(self.store.stop())
        gc.collect()

    def _abandon(self) -> None:
        self.store.upkeep.threads.stop()
        self.store.upkeep.index.close()
        self.store.upkeep.watch.lock.release()

    def _has_index(self) -> bool:
        return self.store.upkeep.index.usable and self.store.upkeep.index.is_there()

    def _saved(self) -> None:
        """All that is known is on disk, unless there is no index there."""
        if self._has_index():
            self.saved_tags = dict(self.tags)

    def _begins_with_what_is_whole(self) -> None:
        whole = self._whole()
        self._start()
        assert set(self.store.catalog.objects) == whole
        self._is_as_on_disk()

    @rule()
    def restart(self) -> None:
        before = self._known()
        lost = not self._has_index()
        self._end()
        self._begins_with_what_is_whole()
        if lost:
            self._read_tags()
        else:
            after = self._known()
            assert before == {digest: after[digest] for digest in before}
            self._forget_old_tags()
        self._saved()

    def _known(self) -> dict[str, Stored]:
        """Copies of what is found. A start takes no use for one in the future, where the clock has gone back."""
        found = [stored for digest in POOL if (stored := self.store.objects.find(digest)) is not None]
        return {one.digest: replace(one, needs=(), used=min(one.used, self.clock.now)) for one in found}

    @rule()
    def crash(self) -> None:
        lost = not self._has_index()
        self._end(crashed=True)
        self._begins_with_what_is_whole()
        self.tags = dict(self.saved_tags)
        if lost:
            self._read_tags()
        self._forget_old_tags()

    @rule(how=st.sampled_from(["gone", "rubbish", "cut", "empty", "a directory"]), crashed=st.booleans())
    def lose_the_index(self, how: str, crashed: bool) -> None:
        self._end(crashed=crashed)
        database = self.root / "index" / "cache.db"
        with suppress(FileNotFoundError, IsADirectoryError):
            if how == "gone":
                shutil.rmtree(self.root / "index")
            elif how == "rubbish":
                database.write_bytes(b"rubbish" * 1000)
            elif how == "cut":
                os.truncate(database, database.stat().st_size // 2)
            elif how == "empty":
                os.truncate(database, 0)
            elif how == "a directory":
                database.unlink()
                database.mkdir()
        self._begins_with_what_is_whole()
        self._read_tags()
        self.saved_tags = dict(self.tags)

    # Clients

    async def _fetch(self, thing: Thing, repository: str) -> None:
        """What a request does."""
        store, digest = self.store, thing.digest
        if store.objects.find(digest) is None and await store.objects.recover(digest) is None:
            if thing.media_type:
                await self._put(thing, repository)
            elif digest not in self.coming:
                await self._fly(thing, repository)
        if (stored := store.objects.find(digest)) is not None:
            store.objects.add_repository(stored, repository)
            store.objects.touch(digest)

    async def _put(self, thing: Thing, repository: str) -> None:
        if self.store.health.writable and await self.store.bounds.make(len(thing.data)):
            stored = await self.store.put(thing.digest, thing.data, thing.media_type, within=repository)
            assert stored is not None
            assert stored.media_type == thing.media_type

    async def _fly(self, thing: Thing, repository: str, upto: int | None = None, wrong: bytes = b"") -> None:
        self.coming[thing.digest] = 0
        self.store.partials.reservations.expect(thing.digest)
        partial = await self.store.partials.open(thing.digest, "docker.io")
        try:
            if not self.store.bounds.can_take(len(thing.data) - partial.size):
                return
            while partial.size < len(thing.data[:upto]) and await self.store.bounds.make(25_000, unverified=True):
                self.coming[thing.digest] = len(thing.data) - partial.size
                await self.store.partials.append(partial, [thing.data[partial.size : partial.size + 25_000][:upto]])
            self.coming[thing.digest] = 0
            if wrong:
                await self.store.partials.append(partial, [wrong])
            if partial.verified():
                assert digest_of(partial.read(0, partial.size)) == thing.digest
                await self.store.commit(partial, within=repository)
            elif upto is None and partial.size >= len(thing.data):
                await self.store.partials.discard(partial)
        finally:
            self.store.partials.release(partial)
            del self.coming[thing.digest]
            self.store.partials.reservations.expect_no_more(thing.digest)

    async def _pull(self, root: Thing, repository: str, order: random.Random) -> None:
        await self._fetch(root, repository)
        needs = list(root.needs)
        order.shuffle(needs)
        for digest in needs:
            await self._pull(POOL[digest], repository, order)

    @rule(root=roots, repository=repositories, order=st.randoms(use_true_random=False))
    def pull(self, root: Thing, repository: str, order: random.Random) -> None:
        self.runner.run(self._pull(root, repository, order))

    @rule(root=roots, repository=repositories, others=st.lists(things, max_size=4))
    def pull_beside_others(self, root: Thing, repository: str, others: list[Thing]) -> None:
        async def run() -> None:
            await asyncio.gather(
                self._pull(root, repository, random.Random(1)),
                *(self._fetch(thing, repository) for thing in others),
                self.store.bounds.keep(),
                self.store.upkeep.reconciliation.reconcile(),
                self.store.upkeep.journal.save(),
            )
            await self.store.bounds.keep()

        self.runner.run(run())
        self._saved()

    @rule(thing=things, repository=repositories)
    def fetch(self, thing: Thing, repository: str) -> None:
        self.runner.run(self._fetch(thing, repository))

    @rule(thing=blobs, repository=repositories, upto=st.integers(0, 80_000))
    def break_off(self, thing: Thing, repository: str, upto: int) -> None:
        if self.store.objects.find(thing.digest) is None:
            self.runner.run(self._fly(thing, repository, upto))

    @rule(thing=blobs, repository=repositories)
    def send_wrong_bytes(self, thing: Thing, repository: str) -> None:
        if self.store.objects.find(thing.digest) is None:
            self.runner.run(self._fly(thing, repository, wrong=b"wrong"))

    @rule(thing=things)
    def hit(self, thing: Thing) -> None:
        if self.store.objects.find(thing.digest) is not None:
            self.store.objects.touch(thing.digest)

    @rule(thing=blobs)
    def begin_to_read(self, thing: Thing) -> None:
        stored = self.store.objects.find(thing.digest)
        body = self.store.objects.body(stored) if stored else None
        if isinstance(body, Mapped):
            self.readers.append((thing.digest, body))

    # Tags, pins, bounds

    @rule(repository=repositories, tag=tags, root=roots)
    def set_tag(self, repository: str, tag: str, root: Thing) -> None:
        variant = TagVariant(frozenset({OCI_INDEX}), root.digest, root.media_type, len(root.data), self.clock.now)
        registry, _, name = repository.partition("/")
        self.store.tags.set(registry, name, tag, variant)
        self.tags[f"{repository}:{tag}"] = variant
        self._expect_tags()

    @rule(repository=repositories, tag=tags)
    def delete_tag(self, repository: str, tag: str) -> None:
        registry, _, name = repository.partition("/")
        self.store.tags.delete(registry, name, tag)
        self.tags.pop(f"{repository}:{tag}", None)
        self._expect_tags()

    def _expect_tags(self) -> None:
        assert {name: variants[0] for name, variants in self.store.catalog.tags.items()} == self.tags

    def _read_tags(self) -> None:
        """What is left of them where the index was lost."""
        found = {name: variants[0] for name, variants in self.store.catalog.tags.items()}
        assert found.items() <= self.saved_tags.items() | self.tags.items()
        self.tags = found

    @rule(pin=pins, size=sizes, age=st.sampled_from(["0s", "1h"]), durability=st.sampled_from(["fast", "fsync"]))
    def configure(self, pin: str, size: str, age: str, durability: str) -> None:
        self.flags = {"min_free": "0", "max_size": size, "pin": pin, "max_age": age, "durability": durability}
        self.store.live.change(load(environ={}, flags=self.flags))

    @rule(size=st.integers(0, 300_000))
    def make_room(self, size: int) -> None:
        if self.runner.run(self.store.bounds.make(size)):
            assert not self.store.bounds.space.missing(size)
            limit = self.store.settings.max_size.of(0)
            assert not limit or self.store.size + self.store.partials.size + size <= limit

    @rule()
    def keep_bounds(self) -> None:
        self.clock.passed += 10
        self.runner.run(self.store.bounds.keep())
        self._is_within_bounds()

    def _is_within_bounds(self) -> None:
        """Beyond them is only what may not go."""
        if self.store.bounds.space.missing():
            assert list(self.store.catalog.roots()) == []
            assert self.store.partials.idle == {}

    @rule(seconds=st.sampled_from([1.0, 60.0, 4000.0, 90_000.0, -10.0, -90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # Others in the directory

    @rule(part=st.sampled_from(["", "blobs", "blobs/sha256", "partial", "index", "lock", "oci-layout"]))
    def wipe(self, part: str) -> None:
        path = self.root / part
        path.unlink(missing_ok=True) if part in ("lock", "oci-layout") else shutil.rmtree(path, ignore_errors=True)

    @rule(thing=things)
    def wipe_one(self, thing: Thing) -> None:
        self._file(thing).unlink(missing_ok=True)

    @precondition(lambda self: not self.readers)
    @rule(thing=things, how=st.sampled_from(["cut", "longer", "other", "touched", "replaced", "replaced by another"]))
    def change(self, thing: Thing, how: str) -> None:
        file = self._file(thing)
        if not file.exists():
            return
        data = file.read_bytes()
        if how == "touched":
            os.utime(file, ns=(1, time.time_ns()))
            return
        if how.startswith("replaced"):
            file.unlink()
        other = bytes(byte ^ 1 for byte in data)
        file.write_bytes({"cut": data[:-1], "longer": data + b"!", "replaced": data}.get(how, other))
        os.utime(file, ns=(1, time.time_ns()))

    @precondition(lambda self: not self.readers)
    @rule(thing=things)
    def rot(self, thing: Thing) -> None:
        """Bytes that turn on the disk are found by looking at all of them."""
        file, stored = self._file(thing), self.store.objects.find(thing.digest)
        if stored is None or not stored.size:
            return
        file.write_bytes(bytes(byte ^ 1 for byte in thing.data))
        os.utime(file, ns=(stored.stamp, stored.stamp))
        assert self._verify() == [thing.digest]
        assert not file.exists()

    @rule(thing=things, right=st.booleans())
    def put_a_file_there(self, thing: Thing, right: bool) -> None:
        file = self._file(thing)
        if file.parent.exists() and not file.exists():
            file.write_bytes(thing.data if right else b"wrong")

    @rule(name=st.sampled_from(["rubbish", "sha256-" + "0" * 64, "sha256-" + "1" * 64 + "-" + "2" * 16]))
    def put_a_partial_there(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.root / "partial" / name).write_bytes(bytes(10_000))

    @precondition(lambda self: self.readers)
    @rule()
    def end_reading(self) -> None:
        self.readers.clear()

    # Upkeep

    @rule()
    def save(self) -> None:
        self.runner.run(self.store.upkeep.journal.save())
        self._saved()

    @rule()
    def reconcile(self) -> None:
        whole = self._whole()
        self.runner.run(self.store.upkeep.reconciliation.reconcile())
        assert set(self.store.catalog.objects) == whole
        self._forget_old_tags()
        self._is_as_on_disk()

    @rule()
    def collect(self) -> None:
        self.clock.passed += 10
        found = self.runner.run(self.store.collect())
        assert found["objects"] == len(self.store.catalog.objects)
        self._forget_old_tags()
        self._saved()
        self._is_within_bounds()
        self._is_as_on_disk()

    @rule()
    def verify(self) -> None:
        self._verify()

    def _verify(self) -> list[str]:
        seen: list[tuple[int, int, int]] = []
        found = self.runner.run(self.store.upkeep.scrub.verify(lambda *now: seen.append(now)))
        assert [done for done, _, _ in seen] == list(range(1, found["checked"] + 1))
        for digest in self.store.catalog.objects:
            assert digest_of(Path(self.store.blobs.path(digest)).read_bytes()) == digest
        dropped: list[str] = found["dropped"]
        return dropped

    def _forget_old_tags(self) -> None:
        """Tags whose image is not there and that nobody asked for go with time."""
        there = {name: variants[0] for name, variants in self.store.catalog.tags.items()}
        for name in self.tags.keys() - there.keys():
            variant = self.tags.pop(name)
            assert variant.digest not in self.store.catalog.objects
            assert not 0 <= self.clock.now - variant.checked < 24 * 3600
        self._expect_tags()

    # What must hold

    def _file(self, thing: Thing) -> Path:
        return Path(self.store.blobs.path(thing.digest))

    def _whole(self) -> set[str]:
        """What the directory has, by its bytes."""
        found = {digest: self._file(thing) for digest, thing in POOL.items()}
        return {digest for digest, file in found.items() if file.exists() and digest_of(file.read_bytes()) == digest}

    def _is_as_on_disk(self) -> None:
        """Catalogue and directory are the same."""
        objects = self.store.catalog.objects
        files = {digest: (size, stamp) for digest, size, stamp in self.store.blobs.scan()}
        assert files == {digest: (stored.size, stored.stamp) for digest, stored in objects.items()}
        assert self._whole() == set(objects)
        partials = self.root / "partial"
        assert sum(file.stat().st_size for file in partials.glob("*")) == self.store.partials.size

    @invariant()
    def nothing_wrong_was_evicted(self) -> None:
        assert self.store.wrong == []

    @invariant()
    def what_is_found_has_its_bytes(self) -> None:
        self.steps += 1
        for digest in list(POOL)[self.steps % 3 :: 3]:
            stored = self.store.objects.find(digest)
            body = self.store.objects.body(stored) if stored is not None else None
            if stored is not None and body is not None:
                data = bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body
                assert digest_of(data) == digest
                assert stored.size == len(data)
                assert stored.media_type in ("", POOL[digest].media_type)

    @invariant()
    def readers_are_not_disturbed(self) -> None:
        for digest, mapped in self.readers:
            assert f"sha256:{sha256(mapped.view(0, mapped.size)).hexdigest()}" == digest

    @invariant()
    def the_counts_are_right(self) -> None:
        objects = self.store.catalog.objects.values()
        assert self.store.size == sum(stored.size for stored in objects)
        assert self.store.counts == {
            kind: sum(stored.kind is kind for stored in objects) for kind in Kind if kind in self.store.counts
        }

    @invariant()
    def images_hold_together(self) -> None:
        objects = self.store.catalog.objects
        for digest, stored in objects.items():
            if not POOL[digest].media_type:
                continue
            if POOL[digest].media_type == OCI_INDEX:
                near = {need for need in POOL[digest].needs if need in objects and self._are_near(stored, objects[need])}
                assert near <= set(stored.needs) <= set(POOL[digest].needs)
            else:
                assert stored.needs == POOL[digest].needs
            for need in stored.needs:
                assert digest in self.store.catalog.parents(need)

    def _are_near(self, index: Stored, manifest: Stored) -> bool:
        """Whether the two were seen in one repository, or somewhere that nobody knows."""
        return not (index.within and manifest.within) or not set(index.within).isdisjoint(manifest.within)

    @invariant()
    def everything_could_go(self) -> None:
        catalog = copy.deepcopy(self.store.catalog)
        catalog.pin(())
        gone = [stored.digest for stored in catalog.take_oldest(2**62, 10**6)]
        assert sorted(gone) == sorted(self.store.catalog.objects)
        for at, digest in enumerate(gone):
            parents = self.store.catalog.parents(digest)
            assert len(parents) != 1 or parents[0] in gone[at:]

    @invariant()
    def the_disk_is_not_taken_for_broken(self) -> None:
        assert self.store.health.write_errors == 0

    @invariant()
    def partial_files_are_few(self) -> None:
        assert len(list((self.root / "partial").glob("*"))) <= len(POOL) + 3


def test_whatever_happens_to_the_store() -> None:
    logging.getLogger("cacheyd").setLevel(logging.CRITICAL)
    # What other tests left need not be looked through each time that a process ends.
    gc.collect()
    gc.freeze()
    try:
        run_state_machine_as_test(StoreMachine, settings=PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")])
    finally:
        gc.unfreeze()
        logging.getLogger("cacheyd").setLevel(logging.NOTSET)

"""Warming: what is asked of a registry, what is kept, and what is told, with the test origin and a real store."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin.tree import Reason, told
from cacheyd.admin.warm import Order, parse_order, warm
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.observe.metrics import Metrics
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import parse_platform
from cacheyd.protocol.reference import Kind
from cacheyd.settings.load import load
from cacheyd.store.store import Store
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.origins import Origins
from tests.support.artifacts import (
    ARTIFACT_MANIFEST,
    Artifact,
    artifact,
    buildkit_cache,
    descriptor,
    encoded,
    listing,
    tag_of,
)
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Blob, Image, Index, digest_of, make_image, make_index
from tests.support.origin import Origin
from tests.support.transport import PlainTransport

REPO = "acme/app"
AMD64 = parse_platform("linux/amd64")


class Scene:
    """A cache in front of the test origin."""

    def __init__(self, store: Store, origin: Origin, directory: Path, **flags: str) -> None:
        self.store, self.origin = store, origin
        self.registry = "registry.test"
        config = directory / "c.toml"
        config.write_text(f'[registries."{self.registry}"]\nupstream = "{origin.url}"\n')
        settings = load(file=str(config), environ={}, flags={"retries": "0", "head_timeout": "5s"} | flags)
        store.settings = settings
        self.transport = PlainTransport()
        origins = Origins(self.transport, Authorizer(settings), settings, Metrics(settings.registries))
        self.cache = Cache(store, Fetcher(store, origins, settings), settings)

    async def warm(
        self,
        *names: str,
        platforms: tuple[str, ...] | None = ("linux/amd64",),
        login: str = "",
        layers: int = 4,
        referrers: bool = False,
    ) -> list[Any]:
        images = tuple(parse_image(f"{self.registry}/{name}") for name in names or (f"{REPO}:1.0",))
        wanted = None if platforms is None else tuple(map(parse_platform, platforms))
        order = Order(images, wanted, {str(image): login for image in images if login}, layers, referrers)
        return [event async for event in warm(self.cache, self.transport, order)]

    def asked(self, method: str = "GET") -> list[str]:
        """The last part of each path that was answered 200."""
        return [r.path.rpartition("/")[2] for r in self.origin.requests if r.method == method and r.path != "/token"]

    def has(self, *digests: str) -> list[bool]:
        return [self.store.find(digest) is not None for digest in digests]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "cache")
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
def scene(store: Store, origin: Origin, tmp_path: Path) -> Scene:
    return Scene(store, origin, tmp_path)


def two_platforms(layers: int = 2, layer_size: int = 2048) -> tuple[Image, Image, Index]:
    amd64 = make_image(layers=layers, layer_size=layer_size, seed=1)
    arm64 = make_image(layers=layers, layer_size=layer_size, seed=2, architecture="arm64")
    return amd64, arm64, make_index(amd64, arm64)


def by_event(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event["event"] == kind]


async def test_the_wanted_platform_is_warmed_and_no_other(scene: Scene) -> None:
    amd64, arm64, index = two_platforms()
    scene.origin.push(REPO, "1.0", index)

    events = await scene.warm()

    assert all(scene.has(index.digest, amd64.digest, *(blob.digest for blob in amd64.blobs)))
    assert not any(scene.has(arm64.digest, *(blob.digest for blob in arm64.blobs)))
    assert events[0] == {"event": "image", "image": f"registry.test/{REPO}:1.0"}
    size = sum(len(blob.data) for blob in amd64.blobs)
    assert by_event(events, "done") == [
        {"event": "done", "image": f"registry.test/{REPO}:1.0", "digest": index.digest, "bytes": size}
    ]
    assert {event["digest"] for event in by_event(events, "layer-done")} == {blob.digest for blob in amd64.blobs}
    assert events[-1] == {"event": "end", "images": 1, "failed": 0}


async def test_all_platforms_are_warmed_if_wanted(scene: Scene) -> None:
    amd64, arm64, index = two_platforms()
    scene.origin.push(REPO, "1.0", index)

    await scene.warm(platforms=None)

    assert all(scene.has(amd64.digest, arm64.digest, *(blob.digest for blob in (*amd64.blobs, *arm64.blobs))))


async def test_what_is_here_is_not_asked_for_again(scene: Scene) -> None:
    scene.origin.push(REPO, "1.0", two_platforms()[2])
    await scene.warm()
    scene.origin.clear()

    events = await scene.warm()

    assert scene.origin.requests == []
    assert {event["result"] for event in by_event(events, "layer-done")} == {"HIT"}
    assert events[-1]["failed"] == 0


async def test_only_what_is_missing_is_asked_for(scene: Scene) -> None:
    amd64, _, index = two_platforms()
    scene.origin.push(REPO, "1.0", index)
    blob = parse_image(f"registry.test/{REPO}").part(Kind.BLOB, amd64.layers[0].digest)
    answer = await scene.cache.answer(Request("GET", blob, ()))
    assert answer.source
    answer.source.close()
    scene.origin.clear()

    await scene.warm()

    assert scene.asked().count(amd64.layers[0].digest) == 0
    assert scene.asked().count(amd64.layers[1].digest) == 1


async def test_clients_beside_it_share_its_flights(scene: Scene) -> None:
    image = make_image(layers=2, layer_size=400_000)
    scene.origin.push(REPO, "1.0", image)
    scene.origin.fault("GET .*/blobs/", rate=2e6)
    name = parse_image(f"registry.test/{REPO}")

    async def client(blob: Blob) -> None:
        answer = await scene.cache.answer(Request("GET", name.part(Kind.BLOB, blob.digest, "registry.test"), ()))
        body = bytearray(answer.body)
        while answer.source and (piece := await answer.source.read()):
            body += piece
        assert body == blob.data

    warming = asyncio.create_task(scene.warm())
    await asyncio.gather(*(client(blob) for blob in image.blobs for _ in range(10)))

    assert (await warming)[-1]["failed"] == 0
    assert {digest: scene.asked().count(digest) for digest in {blob.digest for blob in image.blobs}} == {
        blob.digest: 1 for blob in image.blobs
    }


async def test_a_layer_that_fails_stops_no_other(scene: Scene) -> None:
    image, other = make_image(layers=3, seed=5), make_image(seed=6)
    scene.origin.push(REPO, "1.0", image)
    scene.origin.push(REPO, "2.0", other)
    broken = image.layers[0].digest
    scene.origin.fault(f"GET .*/blobs/{broken}", status=500, body=b"no")

    events = await scene.warm(f"{REPO}:1.0", f"{REPO}:2.0")

    assert scene.has(broken) == [False]
    assert all(scene.has(*(blob.digest for blob in (*image.blobs, *other.blobs) if blob.digest != broken)))
    (failed,) = by_event(events, "layer-failed")
    assert (failed["digest"], failed["reason"]) == (broken, "500 Internal Server Error")
    assert [event["image"] for event in by_event(events, "failed")] == [f"registry.test/{REPO}:1.0"]
    assert events[-1] == {"event": "end", "images": 2, "failed": 1}


async def test_a_broken_layer_is_not_taken_for_there(scene: Scene) -> None:
    image = make_image(layer_size=300_000)
    scene.origin.push(REPO, "1.0", image)
    scene.origin.fault(f"GET .*/blobs/{image.layers[0].digest}", corrupt_at=5)

    events = await scene.warm()

    assert "do not have this digest" in by_event(events, "failed")[0]["reason"]


async def test_an_image_that_is_not_there_fails_with_the_reason(scene: Scene) -> None:
    events = await scene.warm(f"{REPO}:9.9")

    (failed,) = by_event(events, "failed")
    assert failed["reason"].startswith("404 ")


async def test_a_platform_that_is_not_there_fails(scene: Scene) -> None:
    scene.origin.push(REPO, "1.0", two_platforms()[2])

    events = await scene.warm(platforms=("linux/s390x", "linux/amd64"))

    assert by_event(events, "failed")[0]["reason"] == "it is not there for linux/s390x"


async def test_attestations_and_foreign_layers_are_left_out(scene: Scene) -> None:
    image = make_image(seed=7)
    content = json.loads(image.manifest)
    foreign = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b"far"), "size": 3}
    content["layers"].append({**foreign, "urls": ["https://elsewhere.test/far"]})
    manifest = json.dumps(content).encode()
    index = json.loads(make_index(image).manifest)
    index["manifests"][0] |= {"digest": digest_of(manifest), "size": len(manifest)}
    index["manifests"].append(
        {
            "mediaType": OCI_MANIFEST,
            "digest": digest_of(b"attestation"),
            "size": 11,
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
    )
    # As an index in an index.
    inner = json.dumps(index).encode()
    outer = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": digest_of(inner), "size": len(inner)}]}
    scene.origin.push(REPO, "other", image)
    scene.origin.add_manifest(REPO, digest_of(manifest), manifest, OCI_MANIFEST)
    scene.origin.add_manifest(REPO, digest_of(inner), inner, OCI_INDEX)
    scene.origin.add_manifest(REPO, "1.0", json.dumps(outer).encode(), OCI_INDEX)

    events = await scene.warm()

    assert events[-1]["failed"] == 0, events
    assert [e["digest"] for e in by_event(events, "layer-done") if e["result"] == "SKIPPED"] == [digest_of(b"far")]
    assert not {digest_of(b"far"), digest_of(b"attestation")} & set(scene.asked())


async def test_public_images_of_a_registry_with_tokens_need_no_login(scene: Scene) -> None:
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image())

    assert (await scene.warm())[-1]["failed"] == 0


@pytest.mark.parametrize("with_tokens", [True, False])
async def test_a_login_is_given_as_containerd_does(scene: Scene, with_tokens: bool) -> None:
    scene.origin.require_basic("ann", "secret")
    if with_tokens:
        scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image(layers=3))

    assert by_event(await scene.warm(login="ann:wrong"), "failed")
    assert by_event(await scene.warm(), "failed")
    assert (await scene.warm(login="ann:secret"))[-1]["failed"] == 0
    tokens = [r for r in scene.origin.requests if r.path == "/token"]
    assert all("scope=repository%3Aacme%2Fapp%3Apull" in r.query for r in tokens)


async def test_a_token_that_expires_meanwhile_is_replaced(scene: Scene) -> None:
    image = make_image(layers=2)
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", image)
    first, gate = image.layers[0].digest, threading.Event()
    scene.origin.fault(f"GET .*/blobs/{first}", hold=gate)

    warming = asyncio.create_task(scene.warm(login="ann:secret", layers=1))
    while scene.origin.count("GET", first) == 0:
        await asyncio.sleep(0.01)
    scene.origin.expire_tokens()
    gate.set()

    assert (await warming)[-1]["failed"] == 0
    assert scene.origin.count("GET", "/token") == 2


@pytest.mark.parametrize("login", ["", "ann:secret"])
async def test_short_rate_limits_are_waited_for(scene: Scene, login: str) -> None:
    """Of the registry, and of its token service, which a login is brought to from here."""
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image())
    scene.origin.fault("GET /token", times=1, status=429, headers=[("Retry-After", "0")])
    scene.origin.fault("GET .*/blobs/", times=1, status=429, headers=[("Retry-After", "0")])

    assert (await scene.warm(login=login))[-1]["failed"] == 0


async def test_the_login_is_not_sent_to_a_token_service_without_https(scene: Scene) -> None:
    with Origin() as elsewhere:
        scene.origin.require_token(elsewhere)
        scene.origin.push(REPO, "1.0", make_image())

        (failed,) = by_event(await scene.warm(login="ann:secret"), "failed")

        assert "no https" in failed["reason"]
        assert elsewhere.requests == []


async def test_what_is_too_large_to_be_kept_is_a_failure(store: Store, origin: Origin, tmp_path: Path) -> None:
    scene = Scene(store, origin, tmp_path, max_size="1MiB")
    image = make_image(layer_size=2 << 20)
    origin.push(REPO, "1.0", image)

    events = await scene.warm()

    assert "larger than max_size" in by_event(events, "layer-failed")[0]["reason"]
    assert events[-1]["failed"] == 1


async def test_what_is_evicted_while_the_rest_is_fetched_is_a_failure(scene: Scene) -> None:
    image = make_image(layers=2)
    scene.origin.push(REPO, "1.0", image)
    first, last = (layer.digest for layer in image.layers)
    gate = threading.Event()
    scene.origin.fault(f"GET .*/blobs/{last}", hold=gate)

    warming = asyncio.create_task(scene.warm(layers=1))
    while scene.origin.count("GET", last) == 0:
        await asyncio.sleep(0.01)
    await scene.store.remove([first], "size")
    gate.set()

    assert "1 of 3 layers were removed again" in by_event(await warming, "failed")[0]["reason"]


async def test_leaving_ends_the_warming_and_not_the_flight(scene: Scene) -> None:
    image = make_image(layer_size=300_000)
    scene.origin.push(REPO, "1.0", image)
    gate = threading.Event()
    scene.origin.fault(f"GET .*/blobs/{image.layers[0].digest}", hold=gate, hold_at=200_000)
    order = Order((parse_image(f"registry.test/{REPO}:1.0"),), (AMD64,))

    events = warm(scene.cache, scene.transport, order)
    async for event in events:
        if event["event"] == "layer" and event["digest"] == image.layers[0].digest:
            break
    while scene.origin.count("GET", image.layers[0].digest) == 0:
        await asyncio.sleep(0.01)
    await events.aclose()
    gate.set()

    async with asyncio.timeout(5):
        while not all(scene.has(image.layers[0].digest)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"images": []},
        {"images": "alpine"},
        {"images": ["UPPER/case"]},
        {"images": ["alpine"], "platforms": ["linux"]},
        {"images": ["alpine"], "layers": 0},
        {"images": ["alpine"], "referrers": "yes"},
        {"images": ["alpine"], "logins": {"alpine": 1}},
    ],
)
def test_an_order_that_makes_no_sense_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_order(args)


# What is no image


@pytest.mark.parametrize("layer_type", ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.acme.x", None])
@pytest.mark.parametrize("platforms", [("linux/amd64",), None])
async def test_a_cache_of_buildkit_is_an_index_of_blobs(
    scene: Scene, layer_type: str | None, platforms: tuple[str, ...] | None
) -> None:
    cache = buildkit_cache(1, layer_type=layer_type).push(scene.origin, REPO, "1.0")

    events = await scene.warm(platforms=platforms)

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*cache.digests))
    assert {event["digest"] for event in by_event(events, "layer-done")} == {blob.digest for blob in cache.blobs}
    asked = [r.path for r in scene.origin.requests if "/manifests/sha256" in r.path]
    # What says that it is a layer is not asked for as a manifest.
    assert bool(asked) == ("layer" not in (layer_type or ""))


async def test_an_entry_that_is_nowhere_is_named(scene: Scene) -> None:
    cache = buildkit_cache(2, layer_type=None)
    scene.origin.add_manifest(REPO, "1.0", cache.manifest, cache.media_type)
    for blob in cache.blobs[1:]:
        scene.origin.add_blob(REPO, blob.data)

    (failed,) = by_event(await scene.warm(), "failed")

    assert failed["reason"].startswith(f"{cache.blobs[0].digest}: 404 ")


async def test_a_registry_that_fails_over_blobs_as_manifests_is_asked_for_blobs(scene: Scene) -> None:
    """docker-registry answers 500 there."""
    cache = buildkit_cache(3, layer_type=None).push(scene.origin, REPO, "1.0")
    for blob in cache.blobs:
        scene.origin.fault(f"GET .*/manifests/{blob.digest}", status=500)

    events = await scene.warm()

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*cache.digests))


async def test_a_manifest_that_is_only_there_as_a_blob_is_not_all_there(scene: Scene) -> None:
    image = make_image(seed=8)
    content = json.loads(make_index(image).manifest)
    del content["manifests"][0]["mediaType"]
    scene.origin.push(REPO, "other", image)
    scene.origin.add_blob(REPO, image.manifest)
    scene.origin.add_manifest(REPO, "1.0", json.dumps(content).encode(), OCI_INDEX)
    scene.origin.fault(f"GET .*/manifests/{image.digest}", status=500)

    for _ in range(2):
        (failed,) = by_event(await scene.warm(), "failed")
        assert failed["reason"].startswith(f"{image.digest}: 500 ")


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_an_entry_that_cannot_be_had_now_is_no_blob(scene: Scene, status: int) -> None:
    cache = buildkit_cache(3, layer_type=None).push(scene.origin, REPO, "1.0")
    scene.origin.fault(f"GET .*/manifests/{cache.blobs[0].digest}", status=status)

    (failed,) = by_event(await scene.warm(), "failed")

    assert f"{cache.blobs[0].digest}: {status} " in failed["reason"]
    assert not any(f"/blobs/{cache.blobs[0].digest}" in r.path for r in scene.origin.requests)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": None},
        {"config": None},
        {"artifactType": None, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {"mediaType": ARTIFACT_MANIFEST, "schemaVersion": None, "config": None, "layers": None, "blobs": "layers"},
    ],
)
async def test_artifacts_need_no_platform(scene: Scene, changes: dict[str, Any]) -> None:
    plain = artifact(4)
    content = json.loads(plain.manifest)
    changes = {**changes, **({"blobs": content["layers"]} if "blobs" in changes else {})}
    if isinstance(changes.get("config"), dict):
        changes["config"] = {**content["config"], **changes["config"]}
    chart = artifact(4, **changes).push(scene.origin, REPO, "1.0")

    events = await scene.warm()

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*chart.digests))
    assert len(by_event(events, "layer-done")) == len(chart.blobs) > 0


@pytest.mark.parametrize("lists", [{"layers": None}, {"layers": [], "blobs": None}])
async def test_empty_lists_may_be_null(scene: Scene, lists: dict[str, Any]) -> None:
    config = descriptor("application/vnd.oci.empty.v1+json", b"{}")
    scene.origin.add_blob(REPO, b"{}")
    manifest = encoded({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, **lists})
    scene.origin.add_manifest(REPO, "1.0", manifest, OCI_MANIFEST)
    index = encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})
    scene.origin.add_manifest(REPO, "none", index, OCI_INDEX)

    assert (await scene.warm())[-1]["failed"] == 0
    assert (await scene.warm(f"{REPO}:none", platforms=None))[-1]["failed"] == 0
    assert by_event(await scene.warm(f"{REPO}:none"), "failed")[0]["reason"] == "it is not there for linux/amd64"
    assert all(scene.has(digest_of(manifest), digest_of(index), digest_of(b"{}")))


async def test_an_index_that_knows_no_platforms_is_for_every_one(scene: Scene) -> None:
    image = make_image(seed=8).digest
    scene.origin.push(REPO, "other", make_image(seed=8))
    content = json.loads(make_index(make_image(seed=8)).manifest)
    content["manifests"][0]["platform"] = {"os": "unknown", "architecture": "unknown"}
    scene.origin.add_manifest(REPO, "1.0", json.dumps(content).encode(), OCI_INDEX)

    assert (await scene.warm())[-1]["failed"] == 0
    assert scene.has(image) == [True]


# What refers to it


def signed(scene: Scene, *, fallback: bool = False) -> tuple[Index, dict[str, Artifact]]:
    """An index with a signature and an SBOM of its own and of its amd64 image, and a signature of the SBOM."""
    amd64, _, index = two_platforms(layers=1)
    scene.origin.push(REPO, "1.0", index)
    found = {"sbom": artifact(10, amd64.manifest), "signature": artifact(11, index.manifest)}
    found["of the sbom"] = artifact(12, found["sbom"].manifest)
    if fallback:
        scene.origin.fault("GET .*/referrers/", status=404)
        for subject, name in ((amd64, "sbom"), (index, "signature"), (found["sbom"], "of the sbom")):
            listing(found[name]).push(scene.origin, REPO, tag_of(subject.digest))
    for one in found.values():
        one.push(scene.origin, REPO)
    for n, suffix in enumerate((".sig", ".att", ".sbom")):
        found[suffix] = artifact(20 + n).push(scene.origin, REPO, tag_of(index.digest, suffix))
    return index, found


@pytest.mark.parametrize("fallback", [False, True])
async def test_signatures_and_sboms_are_brought_along(scene: Scene, fallback: bool) -> None:
    index, found = signed(scene, fallback=fallback)

    without = await scene.warm()
    assert "referrers" not in by_event(without, "done")[0]
    assert not any(scene.has(*(one.digest for one in found.values())))
    events = await scene.warm(referrers=True)

    assert events[-1]["failed"] == 0, events
    assert by_event(events, "done")[0]["referrers"] == len(found)
    assert all(scene.has(*(digest for one in found.values() for digest in one.digests)))
    assert scene.store.tag_variants("registry.test", REPO, tag_of(index.digest, ".sig"))
    assert bool(scene.store.tag_variants("registry.test", REPO, tag_of(index.digest))) == fallback


@pytest.mark.parametrize("status", [400, 404, 405, 406])
async def test_a_registry_that_has_none_is_right(scene: Scene, status: int) -> None:
    scene.origin.push(REPO, "1.0", two_platforms()[2])
    scene.origin.fault("GET .*/referrers/", status=status)

    events = await scene.warm(referrers=True)

    assert events[-1]["failed"] == 0, events
    assert by_event(events, "done")[0]["referrers"] == 0


async def test_a_page_for_people_is_no_list(scene: Scene) -> None:
    index, found = signed(scene, fallback=True)
    scene.origin.fault("GET .*/referrers/", status=200, body=b"<html>")

    events = await scene.warm(referrers=True)

    assert by_event(events, "done")[0]["referrers"] == len(found)
    assert index.digest == by_event(events, "done")[0]["digest"]


@pytest.mark.parametrize("what", ["referrers/", r"manifests/sha256-.*\.att"])
async def test_referrers_that_cannot_be_had_are_a_failure(scene: Scene, what: str) -> None:
    _, found = signed(scene)
    scene.origin.fault(f"GET .*/{what}", status=500)

    events = await scene.warm(referrers=True)

    assert "500 " in by_event(events, "done")[0]["referrers_failed"]
    assert events[-1] == {"event": "end", "images": 1, "failed": 0, "referrers_failed": 1}
    # And stop nothing else.
    assert all(scene.has(*found[".sig"].digests))


async def test_what_misses_of_a_referrer_is_named(scene: Scene) -> None:
    _, found = signed(scene)
    layer = found["sbom"].blobs[-1].digest
    scene.origin.fault(f"GET .*/blobs/{layer}", status=404)

    events = await scene.warm(referrers=True)

    assert layer in by_event(events, "done")[0]["referrers_failed"]


async def test_an_outage_costs_what_refers_to_the_image_and_not_the_image(scene: Scene) -> None:
    index, _ = signed(scene)
    await scene.warm(platforms=None)
    scene.origin.fault(".*", status=503)

    events = await scene.warm(platforms=None, referrers=True)

    done = by_event(events, "done")[0]
    assert (done["digest"], done["referrers"]) == (index.digest, 0)
    # Three subjects, each with its list and three tags, failed in the same way.
    assert done["referrers_failed"].count("503 ") == 1
    assert "(and for 11 more)" in done["referrers_failed"]
    assert len(done["referrers_failed"]) < 500
    assert events[-1] == {"event": "end", "images": 1, "failed": 0, "referrers_failed": 1}


async def test_a_layer_of_the_image_itself_is_not_taken_for_a_referrer_s(scene: Scene) -> None:
    amd64, _, index = two_platforms(layers=1)
    scene.origin.push(REPO, "1.0", index)
    artifact(11, index.manifest).push(scene.origin, REPO)
    scene.origin.fault(f"GET .*/blobs/{amd64.layers[0].digest}", status=404)

    events = await scene.warm(referrers=True)

    assert amd64.layers[0].digest in by_event(events, "failed")[0]["reason"]
    assert events[-1] == {"event": "end", "images": 1, "failed": 1}


def test_reasons_that_are_alike_are_told_once() -> None:
    alike = [Reason(f"sha256-{n}.sig", "503 no") for n in range(20)]
    assert told(alike) == "sha256-0.sig: 503 no (and for 19 more)"
    assert told([*alike[:1], Reason("", "it is not there"), *alike[:1]]) == "sha256-0.sig: 503 no; it is not there"
    many = told([Reason(f"layer {n}", f"why {n}") for n in range(50)])
    assert many.endswith("; layer 3: why 3; and 46 other reasons")


class Pages:
    """A list of referrers that goes on from page to page; each page has one artifact."""

    def __init__(self, scene: Scene, artifacts: list[Artifact], more: bool) -> None:
        for n, one in enumerate(artifacts):
            one.push(scene.origin, REPO)
            link = f'</v2/{REPO}/referrers/x?n={(n + 1) % len(artifacts)}&ns=elsewhere.test>; rel="next"'
            last = n == len(artifacts) - 1 and not more
            headers = [("Content-Type", OCI_INDEX), *([] if last else [("Link", link)])]
            page = listing(one)
            scene.origin.fault(rf"GET .*/referrers/[^?]*\?n={n}$", status=200, body=page.manifest, headers=headers)
            if n == 0:
                scene.origin.fault("GET .*/referrers/[^?]*$", status=200, body=page.manifest, headers=headers)


@pytest.mark.parametrize("endless", [False, True])
async def test_the_list_has_pages(scene: Scene, endless: bool) -> None:
    artifacts = [artifact(30 + n) for n in range(4)]
    scene.origin.push(REPO, "1.0", make_image(seed=9))
    Pages(scene, artifacts, endless)

    events = await scene.warm(referrers=True)

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*(one.digest for one in artifacts)))
    assert scene.origin.count("GET", "/referrers/") < 30


async def test_there_are_bounds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.tree.MAX_REFERRERS", 3)
    chained, image = make_image(seed=9), make_image(seed=10)
    scene.origin.push(REPO, "1.0", chained)
    scene.origin.push(REPO, "2.0", image)
    subject = chained.manifest
    for n in range(5):
        subject = artifact(40 + n, subject).push(scene.origin, REPO).manifest
    for n in range(5):
        artifact(50 + n, image.manifest).push(scene.origin, REPO)

    events = await scene.warm(referrers=True)
    assert by_event(events, "done")[0]["referrers"] == 2
    events = await scene.warm(f"{REPO}:2.0", referrers=True)
    assert "more than 3 signatures" in by_event(events, "done")[0]["referrers_failed"]
    assert all(scene.has(*(blob.digest for blob in image.blobs)))


async def test_attestations_in_an_index_come_with_what_they_are_about(scene: Scene) -> None:
    amd64, arm64, index = two_platforms()
    scene.origin.push(REPO, "1.0", index)
    content = json.loads(index.manifest)
    about = {one.digest: artifact(60 + n) for n, one in enumerate((amd64, arm64))}
    for digest, attestation in about.items():
        attestation.push(scene.origin, REPO)
        notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": digest}
        platform = {"os": "unknown", "architecture": "unknown"}
        content["manifests"].append(descriptor(OCI_MANIFEST, attestation.manifest, platform=platform, annotations=notes))
    scene.origin.add_manifest(REPO, "1.0", json.dumps(content).encode(), OCI_INDEX)

    await scene.warm()
    assert scene.has(about[amd64.digest].digest, about[arm64.digest].digest) == [False, False]
    await scene.warm(referrers=True)
    assert scene.has(about[amd64.digest].digest, about[arm64.digest].digest) == [True, False]


async def test_private_referrers_need_the_login(scene: Scene) -> None:
    scene.origin.require_basic("ann", "secret")
    scene.origin.require_token()
    _, found = signed(scene)

    events = await scene.warm(login="ann:secret", referrers=True)

    assert events[-1]["failed"] == 0, events
    assert by_event(events, "done")[0]["referrers"] == len(found)


async def test_a_manifest_without_an_end_is_broken_off(scene: Scene) -> None:
    scene.origin.push(REPO, "1.0", make_image(seed=9))
    scene.origin.fault("GET .*/referrers/", status=200, body=b"{" + b" " * (9 << 20) + b"}")

    events = await scene.warm(referrers=True)

    assert "a manifest of more than" in by_event(events, "done")[0]["referrers_failed"]


async def test_blobs_in_an_index_are_not_counted_as_manifests(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.tree.MAX_MANIFESTS", 2)
    buildkit_cache(70, layers=5).push(scene.origin, REPO, "1.0")
    buildkit_cache(71, layers=5, layer_type=None).push(scene.origin, REPO, "2.0")

    assert (await scene.warm())[-1]["failed"] == 0
    assert "more than 2 manifests" in by_event(await scene.warm(f"{REPO}:2.0"), "failed")[0]["reason"]

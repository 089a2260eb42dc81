"""Warming: what is asked of a registry, what is kept, and what is told, with the test origin and a real store."""

import asyncio
import json
import threading
from pathlib import Path

from cacheyd.admin.image_orders import Warm
from cacheyd.admin.warm import warm
from cacheyd.cache.request import Request
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.reference import Kind
from cacheyd.store.store import Store
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Blob, digest_of, make_image, make_index
from tests.support.origin import Origin
from tests.support.warming import AMD64, REPO, Scene, by_event, two_platforms


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
    await scene.store.objects.remove([first], "size")
    gate.set()

    assert "1 of 3 layers were removed again" in by_event(await warming, "failed")[0]["reason"]


async def test_leaving_ends_the_warming_and_not_the_flight(scene: Scene) -> None:
    image = make_image(layer_size=300_000)
    scene.origin.push(REPO, "1.0", image)
    gate = threading.Event()
    scene.origin.fault(f"GET .*/blobs/{image.layers[0].digest}", hold=gate, hold_at=200_000)
    order = Warm((parse_image(f"registry.test/{REPO}:1.0"),), (AMD64,))

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

"""Signatures, SBOMs and whatever else refers to an image."""

import json

import pytest

from tests.support.artifacts import (
    Artifact,
    artifact,
    descriptor,
    listing,
    tag_of,
)
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Index, make_image
from tests.support.warming import REPO, Scene, by_event, two_platforms


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
    assert scene.store.tags.variants("registry.test", REPO, tag_of(index.digest, ".sig"))
    assert bool(scene.store.tags.variants("registry.test", REPO, tag_of(index.digest))) == fallback


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
    monkeypatch.setattr("cacheyd.admin.referrers.MAX_REFERRERS", 3)
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

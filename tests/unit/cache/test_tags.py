"""Tags: fresh, confirmed, moved, gone, and stale while upstream fails."""

import json
import shutil

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.upstream.port import UpstreamBroken
from tests.support.cache_scene import BY_DIGEST, CONTAINERD, INDEX, MANIFEST, NEWER, TAG, Scene, text

# Tags


async def test_a_tag_is_fresh_for_its_time_to_live(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 299.9
    assert (await scene.get(TAG)).result == "HIT"
    assert scene.registry.log == ["GET manifest 1.0"]


async def test_then_a_head_confirms_it(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 300
    got = await scene.get(TAG)
    assert got.brief == (200, "REVALIDATED", INDEX)
    assert got.headers["age"] == "0"
    assert scene.registry.log == ["GET manifest 1.0", "HEAD manifest 1.0"]
    assert (await scene.get(TAG)).result == "HIT", "fresh again"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_moved(scene: Scene, method: str) -> None:
    await scene.get(TAG)
    scene.registry.tag("1.0", (OCI_INDEX, NEWER))
    scene.clock.now += 300

    got = await scene.get(TAG, method=method)
    assert (got.status, got.result) == (200, "MISS")
    assert got.headers["docker-content-digest"] == digest_of(NEWER)
    assert (await scene.get(TAG)).body == NEWER
    assert (await scene.get(BY_DIGEST)).brief == (200, "HIT", INDEX), "the old object stays"


async def test_a_tag_that_moved_to_what_is_here_already(scene: Scene) -> None:
    await scene.get(f"manifests/{digest_of(MANIFEST)}")
    await scene.get(TAG)
    scene.registry.tag("1.0", (DOCKER_MANIFEST, MANIFEST))
    scene.clock.now += 300
    got = await scene.get(TAG)
    assert (got.status, got.body) == (200, MANIFEST)
    assert scene.registry.log[-1] == "HEAD manifest 1.0", "the content is not fetched again"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_was_deleted_is_gone(scene: Scene, method: str) -> None:
    await scene.get(TAG)
    del scene.registry.tags["1.0"]
    assert (await scene.get(TAG)).result == "HIT", "until its time is up"
    scene.clock.now += 300

    assert (await scene.get(TAG, method=method)).status == 404
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get(TAG)).status == 502, "not served as stale either"
    # For this client: whether it is for others is theirs to hear.
    assert len(scene.store.tags.variants("reg.example", "lab/img", "1.0")) == 1


async def test_a_tag_whose_object_was_wiped_is_fetched_again(scene: Scene) -> None:
    await scene.get(TAG)
    shutil.rmtree(scene.store.root)
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX)
    assert (await scene.get(TAG)).brief == (200, "HIT", INDEX)


async def test_latest_is_always_asked_for_again(scene: Scene) -> None:
    assert (await scene.get("manifests/latest")).result == "MISS"
    assert (await scene.get("manifests/latest")).result == "REVALIDATED"
    assert (await scene.head("manifests/latest")).result == "REVALIDATED"
    assert scene.hit("manifests/latest") is None
    assert scene.ignored_tags == 3
    await scene.get(TAG)
    assert scene.ignored_tags == 3


async def test_a_clock_that_went_back_makes_a_tag_stale_not_eternal(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now -= 3600
    assert (await scene.get(TAG)).result == "REVALIDATED"


# Stale


@pytest.mark.parametrize(
    "error", [UpstreamBroken("reset"), UpstreamBroken("late", timeout=True), UpstreamBroken("refused", refused=True)]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_while_upstream_is_down_the_last_known_tag_is_served(scene: Scene, error: UpstreamBroken, method: str) -> None:
    await scene.get(TAG)
    scene.clock.now += 6 * 86400
    scene.registry.down = error

    got = await scene.get(TAG, method=method)
    assert got.brief == (200, "STALE", INDEX if method == "GET" else b"")
    assert got.headers["x-cache"] == "STALE"
    assert got.headers["age"] == str(6 * 86400)
    assert "warning" in got.headers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_while_upstream_fails_the_last_known_tag_is_served(scene: Scene, status: int) -> None:
    await scene.get("manifests/latest")
    scene.registry.override = lambda _: text(status, "no")
    assert (await scene.get("manifests/latest")).brief == (200, "STALE", INDEX)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_is_a_refusal(scene: Scene, status: int) -> None:
    await scene.get("manifests/latest")
    scene.registry.override = lambda _: text(status, "no")
    assert (await scene.get("manifests/latest")).status == status
    scene.registry.override = lambda _: None
    assert (await scene.get("manifests/latest")).result == "REVALIDATED"


async def test_stale_has_an_end(scene: Scene) -> None:
    await scene.get(TAG)
    scene.registry.down = UpstreamBroken("down")
    scene.clock.now += 7 * 86400
    got = await scene.get(TAG)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["detail"]["from"] == "cacheyd"


async def test_stale_if_error_is_a_setting(scene: Scene) -> None:
    scene.configure(stale_if_error="0s")
    await scene.get("manifests/latest")
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get("manifests/latest")).status == 502


async def test_an_unknown_tag_while_upstream_is_down(scene: Scene) -> None:
    scene.registry.down = UpstreamBroken("late", timeout=True)
    assert (await scene.get(TAG)).status == 504


# Accept


async def test_clients_that_ask_for_the_same_types_share_a_tag(scene: Scene) -> None:
    await scene.get(TAG)
    skopeo = "\n".join([OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX])
    assert (await scene.get(TAG, accept=skopeo)).brief == (200, "HIT", INDEX)


async def test_a_client_of_one_platform_and_one_of_all_do_not_mix(scene: Scene) -> None:
    old, new = DOCKER_MANIFEST, CONTAINERD
    for _ in range(2):
        assert (await scene.get(TAG, accept=old)).body == MANIFEST
        assert (await scene.get(TAG, accept=new)).body == INDEX
    assert scene.registry.log == ["GET manifest 1.0"] * 2
    assert (await scene.head(TAG, accept=old)).headers["docker-content-digest"] == digest_of(MANIFEST)
    assert (await scene.head(TAG, accept=new)).headers["docker-content-digest"] == digest_of(INDEX)


async def test_a_stale_tag_is_never_of_another_type(scene: Scene) -> None:
    await scene.get(TAG, accept=DOCKER_MANIFEST)
    scene.registry.down = UpstreamBroken("down")
    scene.clock.now += 300
    assert (await scene.get(TAG)).status == 502
    assert (await scene.get(TAG, accept=DOCKER_MANIFEST)).result == "STALE"


async def test_every_accept_line_goes_upstream(scene: Scene) -> None:
    await scene.get(TAG, accept=f"{OCI_MANIFEST}\n{OCI_INDEX}")
    assert scene.registry.requests[0].headers == (("Accept", OCI_MANIFEST), ("Accept", OCI_INDEX))


async def test_a_manifest_here_but_of_a_type_that_the_client_does_not_take(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.registry.override = lambda _: text(404, "not in this form")
    got = await scene.get(BY_DIGEST, accept=DOCKER_MANIFEST)
    assert (got.status, got.result) == (404, "BYPASS")

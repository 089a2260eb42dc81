"""The rows of images and objects."""

import json

import pytest

from cacheyd.admin.listing import Listing
from cacheyd.admin.removal import unreferenced
from cacheyd.admin.selection import parse_target
from cacheyd.protocol.media_types import OCI_INDEX
from tests.support.snapshots import APP, WEB, Content, digest, list_of, two_images


def names(listing: Listing, *targets: str) -> list[str]:
    return [image["name"] for image in listing.images([parse_target(target) for target in targets])]


def test_an_image_is_all_that_its_manifest_needs(content: Content) -> None:
    two_images(content)
    (image, other) = content.look().images()
    assert (image["name"], image["registry"], image["repository"], image["tag"]) == (f"{APP}:1.0", "reg.test", "app", "1.0")
    assert (image["digest"], image["size"], image["complete"], image["missing"]) == (digest("m1"), 40, True, [])
    assert (image["used"], image["hits"], image["pinned"], image["platforms"]) == (2.0, 3, False, [])
    assert other["name"] == f"{WEB}:2.0"


def test_missing_blobs_are_named(content: Content) -> None:
    content.add("conf")
    content.add("m", "conf", "layer")
    content.tag(f"{APP}:1.0", "m")
    (image,) = content.look().images()
    assert (image["complete"], image["missing"], image["size"]) == (False, [digest("layer")], 20)


def test_an_index_is_complete_with_the_platforms_that_are_stored(content: Content) -> None:
    content.add("conf")
    content.add("m", "conf")
    content.index("i", "m", listed=1)
    content.tag(f"{APP}:1.0", "i")
    (image,) = content.look().images()
    assert image["complete"]
    assert [(p["platform"], p["stored"], p["size"]) for p in image["platforms"]] == [
        ("linux/arch0/v8", True, 20),
        ("linux/arch1/v8", False, 0),
    ]


def test_an_index_alone_is_not_complete(content: Content) -> None:
    content.index("i", listed=2)
    content.tag(f"{APP}:1.0", "i")
    (image,) = content.look().images()
    assert (image["complete"], image["missing"]) == (False, [])


def test_attestations_are_named(content: Content) -> None:
    found = content.index("i", listed=1)
    data = json.loads(content.data[found])
    data["manifests"][0]["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    content.data[found] = json.dumps(data).encode()
    (image,) = content.look().images()
    assert image["platforms"][0]["platform"] == "attestation"


@pytest.mark.parametrize("data", [None, b"", b"[]", b'{"manifests": 1}', b'{"manifests": [1, {"digest": 2}]}', b"[" * 10**5])
def test_an_index_that_cannot_be_read_has_platforms_without_a_name(content: Content, data: bytes | None) -> None:
    content.add("m", "conf")
    found = content.index("i", "m")
    content.data.pop(found)
    if data is not None:
        content.data[found] = data
    (image,) = content.look().images()
    assert [(p["platform"], p["digest"]) for p in image["platforms"]] == [("", digest("m"))]


def test_a_manifest_that_no_tag_reaches_has_its_digest(content: Content) -> None:
    content.add("m", "conf")
    content.add("tagged", "conf")
    content.add("child", "conf")
    content.index("i", "child")
    content.tag(f"{APP}:1.0", "tagged")
    content.tag(f"{APP}:2.0", "i")
    assert names(content.look()) == [f"{APP}@{digest('m')}", f"{APP}:1.0", f"{APP}:2.0"]


def test_each_repository_has_its_own_tags(content: Content) -> None:
    content.add("m", "conf", within=(APP, WEB))
    content.tag(f"{APP}:1.0", "m")
    assert names(content.look()) == [f"{APP}:1.0", f"{WEB}@{digest('m')}"]


def test_where_a_manifest_is_from_may_not_be_known(content: Content) -> None:
    content.add("m", "conf", within=())
    content.add("tagged", "conf", within=())
    content.tag(f"{APP}:1.0", "tagged")
    assert names(content.look()) == [f"@{digest('m')}", f"{APP}:1.0"]


def test_a_tag_can_mean_several_manifests(content: Content) -> None:
    content.add("m1", "conf")
    content.add("m2", "conf")
    content.tag(f"{APP}:1.0", "m1", "m2", "not stored")
    assert {image["digest"] for image in content.look().images()} == {digest("m1"), digest("m2")}


@pytest.mark.parametrize("pin", [f"{APP}:*", f"{APP}@{digest('m1')}"])
def test_pinned_images(content: Content, pin: str) -> None:
    two_images(content)
    assert [image["pinned"] for image in content.look(pin).images()] == [True, False]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("reg.test/app", [f"{APP}:1.0"]),
        ("reg.test/app:1.0", [f"{APP}:1.0"]),
        ("reg.test/app:2.0", []),
        ("reg.test", [f"{APP}:1.0", f"{WEB}:2.0"]),
        ("*:2.0", [f"{WEB}:2.0"]),
        (f"*@{digest('m1')}", [f"{APP}:1.0"]),
        (digest("m1"), [f"{APP}:1.0"]),
        (f"{APP}@{digest('top1')}", [f"{APP}:1.0"]),
        (digest("base")[:19], [f"{APP}:1.0", f"{WEB}:2.0"]),
    ],
)
def test_images_that_are_meant(content: Content, target: str, found: list[str]) -> None:
    two_images(content)
    assert names(content.look(), target) == found


def test_objects_know_the_images_that_need_them(content: Content) -> None:
    two_images(content)
    content.add("loose", size=99)
    rows = {row["digest"]: row for row in content.look().blobs()}
    assert next(iter(rows)) == digest("loose")
    assert rows[digest("base")]["images"] == [f"{APP}:1.0", f"{WEB}:2.0"]
    assert rows[digest("loose")]["images"] == []
    assert (rows[digest("m1")]["kind"], rows[digest("base")]["kind"]) == ("manifest", "blob")


@pytest.mark.parametrize(("target", "count"), [("reg.test/web", 4), (digest("base"), 1), ("reg.test/none", 0)])
def test_objects_of_images(content: Content, target: str, count: int) -> None:
    two_images(content)
    assert len(list(content.look().blobs([parse_target(target)]))) == count


def test_blobs_in_an_index_are_no_platforms(content: Content) -> None:
    layer = "application/vnd.oci.image.layer.v1.tar"
    content.add("layer")
    content.add("cache", "layer", "more", media_type=OCI_INDEX)
    list_of(content, "cache", *({"mediaType": layer, "digest": digest(name), "size": 10} for name in ("layer", "more")))
    content.tag(f"{APP}:cache", "cache")

    (image,) = content.look().images()
    assert (image["platforms"], image["complete"], image["missing"], image["size"]) == ([], False, [digest("more")], 20)
    content.add("more")
    (image,) = content.look().images()
    assert (image["platforms"], image["complete"], image["missing"], image["size"]) == ([], True, [], 30)
    assert set(content.removal(f"{APP}:cache").objects) == {digest(name) for name in ("cache", "layer", "more")}
    assert unreferenced(content.inventory(), before=9.0) == []


def test_an_index_of_nothing_is_complete(content: Content) -> None:
    content.add("none", media_type=OCI_INDEX)
    content.data[digest("none")] = b'{"schemaVersion": 2, "manifests": null}'
    (image,) = content.look().images()
    assert (image["platforms"], image["complete"]) == ([], True)


def test_layers_from_elsewhere_do_not_miss(content: Content) -> None:
    content.add("conf")
    content.add("m", "conf", "far", "layer")
    parts: list[dict[str, object]] = [{"digest": digest(name), "size": 10} for name in ("conf", "far", "layer")]
    parts[1]["urls"] = ["https://elsewhere.test/far"]
    content.data[digest("m")] = json.dumps({"config": parts[0], "layers": parts[1:]}).encode()
    (image,) = content.look().images()
    assert (image["complete"], image["missing"]) == (False, [digest("layer")])
    content.add("layer")
    (image,) = content.look().images()
    assert (image["complete"], image["missing"]) == (True, [])

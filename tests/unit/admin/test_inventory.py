"""What a snapshot says of images, objects and space, and what a removal takes with it."""

import json

import pytest

from cacheyd.admin.inventory import Ambiguous, Inventory, Removal, parse_target
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.store.catalog import Snapshot
from cacheyd.store.rows import Stored, TagVariant

APP, WEB, HUB = "reg.test/app", "reg.test/web", "docker.io/library/alpine"


def digest(name: str) -> str:
    return digest_of(name.encode())


class Content:
    """A snapshot in the making; objects are called by short names."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.tags: dict[str, tuple[TagVariant, ...]] = {}
        self.data: dict[str, bytes] = {}

    def add(self, name: str, *needs: str, within: tuple[str, ...] = (APP,), size: int = 10, media_type: str = "") -> str:
        """A blob, or a manifest if it needs something."""
        media_type = media_type or (OCI_MANIFEST if needs else "")
        found = digest(name)
        self.objects[found] = Stored(found, size, media_type, 1.0, within, 2.0, 3, needs=tuple(map(digest, needs)))
        return found

    def index(self, name: str, *children: str, listed: int = 0, within: tuple[str, ...] = (APP,)) -> str:
        """An index of these manifests and others that are not stored."""
        found = self.add(name, *children, within=within, media_type=OCI_INDEX)
        names = [*children, *(f"other{n}" for n in range(listed))]
        platforms = [{"os": "linux", "architecture": f"arch{n}", "variant": "v8"} for n in range(len(names))]
        entries = [{"digest": digest(n), "platform": p} for n, p in zip(names, platforms, strict=True)]
        self.data[found] = json.dumps({"manifests": entries}).encode()
        return found

    def tag(self, name: str, *meanings: str) -> None:
        """A tag, with what it means to clients that ask for different types."""
        self.tags[name] = tuple(TagVariant(frozenset({m}), digest(m), OCI_MANIFEST, 1, 1.0) for m in meanings)

    def look(self, *pin: str) -> Inventory:
        return Inventory(Snapshot(list(self.objects.values()), self.tags), self.data.get, pin)

    def removal(self, *targets: str) -> Removal:
        return self.look().removal([parse_target(target) for target in targets])


@pytest.fixture
def content() -> Content:
    return Content()


def names(inventory: Inventory, *targets: str) -> list[str]:
    return [image["name"] for image in inventory.images([parse_target(target) for target in targets])]


def two_images(content: Content) -> None:
    """Two images in two repositories that share their base layer."""
    for name in ("base", "top1", "conf1"):
        content.add(name)
    content.add("m1", "conf1", "base", "top1")
    content.tag(f"{APP}:1.0", "m1")
    for name in ("top2", "conf2"):
        content.add(name, within=(WEB,))
    content.add("m2", "conf2", "base", "top2", within=(WEB,))
    content.tag(f"{WEB}:2.0", "m2")


# Images


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


# Objects and space


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


def test_space_by_registry_and_repository(content: Content) -> None:
    two_images(content)
    content.add("hub", within=(HUB,), size=1)
    content.add("unknown", within=(), size=2)
    usage = content.look().usage()
    assert (usage["objects"], usage["bytes"]) == (9, 73)
    first, *others = usage["registries"]
    assert (first["name"], first["objects"], first["bytes"], first["unique"]) == ("reg.test", 7, 70, 70)
    # The layer that both need counts in both, and is unique to none.
    assert [(r["name"], r["bytes"], r["unique"]) for r in first["repositories"]] == [("app", 40, 30), ("web", 40, 30)]
    assert [(r["name"], r["bytes"]) for r in others] == [("", 2), ("docker.io", 1)]


# Removal


def test_what_another_image_needs_stays(content: Content) -> None:
    two_images(content)
    removal = content.removal("reg.test/app:1.0")
    assert set(removal.objects) == {digest(name) for name in ("m1", "conf1", "top1")}
    assert (removal.tags, removal.images, removal.bytes, removal.kept) == ([f"{APP}:1.0"], [f"{APP}:1.0"], 30, 1)


def test_all_of_a_repository(content: Content) -> None:
    two_images(content)
    content.add("untagged", "conf1")
    assert set(content.removal("reg.test/app").images) == {f"{APP}:1.0", f"{APP}@{digest('untagged')}"}
    assert content.removal("reg.test/app:1.0").kept == 2


def test_a_manifest_with_another_tag_stays(content: Content) -> None:
    content.add("m", "conf")
    content.tag(f"{APP}:1", "m")
    content.tag(f"{APP}:latest", "m")
    removal = content.removal("reg.test/app:latest")
    assert (removal.objects, removal.tags) == ([], [f"{APP}:latest"])


def test_a_tag_of_an_index_takes_its_platforms(content: Content) -> None:
    content.add("conf")
    content.add("m", "conf")
    content.index("i", "m")
    content.tag(f"{APP}:1", "i")
    assert set(content.removal("reg.test/app:1").objects) == {digest(name) for name in ("i", "m", "conf")}


def test_an_object_that_is_named_goes_whoever_needs_it(content: Content) -> None:
    two_images(content)
    assert content.removal(digest("base")).objects == [digest("base")]
    removal = content.removal(f"{APP}@{digest('m1')}")
    assert set(removal.objects) == {digest(name) for name in ("m1", "conf1", "top1")}
    assert removal.tags == [f"{APP}:1.0"]


def test_a_platform_goes_out_of_its_index(content: Content) -> None:
    content.add("conf")
    content.add("m", "conf")
    content.index("i", "m")
    content.tag(f"{APP}:1", "i")
    removal = content.removal(digest("m"))
    assert (set(removal.objects), removal.tags) == ({digest("m"), digest("conf")}, [])


def test_a_digest_in_another_repository_is_not_found(content: Content) -> None:
    two_images(content)
    assert content.removal(f"{WEB}@{digest('m1')}").not_found == [f"{WEB}@{digest('m1')}"]


def test_the_beginning_of_several_digests_is_refused(content: Content) -> None:
    for last in "12":
        found = f"sha256:{'a' * 63}{last}"
        content.objects[found] = Stored(found, 1, "", 1.0)
    with pytest.raises(Ambiguous, match="beginning of 2"):
        content.removal("sha256:" + "a" * 12)


def test_tags_without_their_image_go_too(content: Content) -> None:
    content.tag(f"{APP}:gone", "not stored")
    removal = content.removal("reg.test/app:gone")
    assert (removal.tags, removal.objects, removal.not_found) == ([f"{APP}:gone"], [], [])


def test_patterns_and_what_is_not_found(content: Content) -> None:
    two_images(content)
    removal = content.removal("reg.test/*", "reg.test/none", "other/*")
    assert len(removal.objects) == 7
    assert removal.not_found == ["reg.test/none", "other/*"]
    assert len(content.look().everything().objects) == 7


def test_blobs_that_nothing_needs(content: Content) -> None:
    two_images(content)
    content.add("loose")
    content.add("new")
    content.objects[digest("new")].created = 100.0
    assert content.look().unreferenced(50.0) == [digest("loose")]


# Names


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("alpine", ImageName("docker.io", "library/alpine")),
        ("alpine:3.22", ImageName("docker.io", "library/alpine", "3.22")),
        ("acme/app", ImageName("docker.io", "acme/app")),
        ("docker.io/alpine", ImageName("docker.io", "library/alpine")),
        ("index.docker.io/library/alpine", ImageName("docker.io", "library/alpine")),
        ("ghcr.io/a/b/c:v1", ImageName("ghcr.io", "a/b/c", "v1")),
        ("localhost/a", ImageName("localhost", "a")),
        ("reg:5000/a:b", ImageName("reg:5000", "a", "b")),
        ("[::1]:5000/a", ImageName("[::1]:5000", "a")),
        (f"alpine:3@{digest('x')}", ImageName("docker.io", "library/alpine", "3", digest("x"))),
    ],
)
def test_images_are_named_as_docker_does(text: str, image: ImageName) -> None:
    assert parse_image(text, default_tag="") == image


@pytest.mark.parametrize(
    "text", ["", "Alpine", "a b", "a:", "a:b c", "a@b", "-x.io/a", "reg.io/", "/a", "a//b", "reg.io/a@sha256:1"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_target(text)


def test_brackets_in_a_pattern_are_an_address() -> None:
    pattern = parse_target("[::1]:5000/*").pattern
    assert pattern is not None
    assert pattern.fullmatch("[::1]:5000/a:b")


# What is no image


def list_of(content: Content, name: str, *entries: dict[str, object]) -> None:
    content.data[digest(name)] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


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
    assert content.look().unreferenced(before=9.0) == []


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


def test_what_another_repository_keeps_is_told_with_who_keeps_it(content: Content) -> None:
    content.add("conf", within=(APP, WEB))
    content.add("m", "conf", within=(APP, WEB))
    content.tag(f"{APP}:1.0", "m")
    content.tag(f"{WEB}:2.0", "m")
    stays = {"manifest": f"{APP}@{digest('m')}", "needed_by": [f"{WEB}:2.0"]}

    removal = content.removal(f"{APP}:1.0")
    assert (removal.images, removal.tags, removal.objects, removal.kept) == ([f"{APP}:1.0"], [f"{APP}:1.0"], [], 2)
    assert removal.stays == [{"name": f"{APP}:1.0", **stays}]
    del content.tags[f"{APP}:1.0"]
    removal = content.removal("reg.test/app")
    assert (removal.images, removal.tags, removal.objects) == ([], [], [])
    assert removal.stays == [{"name": f"{APP}@{digest('m')}", **stays}]
    removal = content.removal("reg.test/*")
    assert (set(removal.objects), removal.stays) == ({digest("m"), digest("conf")}, [])


def test_an_index_of_another_repository_keeps_a_platform(content: Content) -> None:
    content.add("m", "conf", within=(APP, WEB))
    content.index("i", "m", within=(WEB,))
    content.tag(f"{WEB}:2.0", "i")
    (stays,) = content.removal(f"{APP}").stays
    assert stays["needed_by"] == [f"{WEB}:2.0"]

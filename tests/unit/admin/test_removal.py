"""What goes with a removal, and what stays."""

import pytest

from cacheyd.admin.inventory import Ambiguous
from cacheyd.admin.removal import removal_of_everything, unreferenced
from cacheyd.store.rows import Stored
from tests.support.snapshots import APP, WEB, Content, digest, two_images


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
    assert len(removal_of_everything(content.inventory()).objects) == 7


def test_blobs_that_nothing_needs(content: Content) -> None:
    two_images(content)
    content.add("loose")
    content.add("new")
    content.objects[digest("new")].created = 100.0
    assert unreferenced(content.inventory(), 50.0) == [digest("loose")]


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

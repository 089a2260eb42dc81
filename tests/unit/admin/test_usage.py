"""Who takes how much."""

from cacheyd.admin.usage import disk_usage
from tests.support.snapshots import HUB, Content, two_images


def test_space_by_registry_and_repository(content: Content) -> None:
    two_images(content)
    content.add("hub", within=(HUB,), size=1)
    content.add("unknown", within=(), size=2)
    usage = disk_usage(content.inventory())
    assert (usage["objects"], usage["bytes"]) == (9, 73)
    first, *others = usage["registries"]
    assert (first["name"], first["objects"], first["bytes"], first["unique"]) == ("reg.test", 7, 70, 70)
    # The layer that both need counts in both, and is unique to none.
    assert [(r["name"], r["bytes"], r["unique"]) for r in first["repositories"]] == [("app", 40, 30), ("web", 40, 30)]
    assert [(r["name"], r["bytes"]) for r in others] == [("", 2), ("docker.io", 1)]

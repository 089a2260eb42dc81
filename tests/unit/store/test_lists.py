"""Tag lists and referrers in memory: bounded, and each registry at its own cost."""

import pytest

from cacheyd.store.lists import ENTRY, Listed, Lists, read_listed


def listed(size: int = 10, checked: float = 1.0, status: int = 200) -> Listed:
    return Listed(status, (("Content-Type", "application/json"),), b"x" * size, "", checked)


def names(lists: Lists, *tried: str) -> list[str]:
    return [name for name in tried if lists.get(name) is not None]


def test_a_row_is_what_was_kept() -> None:
    lists = Lists()
    lists.set("reg.test/v2/app/tags/list?n=1", listed())
    row = lists.row("reg.test/v2/app/tags/list?n=1")
    assert row is not None
    assert read_listed(row) == listed()
    assert lists.row("other") is None


@pytest.mark.parametrize(
    "change",
    [{"status": 500}, {"status": "x"}, {"headers": 5}, {"headers": [["a"]]}, {"body": "x" * (3 << 20)}, {"at": "never"}],
)
def test_a_broken_row_is_none(change: dict[str, object]) -> None:
    row = {"status": 200, "headers": [], "body": "", "who": "", "at": 1.0}
    assert read_listed(row) is not None
    assert read_listed(row | change) is None


def test_the_oldest_goes() -> None:
    lists = Lists(3 * (ENTRY + 200))
    for number in range(4):
        lists.set(f"reg.test/{number}", listed(100))
    assert names(lists, *(f"reg.test/{number}" for number in range(4))) == ["reg.test/1", "reg.test/2", "reg.test/3"]
    assert lists.bytes == 3 * listed(100).cost("reg.test/0") <= 3 * (ENTRY + 200)
    lists.set("reg.test/1", listed(100))
    lists.set("reg.test/4", listed(100))
    assert lists.get("reg.test/1") is not None, "it was confirmed meanwhile"


def test_who_has_most_makes_room() -> None:
    """A stranger's registry with any number of lists does not push out others'."""
    lists = Lists(10 * (ENTRY + 200))
    lists.set("reg.test/1", listed(100))
    for number in range(100):
        lists.set(f"evil.test/{number}", listed(100))
    assert lists.get("reg.test/1") is not None
    assert lists.get("evil.test/99") is not None
    for name in ("reg.test/1", *(f"evil.test/{number}" for number in range(100))):
        lists.discard(name)
    assert (lists.bytes, len(lists)) == (0, 0)


def test_what_is_read_later_is_older() -> None:
    lists = Lists()
    lists.set("reg.test/1", listed(checked=9.0))
    lists.changed.clear()
    lists.load([("reg.test/2", listed(checked=5.0)), ("reg.test/1", listed(checked=2.0)), ("reg.test/3", listed(checked=4.0))])
    found = [lists.get(f"reg.test/{number}") for number in (1, 2, 3)]
    assert [one.checked for one in found if one] == [9.0, 5.0, 4.0]
    assert not lists.changed
    lists.touch_all()
    assert lists.changed == {"reg.test/1", "reg.test/2", "reg.test/3"}

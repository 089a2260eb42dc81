"""How many pulls are left, and for how long that holds."""

import pytest

from cacheyd.upstream.pulls import MAX_REGISTRIES, WINDOW, PullsLeft
from tests.support.stores import Clock


@pytest.mark.parametrize(
    ("value", "remaining"),
    [("93;w=21600", 93), (" 93 ", 93), ("0", 0), ("", None), ("many", None), ("-1", None), ("9;w=x", None)],
)
def test_what_a_registry_says(value: str, remaining: int | None) -> None:
    assert PullsLeft().note("reg.test", (("ratelimit-remaining", value),)) == remaining


def test_it_holds_for_its_window(monotonic: Clock) -> None:
    pulls = PullsLeft(monotonic)
    assert not pulls.are_below(10, "a.test")
    pulls.note("a.test", (("ratelimit-remaining", "9;w=100"),))
    pulls.note("b.test", (("ratelimit-remaining", "9"),))
    assert pulls.are_below(10, "a.test")
    assert not pulls.are_below(9, "a.test")
    monotonic.now += WINDOW
    assert (pulls.are_below(10, "a.test"), pulls.are_below(10, "b.test")) == (True, False)
    monotonic.now += 100 - WINDOW
    assert not pulls.are_below(10, "a.test")


def test_made_up_names_take_no_more_than_their_room() -> None:
    pulls, said = PullsLeft(), (("ratelimit-remaining", "1"),)
    for number in range(MAX_REGISTRIES + 100):
        pulls.note(f"made-up{number}.test", said)
    assert len(pulls._remaining) == MAX_REGISTRIES
    assert pulls.note("late.test", said) == 1
    assert not pulls.are_below(10, "late.test")

"""The budget of all buffers, and the least rate of a body."""

import pytest

from cacheyd.resources.budget import FLOOR, Budget
from cacheyd.resources.pace import Pace

MIB = 1 << 20


def test_one_alone_gets_all_that_it_can_use() -> None:
    assert Budget(128 * MIB).share(4 * MIB) == 4 * MIB


def test_the_more_is_held_the_less_there_is_for_each() -> None:
    budget = Budget(128 * MIB)
    shares = []
    for _ in range(300):
        shares.append(budget.share(4 * MIB))
        budget.take(shares[-1])
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == FLOOR
    assert budget.held < 128 * MIB + 300 * FLOOR


def test_what_is_given_back_can_be_had_again() -> None:
    budget = Budget(16 * MIB)
    budget.take(16 * MIB)
    assert budget.share(4 * MIB) == FLOOR
    assert budget.share(4 * MIB, 1000) == 1000
    assert budget.share(500) == 500
    budget.give(16 * MIB)
    assert (budget.held, budget.share(4 * MIB)) == (0, 4 * MIB)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("size", "ok"), [(99, False), (100, True), (1000, True)])
def test_a_body_has_a_least_rate_over_a_window(size: int, ok: bool) -> None:
    clock = Clock()
    pace = Pace(10, 10.0, clock)
    verdicts = []
    for _ in range(10):
        began = pace.begin()
        clock.now += 1.0
        verdicts.append(pace.end(began, size / 10))  # type: ignore[arg-type]
    assert verdicts == [True] * 9 + [ok]


def test_who_is_kept_waiting_is_not_slow() -> None:
    """The time between two reads is ours: the disk was busy, or a client slow."""
    clock = Clock()
    pace = Pace(1000, 10.0, clock)
    for _ in range(100):
        began = pace.begin()
        clock.now += 0.01
        assert pace.end(began, 10)
        clock.now += 60.0


def test_a_fast_beginning_does_not_last_for_ever() -> None:
    clock = Clock()
    pace = Pace(10, 10.0, clock)
    assert pace.end(pace.begin(), 1 << 30)
    began = pace.begin()
    clock.now += 10.0
    assert pace.end(began, 1)
    began = pace.begin()
    clock.now += 10.0
    assert not pace.end(began, 1)

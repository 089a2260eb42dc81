"""Who wants a flight, and for how long nobody did."""

from cacheyd.cache.demand import Demand
from cacheyd.cache.requester import Requester
from tests.support.flights import ASKER

BOB, EVE = Requester("reg.example", "lab/img", b"bob"), Requester("reg.example", "lab/img", b"eve")


def test_it_is_over_when_nobody_wanted_it_for_so_long() -> None:
    demand = Demand(ASKER)
    with demand.wanted():
        assert not demand.is_over(0.0, 10.0)
    assert not demand.is_over(100.0, 10.0), "counted from the first look"
    assert not demand.is_over(109.9, 10.0)
    assert demand.is_over(110.0, 10.0)

    demand.enter()
    assert not demand.is_over(120.0, 10.0)
    demand.leave()
    assert not demand.is_over(121.0, 10.0)


def test_several_other_logins_contest_it() -> None:
    demand = Demand(ASKER)
    for who in (ASKER, BOB, BOB, ASKER):
        demand.joined(who)
        assert not demand.contested
    demand.joined(EVE)
    assert demand.contested

"""Which origins are left alone, and for how long."""

from cacheyd.upstream.breaker import MAX_TRACKED, Breaker
from tests.support.stores import Clock


def test_after_a_reload_no_origin_is_dead() -> None:
    clock = Clock(100.0)
    breaker = Breaker(clock)
    breaker.failed("https://a.test", timeout=True, since=99.0)
    assert not breaker.admit("https://a.test")
    clock.now += 1
    breaker.forget()
    assert breaker.admit("https://a.test")
    # What was asked before says nothing of the origin as it is asked now.
    breaker.failed("https://a.test", timeout=True, since=100.5)
    assert breaker.admit("https://a.test")
    breaker.failed("https://a.test", timeout=True, since=101.0)
    assert not breaker.admit("https://a.test")


def test_made_up_names_do_not_make_the_breaker_forget_what_is_dead() -> None:
    clock = Clock(100.0)
    breaker = Breaker(clock)
    breaker.failed("https://dead.test", timeout=True, since=99.0)
    breaker.answered("https://lives.test")
    for number in range(2 * MAX_TRACKED):
        breaker.failed(f"https://made-up.test:{number}", timeout=False, since=99.0)
        if number % 1000 == 0:
            breaker.answered("https://lives.test")
    assert breaker.dead() == ["https://dead.test"]
    assert len(breaker) <= MAX_TRACKED
    # It still knows that this one answered meanwhile.
    breaker.failed("https://lives.test", timeout=True, since=99.5)
    assert breaker.admit("https://lives.test")
    for number in range(2 * MAX_TRACKED):
        breaker.failed(f"https://dead{number}.test", timeout=True, since=99.0)
    assert len(breaker) <= MAX_TRACKED


def test_what_is_slow_makes_no_origin_a_dead_one_nor_keeps_it_dead() -> None:
    clock = Clock(100.0)
    breaker = Breaker(clock)
    origin = "https://a.test"
    for _ in range(10):
        breaker.failed(origin, timeout=True, since=99.0, slow=True)
    assert breaker.admit(origin)
    breaker.failed(origin, timeout=False, since=99.0)
    assert not breaker.admit(origin), "together with another failure"
    clock.now += 5
    assert breaker.admit(origin)
    breaker.failed(origin, timeout=True, since=99.0, slow=True)
    assert breaker.admit(origin), "the next one finds out"

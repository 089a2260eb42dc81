"""The status page: what it shows of a report."""

from dataclasses import replace

from cacheyd.admin.status import kept_nothing, render
from tests.support.reports import REPORT, STORE


def page(trouble: str = "", registries: tuple[str, ...] = (), hits: int = 0, misses: int = 0) -> str:
    """The page of a cache that has been up for a day and a minute."""
    store = replace(STORE, trouble=trouble)
    return render(replace(REPORT, hits=hits, misses=misses, registries=registries, store=store)).decode()


def test_it_says_how_things_are() -> None:
    shown = page(registries=("a.test", "b.test"), hits=3, misses=1)
    for text in ("1 d 0 h 1 min", "3 of 4 requests (75.0 %)", "1 manifest and 2 blobs, 2.0 KiB", "a.test, b.test"):
        assert text in shown
    assert "/cache (unknown free)" in shown
    assert "alert" not in shown


def test_before_the_first_request() -> None:
    assert "no requests yet" in page()
    assert "none: any registry is served" in page()


def test_trouble_is_an_alarm_and_no_markup() -> None:
    shown = page("the disk refuses writes (<b>)")
    assert 'role="alert"' in shown
    assert "<b>" not in shown
    assert kept_nothing("x") == "x: nothing is kept"

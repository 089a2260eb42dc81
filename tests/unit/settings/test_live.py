"""The settings in force, and who hears of a change."""

from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings


def test_all_see_the_new_settings_before_the_first_listener_hears_of_them() -> None:
    live, seen = Live(Settings(max_flights=1)), []
    live.listen(lambda settings: seen.append(("first", settings.max_flights, live.settings.max_flights)))
    live.listen(lambda settings: seen.append(("second", settings.max_flights, live.settings.max_flights)))
    live.change(Settings(max_flights=2))
    assert seen == [("first", 2, 2), ("second", 2, 2)]


def test_what_is_live_stays_the_same_object() -> None:
    live = Live(Settings())
    assert Live.of(live) is live
    assert Live.of(live.settings).settings is live.settings

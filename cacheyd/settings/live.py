"""The settings in force, and who hears of a change."""

from collections.abc import Callable

from cacheyd.settings.settings import Settings

type Listener = Callable[[Settings], None]


class Live:
    """Holds one `Settings` value at a time. Everybody who holds this object sees a change at once; on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: list[Listener] = []

    @classmethod
    def of(cls, settings: "Settings | Live") -> "Live":
        """`settings` itself if it is live already, else settings that nobody changes."""
        return settings if isinstance(settings, Live) else cls(settings)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    def listen(self, listener: Listener) -> None:
        """Has `listener` called after each change, with the new settings, in the order of these calls."""
        self._listeners.append(listener)

    def change(self, settings: Settings) -> None:
        """Puts new settings in force, then tells the listeners."""
        self._settings = settings
        for listener in self._listeners:
            listener(settings)

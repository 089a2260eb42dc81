"""The settings in force, and the listeners that hear of a change."""

from collections.abc import Callable

from cacheyd.settings.settings import Settings

type Listener = Callable[[Settings], None]


class Live:
    """Holds one `Settings` value at a time. All holders of this object see a change at once. For the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: list[Listener] = []

    @classmethod
    def of(cls, settings: "Settings | Live") -> "Live":
        """`settings` itself if it is a `Live`, else a new `Live` that nobody changes."""
        return settings if isinstance(settings, Live) else cls(settings)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    def listen(self, listener: Listener) -> None:
        """Adds a listener: each change calls all listeners with the new settings, in the order in which they were added."""
        self._listeners.append(listener)

    def change(self, settings: Settings) -> None:
        """Puts new settings in force, then tells the listeners."""
        self._settings = settings
        for listener in self._listeners:
            listener(settings)

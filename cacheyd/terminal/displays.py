"""Shows the progress of `warm`: on a terminal, in a log or as JSON."""

import json
from typing import Any, Protocol, Self, TextIO

from cacheyd.observe.wording import counted, shown_size


class Display(Protocol):
    """Shows the events of `warm`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *reason: object) -> None: ...

    def show(self, event: dict[str, Any]) -> None:
        """Shows one event."""


def display_for(out: TextIO, *, as_json: bool) -> Display:
    """The display for an output: lines of JSON if wanted, else bars on a terminal, else lines."""
    if as_json:
        return JsonLines(out)
    return Bars() if out.isatty() else Lines(out)


class Lines:
    """Prints a line for each image and each layer."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._out.flush()

    def show(self, event: dict[str, Any]) -> None:
        """Prints one event; nothing for a layer's progress."""
        if line := line_of(event):
            print(line, file=self._out, flush=True)


class JsonLines(Lines):
    """Prints each event as a line of JSON."""

    def show(self, event: dict[str, Any]) -> None:
        """Prints one event."""
        print(json.dumps(event), file=self._out, flush=True)


def line_of(event: dict[str, Any]) -> str:
    """The line about an event for people; empty for a layer's progress."""
    image, digest = event.get("image", ""), str(event.get("digest", ""))[:19]
    match event["event"]:
        case "image":
            return f"{image}"
        case "layer-done":
            return f"  {digest} {shown_size(event['size'])} {event['result']}"
        case "layer-failed":
            return f"  {digest} {shown_size(event['size'])} failed: {event['reason']}"
        case "done":
            more = f", with {event['referrers']} that refer to it" if "referrers" in event else ""
            held = f" ({event['held']})" if event.get("held") else ""
            without = f"; some of its referrers are missing: {why}" if (why := event.get("referrers_failed")) else ""
            return f"{image}: {shown_size(event['bytes'])} in the cache{more}{held}{without}"
        case "failed":
            return f"{image} failed: {event['reason']}"
        case "end":
            total, here = event["images"], event["images"] - event["failed"]
            without = f"; some referrers of {count} of them are missing" if (count := event.get("referrers_failed")) else ""
            return f"{here} of {counted(total, 'image')} {'is' if 1 in (here, total) else 'are'} in the cache{without}"
    return ""


class Bars:
    """Shows a bar for each layer on its way, below the lines about images and layers that are done."""

    def __init__(self) -> None:
        # rich is imported only here: --help and a log do not need it.
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

        columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
        self._progress = Progress(*columns, transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Shows one event."""
        key = str(event.get("digest", ""))
        if event["event"] == "layer":
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(key[:19], total=event["size"] or None)
            self._progress.update(self._tasks[key], completed=event["received"])
        elif (task := self._tasks.pop(key, None)) is not None:
            self._progress.remove_task(task)
        if line := line_of(event):
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

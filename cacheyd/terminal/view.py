"""Collects the replies to one order, and makes the text that people read."""

import json
import sys
from typing import Any

from cacheyd.admin.control import Reply
from cacheyd.terminal import clean, look
from cacheyd.terminal.progress import Bar, Lines

# The functions for commands whose text needs only the result.
_TEXTS = {
    "du": look.usage,
    "stats": look.totals,
    "rm": clean.removed,
    "gc": clean.collected,
    "verify": clean.verified,
    "release": clean.released,
}


class View:
    """Takes the replies of a command, shows its progress, and makes its text."""

    def __init__(self, command: str, *, as_json: bool, asked: bool = False) -> None:
        self._command = command
        self._json = as_json
        # Whether the user named images: then an empty list is a failure.
        self._asked = asked
        self._rows: list[dict[str, Any]] = []
        self._result: dict[str, Any] = {}
        self._progress: Bar | Lines | None = None

    def take(self, reply: Reply) -> None:
        """Takes one reply."""
        self._rows += reply.get("rows", ())
        self._result = reply.get("result", self._result)
        if (progress := reply.get("progress")) and not self._json:
            if self._progress is None:
                self._progress = Bar() if sys.stderr.isatty() else Lines()
            self._progress.show(progress)

    def end_progress(self) -> None:
        """Ends the display of progress, so that other text can go to the terminal."""
        if self._progress is not None:
            self._progress.close()
        self._progress = None

    def code(self) -> int:
        """The exit code for the result."""
        failed = {
            "ls": self._asked and not self._rows,
            "rm": bool(self._result.get("not_found")) or not clean.is_anything(self._result),
            "verify": bool(self._result.get("dropped")),
            "release": bool(self._result.get("not_found")),
        }
        return int(failed.get(self._command, False))

    def text(self) -> str:
        """The text for standard output."""
        if self._json:
            data = self._rows if self._command in ("ls", "held") else self._result
            return json.dumps(data, indent=2) + "\n"
        match self._command:
            case "ls":
                return look.listed(self._rows)
            case "held":
                return look.holds(self._rows, self._result)
        return _TEXTS[self._command](self._result)

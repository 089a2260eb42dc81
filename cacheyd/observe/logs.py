"""Logs: one line for each request and a few other lines; JSON, or text at a terminal. No line holds a credential."""

import atexit
import json
import logging
import os
import queue
import select
import stat
import sys
import threading
import time
from functools import lru_cache
from typing import NamedTuple, TextIO

ACCESS = "cacheyd.access"
# The most lines that wait for a slow reader of the log.
MAX_WAITING = 50_000
# A pipe that is ready takes a line of this length without waiting (characters; some have up to two bytes more than ASCII).
ATOMIC = 1024
# The most characters of a note that a line shows: the note can quote a peer.
MAX_NOTE = 300


class AccessLine(NamedTuple):
    """The line of one request. `bytes` is the size of the body; `ms` is the time to the end of the response."""

    at: float
    method: str
    registry: str
    repository: str
    reference: str
    status: int
    bytes: int
    cache: str
    ms: float
    client: str
    note: str = ""

    def text(self) -> str:
        """The line as text for people."""
        what = "/".join(part for part in (self.registry, self.repository) if part)
        note = f" ({self.note[:MAX_NOTE]})" if self.note else ""
        how = f"{self.status} {self.bytes}B {self.cache or '-'} {self.ms:.1f}ms"
        return _one_line(f"{self.method} {what} {self.reference} {how} {self.client}{note}")


def _one_line(text: str) -> str:
    """The text with escapes for characters that could end the line or control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _timestamp(at: float) -> str:
    return f"{_second(int(at))}.{int(at % 1 * 1000):03d}Z"


@lru_cache(maxsize=4096)
def _what(method: str, registry: str, repository: str, reference: str, status: int, sent: int, cache: str) -> str:
    """The part of a JSON line that many requests share. It is cached: at thousands of lines per second, encoding it would
    take the GIL from the event loop.
    """
    fields = {
        "level": "info", "msg": "request", "method": method, "registry": registry, "repository": repository,
        "reference": reference, "status": status, "bytes": sent, "cache": cache,
    }  # fmt: skip
    return json.dumps(fields)[1:-1]


_quoted = lru_cache(maxsize=4096)(json.dumps)


class AccessLog:
    """Takes lines on the event loop and writes them in batches from its own thread: at thousands of hits per second, one
    write for each line (or a slow terminal) would be most of the work.
    """

    def __init__(self, stream: TextIO | None, *, as_json: bool) -> None:
        self._stream = stream
        self._json = as_json
        self._closed = False
        self._writing = threading.Lock()
        self._regular = _is_regular(stream)
        self._queue: queue.SimpleQueue[AccessLine | str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_forever, name="cacheyd-log", daemon=True)
        self._thread.start()

    def write(self, line: AccessLine) -> None:
        """Takes a line; the thread writes it within 0.1 seconds. Drops the line if the reader of the log is too slow."""
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put(line)

    def write_text(self, line: str) -> None:
        """Takes a line of another kind. It does not wait either: a slow reader of the log must not hold up the event loop."""
        if self._closed:
            self._write_batch([line])
        elif self._regular:
            # A write to a file does not wait for a reader.
            with self._writing:
                self._write_batch([line])
        elif self._writing.acquire(blocking=False):
            try:
                if self._queue.empty() and len(line) <= ATOMIC and self._takes_more():
                    self._write_batch([line])
                    return
            finally:
                self._writing.release()
            self._enqueue(line)
        else:
            self._enqueue(line)

    def _enqueue(self, line: str) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put(line)

    def _takes_more(self) -> bool:
        """Whether a write of a short line does not wait: a pipe that is ready has room for it (pipe(7), PIPE_BUF)."""
        try:
            return bool(self._stream and select.select([], [self._stream.fileno()], [], 0)[1])
        except (OSError, ValueError):
            return self._stream is not None

    def close(self) -> None:
        """Writes the lines that are left. Later lines are written at once."""
        self._queue.put(None)
        self._thread.join(timeout=5)
        self._closed = not self._thread.is_alive()

    def _write_forever(self) -> None:
        open_ = True
        while open_:
            batch = [self._queue.get()]
            time.sleep(0.05)
            while not self._queue.empty():
                batch.append(self._queue.get())
            open_ = None not in batch
            with self._writing:
                self._write_batch([line for line in batch if line is not None])

    def _write_batch(self, batch: list[AccessLine | str]) -> None:
        if self._stream is None:
            logger = logging.getLogger(ACCESS)
            for line in batch:
                logger.info(line if isinstance(line, str) else line.text())
            return
        text = "".join([line if isinstance(line, str) else self._format(line) for line in batch])
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            pass  # Nobody reads the log any more; cacheyd must go on serving.

    def _format(self, line: AccessLine) -> str:
        if self._json:
            # All these fields are short: names, tags and digests that the parser has checked.
            what = _what(line.method, line.registry, line.repository, line.reference, line.status, line.bytes, line.cache)
            note = f', "note": {json.dumps(line.note[:MAX_NOTE])}' if line.note else ""
            return (
                f'{{"time": "{_timestamp(line.at)}", {what}, "ms": {line.ms:.2f}, "client": {_quoted(line.client)}{note}}}\n'
            )
        return f"{_timestamp(line.at)} {line.text()}\n"


def _is_regular(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


class _ThroughThread(logging.Handler):
    """Hands log records to the thread of the access log: a write to a full pipe would block the event loop."""

    def __init__(self, log: AccessLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Formats the record here, and not in the thread: the objects that it refers to can change."""
        try:
            self._log.write_text(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, with the traceback inside if there is one."""
        fields = {"time": _timestamp(record.created), "level": record.levelname.lower(), "msg": record.getMessage()}
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """A log record for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level (except for info), message, traceback."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{_timestamp(record.created)} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def setup(*, debug: bool, stream: TextIO | None = None) -> AccessLog:
    """Sets up logging for the daemon: cacheyd's lines from info up (from debug up with `debug`), others from warning up.

    mitmproxy's debug lines can show heads, and so credentials: they stay off even with `debug`.
    """
    stream = stream or sys.stderr
    as_json = not stream.isatty()
    access_log = AccessLog(stream, as_json=as_json)
    # Writes the lines of the very end, too, such as the lines of a start that failed.
    atexit.register(access_log.close)
    handler = _ThroughThread(access_log)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cacheyd").setLevel(logging.DEBUG if debug else logging.INFO)
    return access_log

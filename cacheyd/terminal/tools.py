"""The tools that look into the cache and clean it up: through the running cacheyd, or on the directory itself."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from cacheyd.admin import control
from cacheyd.admin.control import CommandError, NoServer, NotAnswering, Reply
from cacheyd.admin.inventory import parse_target
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.images import parse_image
from cacheyd.settings.settings import Settings

# A process that has just taken the directory gets so long to make its socket (seconds).
SOCKET_WAIT = 3.0
# How often progress is told where there is no terminal (seconds).
LINE_EVERY = 2.0
# More rows than this are written without rich, which measures each cell.
RICH_ROWS = 2000
# What a directory has that cacheyd has used.
_TRACES = ("oci-layout", "blobs", "index", "lock")

type Row = tuple[str, ...]
type Consumer = Callable[[Reply], None]


class ToolError(Exception):
    """Why a tool cannot do its work, in one line."""


def run(args: Namespace, settings: Settings) -> int:
    """Runs a tool; the exit code: 0, 1 (failed, or nothing found) or 2 (wrong names)."""
    names: dict[str, tuple[str, Callable[[str], object]]] = {
        "ls": ("patterns", parse_target), "rm": ("targets", parse_target), "release": ("images", parse_image),
    }  # fmt: skip
    options = {key: value for key in ("patterns", "targets", "images", "blobs", "dry_run", "all", "unreferenced")
               if (value := getattr(args, key, None))}  # fmt: skip
    key, check = names.get(args.command, ("", parse_target))
    try:
        for text in options.get(key, ()):
            check(text)
    except ValueError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    view = _View(args.command, as_json=args.json, asked=bool(options.get("patterns")))
    try:
        _carry_out(settings, args.command, options, view.take)
    except (ToolError, CommandError) as error:
        view.end_progress()
        print(f"cacheyd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        view.end_progress()
        return 128 + signal.SIGINT
    view.end_progress()
    _write(view.text())
    return view.code()


# Where the work is done


def _carry_out(settings: Settings, command: str, args: dict[str, Any], consume: Consumer) -> None:
    directory = settings.cache_dir
    try:
        _check_directory(directory)
        _ask_or_do(settings, command, args, consume)
    except BrokenPipeError:
        raise  # Nobody reads what it says.
    except OSError as error:
        raise ToolError(why_unusable(error, directory)) from None


def why_unusable(error: OSError, directory: Path) -> str:
    """Why a tool can do nothing with a directory, in one line."""
    where = error.filename or directory
    if error.errno == errno.EROFS:
        return f"nothing can be written to {where} (read-only file system), and no cacheyd that runs answers there"
    if isinstance(error, PermissionError):
        return f"no permission for {where}: run this as the user that cacheyd runs as"
    return f"{where}: {error.strerror or error}"


def _check_directory(directory: Path) -> None:
    """The store would make what is missing; a tool does not turn any directory into a cache."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise ToolError(f"there is no directory {directory}") from None
    if names and not {*_TRACES, control.NAME}.intersection(names):
        raise ToolError(f"{directory} is not the directory of a cache")


def _ask_or_do(settings: Settings, command: str, args: dict[str, Any], consume: Consumer) -> None:
    from cacheyd.store.lock import DirectoryInUse  # noqa: PLC0415

    directory, deadline = settings.cache_dir, time.monotonic() + SOCKET_WAIT
    while True:
        try:
            for reply in control.request(directory, command, args):
                consume(reply)
            return
        except NoServer:
            pass
        except NotAnswering:
            raise ToolError(f"{_holder(directory)} does not answer on {directory / control.NAME}") from None
        from cacheyd.admin import commands  # noqa: F401, PLC0415 - the owner need not be able to read the code.

        try:
            with control.as_owner(directory):
                asyncio.run(_do(settings, command, args, consume))
            return
        except DirectoryInUse as error:
            if time.monotonic() > deadline:
                raise ToolError(f"{error}, which does not answer on {directory / control.NAME}") from None
        time.sleep(0.1)


def _holder(directory: Path) -> str:
    try:
        return f"the cacheyd that has {directory} (process {int((directory / 'lock').read_text())})"
    except (OSError, ValueError):
        return f"the cacheyd that has {directory}"


async def _do(settings: Settings, command: str, args: dict[str, Any], consume: Consumer) -> None:
    """The command in this process, which has the directory meanwhile."""
    from cacheyd.admin.commands import Commands  # noqa: PLC0415
    from cacheyd.store.store import Store  # noqa: PLC0415

    _check_access(settings.cache_dir)
    set_up_log()
    store = Store(settings.cache_dir, settings)
    await store.start(background=False)
    try:
        if not store.lock.is_held():
            raise ToolError(f"{settings.cache_dir} cannot be locked")
        async with contextlib.aclosing(control.closable(Commands(store).run(command, args))) as replies:
            async for reply in replies:
                consume(reply)
    finally:
        await store.stop()


def _check_access(directory: Path) -> None:
    """The store itself goes on without a directory that it may not write; a tool would show or do nothing."""
    for path in (directory, *(directory / name for name in ("blobs", "blobs/sha256", "index", "index/cache.db", "lock"))):
        mode = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, mode):
            number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(path))


def set_up_log(level: int = logging.NOTSET) -> None:
    """What is logged in a tool's own process is for the terminal."""
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("cacheyd: %(message)s"))
    logging.getLogger().handlers[:] = [handler]


# What people see


class _View:
    """Takes the replies of a command and makes text of them."""

    def __init__(self, command: str, *, as_json: bool, asked: bool = False) -> None:
        self._command = command
        self._json = as_json
        # Whether something was named that is to be there.
        self._asked = asked
        self._rows: list[dict[str, Any]] = []
        self._result: dict[str, Any] = {}
        self._progress: _Bar | _Lines | None = None

    def take(self, reply: Reply) -> None:
        """One reply."""
        self._rows += reply.get("rows", ())
        self._result = reply.get("result", self._result)
        if (progress := reply.get("progress")) and not self._json:
            if self._progress is None:
                self._progress = _Bar() if sys.stderr.isatty() else _Lines()
            self._progress.show(progress)

    def end_progress(self) -> None:
        """Leaves the terminal to others."""
        if self._progress is not None:
            self._progress.close()
        self._progress = None

    def code(self) -> int:
        """The exit code that the result means."""
        failed = {
            "ls": self._asked and not self._rows,
            "rm": bool(self._result.get("not_found")) or not _anything(self._result),
            "verify": bool(self._result.get("dropped")),
            "release": bool(self._result.get("not_found")),
        }
        return int(failed.get(self._command, False))

    def text(self) -> str:
        """All of it."""
        if self._json:
            data = self._rows if self._command in ("ls", "held") else self._result
            return json.dumps(data, indent=2) + "\n"
        if self._command in ("ls", "held"):
            return _list(self._rows) if self._command == "ls" else _holds(self._rows, self._result)
        texts = {"du": _usage, "rm": _removal, "gc": _collection, "verify": _verification, "release": _released}
        return texts.get(self._command, _stats)(self._result)


def _anything(result: dict[str, Any]) -> bool:
    return bool(result.get("objects") or result.get("tags") or result.get("images"))


def _list(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "nothing found\n"
    now, short = time.time(), sys.stdout.isatty()
    if "images" in rows[0]:
        head: Row = ("DIGEST", "SIZE", "KIND", "USED", "HITS", "IMAGES")
        body: list[Row] = [
            (_digest(row["digest"], short), shown_size(row["size"]), row["kind"], _ago(row["used"], now),
             str(row["hits"]), _some(row["images"] or row["repositories"]))
            for row in rows
        ]  # fmt: skip
        return _table(head, body, right={1, 4})
    head = ("IMAGE", "DIGEST", "SIZE", "STATE", "USED", "HITS", "PLATFORMS")
    body = [
        (_name(row, short), _digest(row["digest"], short), shown_size(row["size"]), _state(row), _ago(row["used"], now),
         str(row["hits"]), _platforms(row["platforms"]))
        for row in rows
    ]  # fmt: skip
    return _table(head, body, right={2, 5})


def _name(row: dict[str, Any], short: bool) -> str:
    name = "/".join(part for part in (row["registry"], row["repository"]) if part) or "(unknown)"
    return f"{name}:{row['tag']}" if row["tag"] else f"{name}@{_digest(row['digest'], short)}"


def _digest(digest: str, short: bool) -> str:
    """Enough of it for `cacheyd rm` to know it."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if short else digest


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "-"


def _state(row: dict[str, Any]) -> str:
    if row["missing"]:
        state = f"{counted(len(row['missing']), 'blob')} missing"
    else:
        state = "complete" if row["complete"] else "no platform"
    return f"{state}, pinned" if row["pinned"] else state


def _platforms(platforms: Sequence[dict[str, Any]]) -> str:
    images = [row for row in platforms if row["platform"] != "attestation"]
    here = [f"{row['platform'] or '?'}{' partly' if row['missing'] else ''}" for row in images if row["stored"]]
    return f"{', '.join(here) or 'none'} ({len(here)} of {len(images)})" if images else "-"


def _usage(result: dict[str, Any]) -> str:
    body: list[Row] = []
    for registry in result["registries"]:
        body.append(_usage_row(registry["name"] or "(unknown)", registry))
        body += [_usage_row(f"  {row['name']}", row) for row in registry["repositories"] if row["name"]]
    body.append(("total", str(result["objects"]), shown_size(result["bytes"]), ""))
    return _table(("REGISTRY, REPOSITORY", "OBJECTS", "SIZE", "ONLY HERE"), body, right={1, 2, 3})


def _usage_row(name: str, usage: dict[str, Any]) -> Row:
    return name, str(usage["objects"]), shown_size(usage["bytes"]), shown_size(usage["unique"])


def _removal(result: dict[str, Any]) -> str:
    lines = [f"not found: {name}" for name in result["not_found"]]
    lines += [f"stays: {one['manifest']}, as {_some(one['needed_by'])} needs it" for one in result["stays"]]
    if not _anything(result):
        return "".join(f"{line}\n" for line in lines or ["nothing found"])
    word = "would be removed" if result["dry_run"] else "removed"
    tags = {one["name"] for one in result["stays"]}
    lines += [f"{word}: {name}{', the tag only' if name in tags else ''}" for name in result["images"]]
    lines.append(
        f"{counted(result['objects'], 'object')} and {counted(result['tags'], 'tag')} {word}, {shown_size(result['bytes'])}"
    )
    if result["kept"]:
        lines.append(f"{counted(result['kept'], 'object')} kept for other images")
    return "".join(f"{line}\n" for line in lines)


def _collection(result: dict[str, Any]) -> str:
    names = {
        "lost": "rows without their file dropped",
        "adopted": "files without a row taken up",
        "partials": "partial files removed",
        "tags": "old tags forgotten",
        "evicted": "objects evicted to keep the bounds",
        "unreferenced": "blobs removed that no manifest needs",
    }
    lines = [f"{result[key]} {text}" for key, text in names.items() if result.get(key)]
    lines.append(f"{shown_size(result['freed'])} freed; {counted(result['objects'], 'object')} left")
    return "".join(f"{line}\n" for line in lines)


def _verification(result: dict[str, Any]) -> str:
    lines = [f"dropped: {digest}" for digest in result["dropped"]]
    bad = len(result["dropped"])
    what = f"{bad} did not have their digest" if bad else "all have their digest"
    lines.append(f"{counted(result['checked'], 'object')} checked, {shown_size(result['bytes'])}: {what}")
    return "".join(f"{line}\n" for line in lines)


def _holds(rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> str:
    if not rows:
        other = result.get("other", 0)
        more = f"; no min_age is set here, with other settings {counted(other, 'tag')} would be (--config)" if other else ""
        return f"nothing is held{more}\n"
    now, short = time.time(), sys.stdout.isatty()
    body: list[Row] = [
        (row["image"], _digest(row["digest"], short), _digest(row["served"], short) if row["served"] else "nothing",
         _ago(row["since"], now), f"in {_span(row['until'] - now)}", row["reason"])
        for row in rows
    ]  # fmt: skip
    return _table(("IMAGE", "HELD", "SERVED", "SINCE", "ENDS", "REASON"), body, right=set())


def _released(result: dict[str, Any]) -> str:
    lines = [f"not held: {name}" for name in result["not_found"]]
    lines += [f"released: {row['image']} ({row['digest']})" for row in result["released"]]
    return "".join(f"{line}\n" for line in lines)


def _stats(result: dict[str, Any]) -> str:
    store, server = result["store"], result["server"]
    size, oldest, free = store["max_size"], store["oldest_use"], store["free"]
    rows = [
        ("cache directory", store["cache_dir"]),
        (
            "stored",
            f"{counted(store['manifests'], 'manifest')} and {counted(store['blobs'], 'blob')}, {shown_size(store['bytes'])}",
        ),
        ("tags", str(store["tags"])),
        ("max_size", f"{shown_size(size)} ({100 * store['bytes'] / size:.0f} % used)" if size else "no limit"),
        ("min_free", shown_size(store["min_free"])),
        ("free", f"{'unknown' if free is None else shown_size(free)} of {shown_size(store['disk'])}"),
        ("oldest use", _ago(oldest, time.time()) if oldest else "-"),
        ("index", shown_size(store["index_bytes"])),
        ("partial files", f"{store['partial_files']}, {shown_size(store['partial_bytes'])}"),
    ]
    if server is None:
        return _pairs([*rows, ("running", "no cacheyd has this directory now")])
    total = server["hits"] + server["misses"]
    rate = f" ({100 * server['hit_ratio']:.1f} %)" if total else ""
    evictions = ", ".join(f"{count} ({reason})" for reason, count in sorted(server["evictions"].items()))
    rows += [
        ("running", f"cacheyd {server['version']}, for {_span(server['uptime'])}"),
        ("hits", f"{server['hits']} of {total} requests{rate}"),
        ("sent", ", ".join(f"{shown_size(count)} from {source}" for source, count in server["bytes"].items())),
        ("removed", evictions or "nothing"),
        ("being fetched", str(server["flights"])),
    ]
    return _pairs(rows)


def _ago(at: float, now: float) -> str:
    return f"{_span(now - at)} ago" if at > 0 else "-"


def _span(seconds: float) -> str:
    """A duration for people, in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


# Writing


def _pairs(rows: Sequence[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {_clean(value)}\n" for name, value in rows)


def _table(head: Row, body: Sequence[Row], right: set[int]) -> str:
    if sys.stdout.isatty() and len(body) <= RICH_ROWS:
        return _rich_table(head, body, right)
    rows = [tuple(map(_clean, row)) for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(_line(row, widths, right) for row in rows)


def _line(row: Row, widths: Sequence[int], right: set[int]) -> str:
    cells = [
        cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip() + "\n"


def _rich_table(head: Row, body: Sequence[Row], right: set[int]) -> str:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for n, name in enumerate(head):
        table.add_column(name, justify="right" if n in right else "left", overflow="fold", no_wrap=n in right)
    for row in body:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _clean(text: str) -> str:
    """Without what could talk to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _write(text: str) -> None:
    """To standard output; who reads it may leave at any time."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Lines:
    """Progress as lines, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._said = float("-inf")

    def show(self, progress: dict[str, Any]) -> None:
        """Says how far it is, from time to time and at the end."""
        done, total = progress["done"], progress["total"]
        if done < total and time.monotonic() - self._said < LINE_EVERY:
            return
        self._said = time.monotonic()
        print(f"{done} of {counted(total, 'object')}, {shown_size(progress['bytes'])}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class _Bar:
    """Progress as a bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, progress: dict[str, Any]) -> None:
        """Moves the bar."""
        size = shown_size(progress["bytes"])
        self._bar.update(self._task, completed=progress["done"], total=progress["total"], description=size)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.stop()

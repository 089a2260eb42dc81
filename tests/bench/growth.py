"""What things cost by the number of stored objects: of the store itself, and of the real process on the same directory."""

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tests.bench.clients import ACCEPT, USER_AGENT, WrongAnswer, requests_per_second
from tests.bench.memory import anonymous_bytes
from tests.bench.population import REGISTRY, Address, build
from tests.bench.results import (
    CALM_WAIT,
    FIRST_HIT,
    GROWTH,
    HTTP_HITS,
    LOADED,
    MEMORY,
    RECONCILED,
    START_WAIT,
    TRACED,
    Results,
)
from tests.real.cache import Cacheyd
from tests.real.procs import wait_until

# Objects that wrk asks for in turn, and the pause between the hits that are timed while the process starts (seconds).
ASKED_FOR = 1000
PAUSE = 0.001
CALM = 3.0
START_SECONDS = 120.0
UPSTREAM = f'[registries."{REGISTRY}"]\nupstream = "http://127.0.0.1:9"\n'


def measure_growth(
    directory: Path, objects: Sequence[int], seconds: int, results: Results, say: Callable[[str], None]
) -> None:
    """Fills `results.growth`, from the empty store to the largest one."""
    for count in (0, *objects):
        where = directory / str(count)
        where.mkdir(parents=True)
        addresses = build(where / "cache", count)
        say(f"  {len(addresses):,} objects are in place")
        try:
            figures = _memory(where, addresses)
            if count:
                figures |= _process(where, addresses, seconds)
                traced = _inside("memory", where / "cache")
                figures[TRACED] = traced.pop(TRACED) / 1e6
                results.lines[count] = traced
                figures |= _inside("times", where / "cache")
        except Exception as error:  # The other sizes can still be measured.
            results.failed(f"growth, {count:,} objects", error)
            continue
        for measure, value in figures.items():
            results.growth[measure, count] = value
            say(f"  {measure}, {count:,} objects: {value:,.2f} {GROWTH[measure]}")


def _inside(what: str, directory: Path) -> dict[str, float]:
    argv = [sys.executable, "-m", "tests.bench.inside", what, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


class _Unready(Cacheyd):
    """`start` returns at once. `mark` goes when the store has been looked through."""

    def start(self) -> None:
        self.mark = self.cache_dir / "partial" / "of no use"
        self.mark.touch()
        super().start()

    def ready(self) -> bool:
        return True


def _memory(directory: Path, addresses: Sequence[Address]) -> dict[str, float]:
    """Anonymous memory of `cacheyd serve` when it has read everything and nobody has asked for anything."""
    with _Unready(directory, UPSTREAM) as daemon:
        _wait_loaded(daemon, addresses)
        _wait_reconciled(daemon)
        return {MEMORY: anonymous_bytes(daemon.pid) / 1e6}


def _wait_loaded(daemon: _Unready, addresses: Sequence[Address]) -> None:
    wait_until(lambda: _stored(daemon) == len(addresses), "the index is loaded", seconds=START_SECONDS)


def _wait_reconciled(daemon: _Unready) -> None:
    """Sweeping partial files is the last step of the first look through the directory."""
    wait_until(lambda: not daemon.mark.exists(), "the directory is looked through", seconds=START_SECONDS)


def _process(directory: Path, addresses: Sequence[Address], seconds: int) -> dict[str, float]:
    """`cacheyd serve` on a directory with these objects: its start, its hits, its memory."""
    started = time.perf_counter()
    figures: dict[str, float] = {}
    with _Unready(directory, UPSTREAM) as daemon:
        with _Hits(daemon, addresses, started) as hits:
            _wait_loaded(daemon, addresses)
            figures[LOADED] = time.perf_counter() - started
            _wait_reconciled(daemon)
            figures[RECONCILED] = time.perf_counter() - started
            figures[FIRST_HIT], figures[START_WAIT] = hits.take()
            time.sleep(CALM)
            figures[CALM_WAIT] = hits.take()[1]
        if _stored(daemon) != len(addresses) or ", 0 gone, 0 taken up," not in daemon.log():
            raise WrongAnswer(f"the directory was not taken as it is:\n{daemon.log()[-1000:]}")
        asked = random.Random(5).sample(addresses, min(ASKED_FOR, len(addresses)))
        urls = [daemon.url + address.path for address in asked]
        figures[HTTP_HITS] = requests_per_second(urls, seconds, directory / "wrk.lua")
    return figures


def _stored(daemon: _Unready) -> int:
    try:
        return int(daemon.metric("cacheyd_store_objects"))
    except (OSError, http.client.HTTPException, ValueError):  # Not up yet.
        return -1


class _Hits:
    """Asks for one object after the other over one connection, from before the process is up."""

    def __init__(self, daemon: _Unready, addresses: Sequence[Address], started: float) -> None:
        self._daemon, self._addresses, self._started = daemon, addresses, started
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._first = 0.0
        self._longest = 0.0
        self._error: Exception | None = None

    def take(self) -> tuple[float, float]:
        """Seconds to the first hit, and the milliseconds that the longest one since the last call took."""
        if self._error is not None:
            raise self._error
        longest, self._longest = self._longest, 0.0
        return self._first, longest * 1e3

    def _run(self) -> None:
        numbers = random.Random(6)
        try:
            while not self._stop.is_set() and not self._first:
                self._try_first(self._addresses[0])
            connection = http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=START_SECONDS)
            while not self._stop.wait(PAUSE):
                before = time.perf_counter()
                _ask(connection, numbers.choice(self._addresses))
                self._longest = max(self._longest, time.perf_counter() - before)
            connection.close()
        except Exception as error:  # For the thread that measures.
            self._error = error

    def _try_first(self, address: Address) -> None:
        """Until it listens, connections are refused; until the store is open, the answer is 503."""
        connection = http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=START_SECONDS)
        try:
            _ask(connection, address)
            self._first = time.perf_counter() - self._started
        except (OSError, http.client.HTTPException, WrongAnswer):
            self._stop.wait(PAUSE)
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def _ask(connection: http.client.HTTPConnection, address: Address) -> None:
    connection.request("GET", address.path, headers={"Accept": ACCEPT, "User-Agent": USER_AGENT})
    response = connection.getresponse()
    size = len(response.read())
    if (response.status, size) != (200, address.size):
        raise WrongAnswer(f"{address.path}: {response.status}, {size} bytes")

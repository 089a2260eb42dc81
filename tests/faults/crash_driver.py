"""Kills stores by the hundred: `python -m tests.faults.crash_driver ROOT --kills 300 --seed 1`.

A process that has loaded everything and has neither threads nor a loop forks children that work on one directory and are
killed at any instruction; after each the files are looked at, and after some a child checks what can be had. In a power cut
what was never synced is lost: the child notes each sync, and after its end the rest is zeros, or is not there.
"""

import argparse
import hashlib
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.crash_child import Raise, WrongError, check, load
from tests.faults.crash_content import Content
from tests.support.files import sizes

CHECK_EVERY = 20
# A child's life (seconds): mostly within its start and first requests, sometimes with evictions all along.
SHORT, LONG = (0.001, 0.06), (0.06, 0.3)
CHECK_SECONDS = 60
HEX = re.compile(r"[0-9a-f]{64}")


def main() -> None:
    """Ends with code 1 and the reason if an invariant does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--power-cuts", type=float, default=0.0, help="the share of the kills that are power cuts")
    parser.add_argument("--durability", default="fast")
    options = parser.parse_args()
    driver = Driver(options.root, options.seed, options.power_cuts, options.durability)
    print(f"seed {options.seed}", flush=True)
    for number in range(options.kills):
        try:
            driver.kill_one()
            if number % CHECK_EVERY == CHECK_EVERY - 1 or (driver.damaged and driver.random.random() < 0.3):
                driver.check()
        except WrongError as error:
            sys.exit(f"after kill {number} of seed {options.seed}: {error}")
    print(f"{options.kills} kills, {driver.cuts} power cuts, {driver.lost} files cut or zeroed")


class Driver:
    """One directory, and what is known of its files."""

    def __init__(self, root: Path, seed: int, power_cuts: float, durability: str) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.random = Random(seed)
        self.power_cuts, self.durability = power_cuts, durability
        self.content = Content()
        self.synced = Synced(root)
        self.cuts = self.lost = 0
        self.damaged = False

    def kill_one(self) -> None:
        """A child under load, killed at any time."""
        seed = self.random.getrandbits(32)
        seconds = self.random.uniform(*(SHORT if self.random.random() < 0.9 else LONG))
        child = self._fork(lambda: load(self.root, self.content, self.durability, seed))
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise WrongError(f"a child ended by itself with code {os.waitstatus_to_exitcode(status)}")
        self.synced.read()
        if self.random.random() < self.power_cuts:
            self.cuts += 1
            self.lost += self.synced.cut(self.random)
            self.damaged = True
        self.check_files()

    def check(self) -> None:
        """What a successor makes of it."""
        child = self._fork(lambda: check(self.root, self.content, self.durability))
        deadline = time.monotonic() + CHECK_SECONDS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise WrongError("the check does not end")
            time.sleep(0.005)
        if ended[1]:
            raise WrongError("the check failed")
        self.synced.read()
        self.damaged = False
        self.check_files()

    def _fork(self, work: Callable[[], None]) -> int:
        child = os.fork()
        if child:
            return child
        try:
            logging.getLogger().addHandler(Raise())
            self.synced.record()
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def check_files(self) -> None:
        """Each object has the digest of its name; after a power cut, once somebody has looked at it."""
        for path in [] if self.damaged else sizes(self.root / "blobs"):
            if hashlib.new(path.parent.name, path.read_bytes()).hexdigest() != path.name:
                raise WrongError(f"{path} is not what its name says")


class Synced:
    """How much of which file is on the disk itself. A child notes each sync, and each file that goes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = os.open(root.with_name(f"{root.name}.synced"), os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_TRUNC)
        # By inode and digest: inodes are used again.
        self._sizes: dict[tuple[int, str], int] = {}

    # In the child

    def record(self) -> None:
        """Wraps what syncs and what removes."""
        noting: dict[str, Callable[..., Callable[..., None]]]
        noting = {"fsync": self._noting_sync, "fdatasync": self._noting_sync, "sync": self._noting_sync_of_all}
        noting |= {"unlink": self._noting_removal, "remove": self._noting_removal}
        for name, wrap in noting.items():
            setattr(os, name, wrap(getattr(os, name)))

    def _note(self, inode: int, path: str, size: int) -> None:
        if found := HEX.search(path):
            os.write(self._fd, f"{inode} {found[0]} {size}\n".encode())

    def _noting_sync(self, sync: Callable[[int], None]) -> Callable[..., None]:
        def noting(fd: int) -> None:
            before = os.fstat(fd)
            sync(fd)
            self._note(before.st_ino, os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), before.st_size)

        return noting

    def _noting_removal(self, remove: Callable[..., None]) -> Callable[..., None]:
        def noting(path: str | Path, **kwargs: Any) -> None:
            before = os.stat(path, **kwargs)
            remove(path, **kwargs)
            self._note(before.st_ino, os.path.basename(path), 0)

        return noting

    def _noting_sync_of_all(self, sync: Callable[[], None]) -> Callable[[], None]:
        def noting() -> None:
            before = [(path.name, path.stat()) for path in self._files()]
            sync()
            for name, status in before:
                self._note(status.st_ino, name, status.st_size)

        return noting

    # In its parent

    def _files(self) -> list[Path]:
        return [*sizes(self.root / "blobs"), *sizes(self.root / "partial")]

    def read(self) -> None:
        """Takes the notes of the child that has ended."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        with open(self._fd, closefd=False) as notes:
            for inode, name, size in (line.split() for line in notes):
                self._sizes[int(inode), name] = int(size)
        os.truncate(self._fd, 0)
        there = {self._key(path) for path in self._files()}
        self._sizes = {key: size for key, size in self._sizes.items() if key in there}

    def _key(self, path: Path) -> tuple[int, str]:
        found = HEX.search(path.name)
        return path.stat().st_ino, found[0] if found else ""

    def cut(self, random: Random) -> int:
        """What was not synced becomes zeros, or ends early, or is there by luck; how many files that damaged."""
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        damaged = 0
        for path in self._files():
            status, key = path.stat(), self._key(path)
            durable = self._sizes.get(key, 0)
            if durable < status.st_size and random.random() < 0.9:
                damaged += 1
                _damage(path, durable if random.random() < 0.5 else random.randrange(durable, status.st_size), random)
            self._sizes[key] = path.stat().st_size
            written = int((boot - 60) * 1e9) if path.parent.name == "partial" else status.st_mtime_ns
            os.utime(path, ns=(written, written))
        return damaged


def _damage(path: Path, start: int, random: Random) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        if random.random() < 0.5:
            file.truncate(start)
        else:
            file.seek(start)
            file.write(bytes(size - start))


if __name__ == "__main__":
    main()

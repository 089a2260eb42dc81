"""Small disks of a test's own, which somebody else can fill."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MEBI = 1 << 20


def mount(where: Path, *args: str) -> None:
    """Mounts something there; skips where that is not allowed, but not with CI=true."""
    where.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", *args, str(where)], capture_output=True, text=True, check=False)
    if mounted.returncode and not os.environ.get("CI"):
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr


@contextmanager
def tmpfs(where: Path, options: str) -> Iterator[Path]:
    """Memory as a disk."""
    mount(where, "-t", "tmpfs", "-o", options, "tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@contextmanager
def ext4(where: Path, size: int, *options: str) -> Iterator[Path]:
    """A file of `size` bytes as a disk; `options` are those of mkfs.ext4. Nothing is reserved for root."""
    image = where.with_name(f"{where.name}.img")
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", *options, image], check=True, capture_output=True
    )
    mount(where, "-o", "loop", str(image))
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def resize(where: Path, size: int) -> None:
    """Gives a tmpfs so many bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", where], check=True)


def free(where: Path) -> int:
    """Bytes free."""
    status = os.statvfs(where)
    return status.f_bavail * status.f_frsize


def fill(where: Path, leave: int = 0) -> Path:
    """Somebody else's file, as large as it can be; `leave` bytes stay free. The file."""
    filler = where / "somebody-elses"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        if leave:
            os.posix_fallocate(file.fileno(), 0, free(where) - leave)
        else:
            for size in (MEBI, 4096, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
    return filler


def use_up_inodes(where: Path) -> Path:
    """Somebody else's empty files, as many as there can be; their directory."""
    directory = where / "somebody-elses"
    directory.mkdir()
    with suppress(OSError):
        for number in range(100_000):
            (directory / str(number)).touch()
    return directory


class FailingDisk:
    """A disk whose end cannot be read (EIO) once `fail` was called; what was cached of it is forgotten then."""

    def __init__(self, where: Path, image: Path) -> None:
        self.where = where
        self._image = image

    def fail(self, beyond: int) -> None:
        """What lies beyond so many bytes cannot be read any more."""
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        os.truncate(self._image, beyond)


@contextmanager
def failing_disk(where: Path, size: int) -> Iterator[FailingDisk]:
    """A real file system on a loop device that passes read errors on: only direct I/O does."""
    image = where.with_name(f"{where.name}.img")
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image], check=True, capture_output=True)
    attached = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", image], capture_output=True, text=True, check=False
    )
    if attached.returncode and not os.environ.get("CI"):
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    assert attached.returncode == 0, attached.stderr
    device = attached.stdout.strip()
    try:
        mount(where, device)
        try:
            yield FailingDisk(where, image)
        finally:
            subprocess.run(["umount", "-l", where], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)

"""The directory `partial/` for a store: opens, sweeps and removes its files, one for each object and registry."""

from pathlib import Path

from cacheyd.store import partial_files
from cacheyd.store.blobs import BlobDir
from cacheyd.store.partial import Partial


class PartialDir:
    """All methods block. `partial_files` handles changes of a file between its opening and its locking."""

    def __init__(self, blobs: BlobDir) -> None:
        self._blobs = blobs
        self.path = blobs.root / "partial"

    def path_of(self, digest: str, origin: str = "") -> Path:
        """The path of the file for the object's bytes from this registry."""
        return self.path / partial_files.name_for(digest, origin)

    def open(self, digest: str, origin: str = "") -> Partial:
        """The object's partial file, continued where an earlier fetch from `origin` stopped; raises OSError.

        The bytes of one registry are never continued with another's: any client can name a registry that sends wrong bytes.
        """
        path = self.path_of(digest, origin)
        try:
            return Partial.of(*partial_files.open_for_fetch(path), digest)
        except FileNotFoundError:
            self._blobs.prepare()
            return Partial.of(*partial_files.open_for_fetch(path), digest)

    def open_import(self, path: Path, digest: str) -> Partial:
        """Opens a file that an import has made; raises OSError, FileNotFoundError if the file is not there."""
        return Partial.of(path, partial_files.open_of_import(path), digest)

    def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use any more."""
        partial_files.discard(partial.path, partial.fd)

    def remove(self, path: str) -> bool:
        """Removes a file that has no owner; gives whether it removed the file."""
        return bool(partial_files.remove(path))

    def sweep(self, older_than: float) -> tuple[int, dict[str, int]]:
        """Removes files not written to for `older_than` seconds and files that no fetch can continue, but none with an owner.

        Gives how many files it removed, and path and size of the files that stay and wait for a fetch.
        """
        return partial_files.sweep(self.path, older_than, self._is_wanted)

    def _is_wanted(self, name: str) -> bool:
        """Whether a fetch would continue a file of this name: the file is for an object that is not stored."""
        digest = partial_files.digest_in(name)
        return digest is not None and self._blobs.size(digest) is None

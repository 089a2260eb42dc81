"""The directory `partial/` as a store sees it: a file for each object and registry, opened, looked through and removed."""

from pathlib import Path

from cacheyd.store import partial_files
from cacheyd.store.blobs import BlobDir
from cacheyd.store.partial import Partial


class PartialDir:
    """All methods block. What becomes of a file between its opening and its locking is for `partial_files`."""

    def __init__(self, blobs: BlobDir) -> None:
        self._blobs = blobs
        self.path = blobs.root / "partial"

    def path_of(self, digest: str, origin: str = "") -> Path:
        """The file for what comes of the object from this registry."""
        return self.path / partial_files.name_for(digest, origin)

    def open(self, digest: str, origin: str = "") -> Partial:
        """The object's partial file, continued where an earlier fetch from `origin` stopped; raises OSError.

        What came from one registry is never continued with another's: anybody may ask for a registry that sends wrong bytes.
        """
        path = self.path_of(digest, origin)
        try:
            return Partial.of(*partial_files.open_for_fetch(path), digest)
        except FileNotFoundError:
            self._blobs.prepare()
            return Partial.of(*partial_files.open_for_fetch(path), digest)

    def open_import(self, path: Path, digest: str) -> Partial:
        """A file that an import has made; raises OSError, FileNotFoundError if it is gone."""
        return Partial.of(path, partial_files.open_of_import(path), digest)

    def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use."""
        partial_files.discard(partial.path, partial.fd)

    def remove(self, path: str) -> bool:
        """Removes a file that nobody has; whether it is gone by that."""
        return bool(partial_files.remove(path))

    def sweep(self, older_than: float) -> tuple[int, dict[str, int]]:
        """Removes files not written to for `older_than` seconds and those no fetch can continue, but none under way.

        How many went, and path and size of those that stay and wait for a fetch.
        """
        return partial_files.sweep(self.path, older_than, self._is_wanted)

    def _is_wanted(self, name: str) -> bool:
        """Whether a fetch would go on with a file of this name: one of its object, which is not stored."""
        digest = partial_files.digest_in(name)
        return digest is not None and self._blobs.size(digest) is None

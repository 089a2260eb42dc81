"""Layers that clients read in pieces: while cacheyd stops, it goes on serving these to their end.

containerd (from 2.1 on, with `concurrent_layer_fetch_buffer`) asks for each piece of a layer in a request of its own.
containerd goes to another mirror only with the first request of a layer: if a later one is refused, the pull fails.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cacheyd.cache.answer import Answer
from cacheyd.protocol.headers import header
from cacheyd.protocol.reference import Kind

# A layer of which no piece was asked for during this time has come to its end (seconds).
QUIET = 2.0
# One piece in the middle may be the rest of what broke off, the first one is never alone.
FIRST = 2
# From so many layers on, those that are quiet are forgotten.
MAX_LAYERS = 256


@dataclass(slots=True)
class _Layer:
    readers: int = 0
    asked: float = 0.0
    pieces: int = 0


class Pieces:
    """Which layers are read in pieces, and how long cacheyd has to be there for that."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._layers: dict[str, _Layer] = {}
        self._last: frozenset[str] | None = None

    def begin(self, answer: Answer) -> None:
        """A piece begins to be sent; each is followed by `end`."""
        if (digest := _layer(answer)) is None:
            return
        layer = self._layers.get(digest)
        if layer is None:
            if len(self._layers) >= MAX_LAYERS:
                self._layers = {digest: layer for digest, layer in self._layers.items() if self._is_read(layer)}
            layer = self._layers[digest] = _Layer()
        layer.readers += 1
        layer.pieces += FIRST if _is_first(answer) else 1
        layer.asked = self._monotonic()

    def end(self, answer: Answer) -> None:
        """A piece was sent, or its client has left."""
        digest = _layer(answer)
        layer = self._layers.get(digest) if digest is not None else None
        if layer is not None:
            layer.readers -= 1
            layer.asked = self._monotonic()

    def _is_read(self, layer: _Layer) -> bool:
        return layer.readers > 0 or self._monotonic() - layer.asked < QUIET

    def stop(self) -> int:
        """From now on only those that are being read count; how many there are."""
        self._last = frozenset(
            digest for digest, layer in self._layers.items() if layer.pieces >= FIRST and self._is_read(layer)
        )
        return len(self._last)

    @property
    def wanted(self) -> bool:
        """Whether one that was being read at the stop still is."""
        return any(self._is_read(self._layers[digest]) for digest in self._last or () if digest in self._layers)

    def goes_on(self, digest: str | None) -> bool:
        """Whether pieces of this layer are given out: at any time before the stop, then of those that were being read."""
        return self._last is None or digest in self._last

    def keeps(self, answer: Answer) -> bool:
        """Whether an answer is such a piece after the stop: its client needs its connection."""
        return self._last is not None and _layer(answer) in self._last


def _is_first(answer: Answer) -> bool:
    return (header(answer.headers, "content-range") or "").startswith("bytes 0-")


def _layer(answer: Answer) -> str | None:
    """The layer that an answer is a piece of; None for everything else."""
    ref = answer.ref
    if answer.status != 206 or answer.source is None or ref is None or ref.kind is not Kind.BLOB:
        return None
    return ref.digest

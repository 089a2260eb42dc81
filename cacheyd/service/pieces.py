"""Layers that clients read in pieces: while cacheyd stops, it still serves these layers to their end.

containerd (from 2.1 on, with `concurrent_layer_fetch_buffer`) asks for each piece of a layer in a request of its own.
containerd goes to another mirror only with the first request of a layer: if cacheyd refuses a later request, the pull fails.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cacheyd.cache.answer import Answer
from cacheyd.protocol.headers import header
from cacheyd.protocol.reference import Kind

# If no client asks for a piece of a layer during this time (seconds), the layer counts as read to its end.
QUIET = 2.0
# A layer counts as read in pieces from this number of pieces on. A first piece alone is enough: more pieces always follow it.
# A single piece from the middle is not enough: this piece can be the resume of a download that broke off.
FIRST = 2
# If there are this many layers, the quiet ones are forgotten.
MAX_LAYERS = 256


@dataclass(slots=True)
class _Layer:
    readers: int = 0
    asked: float = 0.0
    pieces: int = 0


class Pieces:
    """Knows which layers clients read in pieces, and whether a stopping cacheyd must still serve them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._layers: dict[str, _Layer] = {}
        self._last: frozenset[str] | None = None

    def begin(self, answer: Answer) -> None:
        """Notes that cacheyd begins to send a piece. The caller must call `end` after it."""
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
        """Notes that a piece was sent, or that its client has left."""
        digest = _layer(answer)
        layer = self._layers.get(digest) if digest is not None else None
        if layer is not None:
            layer.readers -= 1
            layer.asked = self._monotonic()

    def _is_read(self, layer: _Layer) -> bool:
        return layer.readers > 0 or self._monotonic() - layer.asked < QUIET

    def stop(self) -> int:
        """Notes the stop: from now on, only the layers that clients read at this moment count. Gives their number."""
        self._last = frozenset(
            digest for digest, layer in self._layers.items() if layer.pieces >= FIRST and self._is_read(layer)
        )
        return len(self._last)

    @property
    def wanted(self) -> bool:
        """Whether a client still reads a layer that counted at the stop."""
        return any(self._is_read(self._layers[digest]) for digest in self._last or () if digest in self._layers)

    def goes_on(self, digest: str | None) -> bool:
        """Whether cacheyd gives out pieces of this layer: always before the stop, then only of layers read at the stop."""
        return self._last is None or digest in self._last

    def keeps(self, answer: Answer) -> bool:
        """Whether the answer, after the stop, is a piece of a layer read at the stop: the client needs its connection."""
        return self._last is not None and _layer(answer) in self._last


def _is_first(answer: Answer) -> bool:
    return (header(answer.headers, "content-range") or "").startswith("bytes 0-")


def _layer(answer: Answer) -> str | None:
    """The layer that an answer is a piece of; None for everything else."""
    ref = answer.ref
    if answer.status != 206 or answer.source is None or ref is None or ref.kind is not Kind.BLOB:
        return None
    return ref.digest

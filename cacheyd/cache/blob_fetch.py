"""One blob's way in: attempts that go on where the last one broke, until its digest is verified."""

import random
from collections.abc import Sequence

from cacheyd.upstream.port import Chunk

# Progress of so many bytes makes the next break a first one again.
PROGRESS = 64 << 10


def _pause(attempt: int) -> float:
    return min(5.0, 0.1 * float(2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311


class _StartOver(Exception):
    """The fetch begins anew, from the first byte."""


def _drop(chunks: Sequence[Chunk], skip: int) -> tuple[list[Chunk], int]:
    """The chunks without their first `skip` bytes, and what is left to skip."""
    kept: list[Chunk] = []
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
        else:
            kept.append(chunk[skip:])
            skip = 0
    return kept, skip

"""How many bytes have to go, and how many may: the arithmetic of the bounds, without any change of anything."""

# What is not verified yet displaces no more than one of so many parts of what the store may hold.
UNVERIFIED = 10

# Room that is never used up by a fetch (bytes): the index and the log want some, too.
RESERVE = 16 << 20

# With fewer files left that could be made, objects make room, however many bytes are free.
FEW_FILES = 64


def to_free(stored: int, max_size: int, free: int | None, min_free: int, *, low: float = 0.9, size: int = 0) -> int:
    """How many bytes have to go for `size` more: none below the limits, beyond one of them so many that the low one holds.

    `low` is the low watermark as a share of `max_size`; of `min_free` as much more stays free.
    """
    over = 0
    if max_size and stored + size > max_size:
        low_size = int(max_size * low)
        over = stored + size - (low_size if size <= low_size else max_size)
    if free is not None and free - size < min_free:
        over = max(over, int(min_free * (2 - low)) - (free - size))
    return over

"""Flights that failed just now: who may go on here, and who has to ask upstream first."""

# A broken flight is answered 502 for so long, so that clients resume at the upstream and not here (seconds).
FAILURE_PAUSE = 15.0

MISMATCH_PAUSE = 60.0

# For so long after several other logins waited for a flight that upstream refused, nobody starts one before upstream said
# that he may have the object (seconds).
CONTESTED = 5.0

# Wrong bytes once may be chance on the way; so often in a row, they are what the upstream has.
PERSISTENT = 2


def _bound[K, V](table: dict[K, V], limit: int = 10_000) -> None:
    """Makes room in a table of recent events by forgetting the oldest half."""
    if len(table) >= limit:
        for key in list(table)[: limit // 2]:
            del table[key]

"""How many files and sockets this process may have open."""

import resource


def raise_limit() -> int:
    """Takes all that this process may have; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard

"""Reads an upstream's answer that cacheyd passes on as it is into memory, within bounds of bytes and seconds."""

import asyncio

from cacheyd.protocol.headers import end_to_end
from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Relay, UpstreamBroken, UpstreamResponse, read_all

# The most bytes of an error's body.
RELAY_MAX = 64 << 10
# How long cacheyd waits for the body of an error (seconds).
RELAY_WAIT = 5.0


async def read_relay(response: UpstreamResponse, budget: Budget, *, from_head: bool = False) -> Relay:
    """The response as it is, with its body in memory. If the body breaks or is too large, cacheyd makes the error's body.

    Closes the response.
    """
    try:
        async with asyncio.timeout(RELAY_WAIT):
            body = await read_all(response, RELAY_MAX, budget)
    except (UpstreamBroken, TimeoutError):
        body = None
    finally:
        response.close()
    return Relay(response.status, end_to_end(response.headers), body or b"", from_head or body is None)

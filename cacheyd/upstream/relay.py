"""An upstream's answer that is passed on as it is: read into memory, within bounds of bytes and seconds."""

import asyncio

from cacheyd.protocol.headers import end_to_end
from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Relay, UpstreamBroken, UpstreamResponse, read_all

# The most that an error's body may have (bytes).
RELAY_MAX = 64 << 10
# How long the body of an error is waited for (seconds).
RELAY_WAIT = 5.0


async def read_relay(response: UpstreamResponse, budget: Budget, *, from_head: bool = False) -> Relay:
    """A response as it is, with its body in memory. If that breaks or is too large, an error gets a body of ours.

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

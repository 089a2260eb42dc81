"""Decodes small answers that came encoded, in memory."""

import asyncio
from collections.abc import Sequence

from cacheyd.protocol.codings import BadCoding, UnknownCoding, codings_of
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, end_to_end, without
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget, HeldBody
from cacheyd.resources.decoding import NoTurn, undo
from cacheyd.store.objects import MANIFEST_MAX as KEPT_MAX
from cacheyd.upstream.port import Chunk, Relay, UpstreamBroken, UpstreamResponse, as_request_error, read_all

# The error text for a body that does not fit into the budget.
NO_ROOM = "too much waits in memory for clients that read slowly"
WRONG = "upstream sent bytes that do not have this digest"
_ENCODED = "upstream encoded the body although cacheyd did not ask for an encoding"


async def read_decoded(ref: Reference, response: UpstreamResponse, limit: int, budget: Budget, *, digest: str = "") -> bytes:
    """The whole body, decoded, or as it came if these bytes have the digest. Closes the response. Raises RequestError."""
    codings = codings_of(response.headers)
    try:
        data = await read_all(response, limit, budget)
    except UpstreamBroken as error:
        raise as_request_error(error) from error
    finally:
        response.close()
    if data is None:
        raise upstream_error(502, f"{_ENCODED}, and there is no room to decode the body")
    return bytes(await decoded(ref, data, codings, limit, budget, digest=digest))


async def decoded(
    ref: Reference, data: bytes | bytearray, codings: Sequence[str], limit: int, budget: Budget, *, digest: str = ""
) -> bytes | bytearray:
    """A body without its coding. `digest` is the digest that it must have, empty if unknown. Raises RequestError."""

    def is_right(came: bytes | bytearray) -> bool:
        return bool(digest) and digest_of(came, digest.partition(":")[0]) == digest

    try:
        return await undo(ref.registry, data, codings, limit, budget, is_right=is_right)
    except NoTurn:
        raise upstream_error(503, f"{_ENCODED}, and too many bodies wait to be decoded") from None
    except UnknownCoding as error:
        raise upstream_error(502, f"{_ENCODED}: {error}") from None
    except BadCoding as error:
        code = Code.DIGEST_INVALID if digest else Code.UNKNOWN
        detail = {"digest": digest} if digest else {}
        raise RequestError(Failure(502, code, f"{_ENCODED}: {error}", Blame.UPSTREAM, detail)) from None


async def read_object(ref: Reference, response: UpstreamResponse, digest: str, budget: Budget) -> Relay:
    """Decodes an object that is not kept, in memory. Its digest, if known, shows which bytes are the object.

    Raises RequestError, also for more than 4 MiB: only the end of the body shows which bytes are the object.
    """
    data = await read_decoded(ref, response, KEPT_MAX, budget, digest=digest)
    if digest and await asyncio.to_thread(digest_of, data, digest.partition(":")[0]) != digest:
        raise RequestError(Failure(502, Code.DIGEST_INVALID, WRONG, Blame.UPSTREAM, {"digest": digest}))
    headers = without(end_to_end(response.headers), "content-encoding")
    return Relay(response.status, headers, data)


class Whole:
    """A response whose decoded body is in memory, and counts in the budget until `close`. Without a body, `read` raises."""

    def __init__(self, response: UpstreamResponse, body: bytes | None, budget: Budget) -> None:
        self.status = response.status
        length = () if body is None else (("Content-Length", str(len(body))),)
        self.headers: HeaderList = (*without(response.headers, "content-encoding", "content-length"), *length)
        self.by_other_host = response.by_other_host
        self._held = None if body is None else HeldBody(body, budget)

    async def read(self) -> Sequence[Chunk]:
        """The next piece, as of any response, up to 64 KiB. Raises UpstreamBroken."""
        if self._held is None:
            raise UpstreamBroken("upstream's body cannot be decoded")
        piece = await self._held.read()
        return [piece] if piece else []

    def close(self) -> None:
        """Drops the body."""
        if self._held is not None:
            self._held.close()

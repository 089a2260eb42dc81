"""Small answers that came encoded: their bodies in memory, without the coding."""

import asyncio
from collections.abc import Sequence

from cacheyd.protocol.codings import BadCoding, UnknownCoding, codings_of
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, end_to_end, without
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget, HeldBody
from cacheyd.resources.decoding import NoTurn, undo
from cacheyd.store.shelf import MANIFEST_MAX as KEPT_MAX
from cacheyd.upstream.port import Chunk, Relay, UpstreamBroken, UpstreamResponse, as_request_error, read_all

# Where what a client would get does not fit into the budget.
NO_ROOM = "too much waits in memory for clients that read slowly"
WRONG = "upstream sent bytes that do not have this digest"
_ENCODED = "upstream encoded it although nobody asked for that"


async def read_decoded(ref: Reference, response: UpstreamResponse, limit: int, budget: Budget, *, digest: str = "") -> bytes:
    """All of a body, decoded, or as it came if that has the digest. Closes the response. Raises RequestError."""
    codings = codings_of(response.headers)
    try:
        data = await read_all(response, limit, budget)
    except UpstreamBroken as error:
        raise as_request_error(error) from error
    finally:
        response.close()
    if data is None:
        raise upstream_error(502, f"{_ENCODED}, and there is no room to decode it")
    return bytes(await decoded(ref, data, codings, limit, budget, digest=digest))


async def decoded(
    ref: Reference, data: bytes | bytearray, codings: Sequence[str], limit: int, budget: Budget, *, digest: str = ""
) -> bytes | bytearray:
    """A body without its coding. `digest` is the one that it must have, empty if nobody knows. Raises RequestError."""

    def is_right(came: bytes | bytearray) -> bool:
        return bool(digest) and digest_of(came, digest.partition(":")[0]) == digest

    try:
        return await undo(ref.registry, data, codings, limit, budget, is_right=is_right)
    except NoTurn:
        raise upstream_error(503, f"{_ENCODED}, and too much waits to be decoded") from None
    except UnknownCoding as error:
        raise upstream_error(502, f"{_ENCODED}: {error}") from None
    except BadCoding as error:
        code = Code.DIGEST_INVALID if digest else Code.UNKNOWN
        detail = {"digest": digest} if digest else {}
        raise RequestError(Failure(502, code, f"{_ENCODED}: {error}", Blame.UPSTREAM, detail)) from None


async def read_object(ref: Reference, response: UpstreamResponse, digest: str, budget: Budget) -> Relay:
    """An object that came encoded and is not kept, in memory. Its digest, if known, says which bytes are the object.

    Raises RequestError, also for more than 4 MiB: which bytes are the object would be known at the end only.
    """
    data = await read_decoded(ref, response, KEPT_MAX, budget, digest=digest)
    if digest and await asyncio.to_thread(digest_of, data, digest.partition(":")[0]) != digest:
        raise RequestError(Failure(502, Code.DIGEST_INVALID, WRONG, Blame.UPSTREAM, {"digest": digest}))
    headers = without(end_to_end(response.headers), "content-encoding")
    return Relay(response.status, headers, data)


class Whole:
    """A response whose body is in memory, decoded, and counts until it is closed; without a body it breaks when it is read."""

    def __init__(self, response: UpstreamResponse, body: bytes | None, budget: Budget) -> None:
        self.status = response.status
        length = () if body is None else (("Content-Length", str(len(body))),)
        self.headers: HeaderList = (*without(response.headers, "content-encoding", "content-length"), *length)
        self.elsewhere = response.elsewhere
        self._held = None if body is None else HeldBody(body, budget)

    async def read(self) -> Sequence[Chunk]:
        """As the response's own, up to 64 KiB at once. Raises UpstreamBroken."""
        if self._held is None:
            raise UpstreamBroken("its body cannot be decoded")
        piece = await self._held.read()
        return [piece] if piece else []

    def close(self) -> None:
        """As the response's own."""
        if self._held is not None:
            self._held.close()

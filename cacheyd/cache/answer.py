"""Answers: status, headers and body of a response, in one form for all clients and connections."""

import time
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from cacheyd.cache.age import shown
from cacheyd.cache.bodies import Source
from cacheyd.cache.decoded import NO_ROOM
from cacheyd.protocol.errors import RequestError, cache_error
from cacheyd.protocol.headers import HeaderList, without
from cacheyd.protocol.ranges import Part
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.resources.budget import FLOOR, Budget, HeldBody
from cacheyd.store.records import Stored
from cacheyd.upstream.port import Relayed

API_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
PROXIED_BY = ("X-Proxied-By", "cacheyd")
# RFC 9111 dropped the Warning header, but people search logs for it.
STALE_WARNING = ("Warning", '110 cacheyd "upstream failed: last known tag"')
# The reason in the log for a stale answer without a question to upstream.
FEW_LEFT = "fewer pulls are left than ratelimit_floor"
MISS, HIT, STALE, REVALIDATED, BYPASS, HELD = "MISS", "HIT", "STALE", "REVALIDATED", "BYPASS", "HELD"


class Answer(NamedTuple):
    """A response to be sent. The body is `body`, or the bytes of `source`, or empty; `result` is for X-Cache and the log.

    `page` marks pages of cacheyd itself, which are neither counted nor logged; `note` is for the log and gives the reason.
    `stored` is the object on disk that the answer was made from, if there is one. `length` is the Content-Length in bytes,
    also of a HEAD; None if unknown, then the body is chunked.

    An answer never changes: its methods return new answers. It is a named tuple because each hit makes an answer, and making
    a frozen dataclass takes three times as long.
    """

    status: int
    headers: HeaderList
    body: bytes | memoryview = b""
    source: Source | None = None
    length: int | None = 0
    result: str = ""
    ref: Reference | None = None
    stored: Stored | None = None
    page: bool = False
    note: str = ""

    def with_headers(self, *more: tuple[str, str]) -> "Answer":
        """The answer with these headers, too."""
        return self._replace(headers=(*self.headers, *more))

    def noted(self, note: str) -> "Answer":
        """The answer with a note for the log."""
        return self._replace(note=note)

    def with_source(self, source: Source, length: int | None) -> "Answer":
        """The answer with a body of `length` bytes (None if unknown) from `source`."""
        return self._replace(source=source, length=length)

    def without_source(self) -> "Answer":
        """The answer without its source: after an answer was sent, it must keep nothing of the store."""
        return self._replace(source=None)

    def with_part(self, part: Part, size: int) -> "Answer":
        """The answer with this part of an object of `size` bytes in place of the whole (RFC 9110 section 15.3.7)."""
        headers = (*without(self.headers, "content-range"), ("Content-Range", part.content_range(size)))
        return self._replace(status=206, length=part.length, headers=headers)

    def marked_stale(self) -> "Answer":
        """The answer marked as stale: upstream did not confirm it."""
        return self.with_headers(STALE_WARNING)

    def marked_held(self, digest: str, until: float) -> "Answer":
        """The answer marked as the stand-in for `digest`, which is too young until `until` (seconds since the epoch)."""
        text = f"held until {shown(until)}: {digest} is too young"
        return self.with_headers(("Warning", f'299 cacheyd "{text}"')).noted(text)

    def in_place_of(self, ref: Reference) -> "Answer":
        """The same object as the answer for `ref`, a held tag."""
        headers = (*without(self.headers, "x-cache"), ("X-Cache", HELD))
        return self._replace(ref=ref, result=HELD, headers=headers)


def counted(answer: Answer, budget: Budget) -> Answer:
    """The answer; a large body counts in the budget until it is sent or the client leaves. A 503 if there is no room.

    A body that is sent in one piece would be copied for each client, and would stay in memory until that client has read it.
    """
    if len(answer.body) <= FLOOR or answer.source is not None:
        return answer
    if not budget.has_room_for(answer.body):
        return error_answer(cache_error(NO_ROOM, 503), answer.ref)
    return answer._replace(source=HeldBody(answer.body, budget), body=b"")


def scope_headers(ref: Reference | None) -> HeaderList:
    """The headers that name the registry."""
    if ref is None:
        return (PROXIED_BY,)
    scoped = (("OCI-Namespace", ref.ns),) if ref.scoped else ()
    return (PROXIED_BY, ("X-Proxied-For", ref.registry), *scoped)


def object_headers(ref: Reference, digest: str, media_type: str, result: str) -> HeaderList:
    """The headers of an object (distribution-spec: answers to GET and HEAD must have Docker-Content-Digest)."""
    ranges = (("Accept-Ranges", "bytes"),) if ref.kind is Kind.BLOB else ()
    return (
        ("Content-Type", media_type),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        API_VERSION,
        *ranges,
        ("X-Cache", result),
        *scope_headers(ref),
    )


@lru_cache(maxsize=4)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def hit_headers(now: float, since: float) -> HeaderList:
    """The Age header, in seconds since upstream confirmed the object (RFC 9111 section 5.1), and the time of this answer."""
    date = _http_date(int(now))
    return (("Age", str(max(0, int(now - since)))), ("Date", date), ("X-Proxy-Date", date))


def error_answer(error: RequestError, ref: Reference | None = None) -> Answer:
    """A failure as OCI error JSON."""
    failure = error.failure
    body = failure.body()
    headers = (("Content-Type", "application/json"), API_VERSION, *failure.headers, *scope_headers(ref))
    return Answer(failure.status, headers, body, None, len(body), "", ref, note=failure.message)


def why_stale(error: Relayed | RequestError) -> str:
    """The reason for the log why upstream did not confirm the object that is served."""
    return f"upstream answered {error.relay.status}" if isinstance(error, Relayed) else error.failure.message


def text_answer(status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> Answer:
    """A page of cacheyd itself."""
    headers = (
        ("Content-Type", content_type),
        ("Date", _http_date(int(time.time()))),
        ("Cache-Control", "no-store"),
    )
    return Answer(status, headers, body, None, len(body), page=True)


def unsatisfiable(ref: Reference, size: int, headers: HeaderList, result: str) -> Answer:
    """The answer 416: the client asks for none of the object's `size` bytes (RFC 9110 section 15.5.17).

    `headers` are the object's.
    """
    kept = (*without(headers, "content-type"), ("Content-Range", f"bytes */{size}"))
    return Answer(416, kept, length=0, result=result, ref=ref)

"""Answers: status, headers and body of a response, the same for every way it goes out."""

import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache

from cacheyd.cache.bodies import Source
from cacheyd.cache.fetch import NO_ROOM
from cacheyd.protocol.errors import RequestError, cache_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.resources.budget import FLOOR, Budget, Held
from cacheyd.store.rows import Stored
from cacheyd.upstream.port import Relayed

API_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
PROXIED_BY = ("X-Proxied-By", "cacheyd")
# RFC 9111 dropped Warning, but people grep for it.
STALE_WARNING = ("Warning", '110 cacheyd "upstream failed: last known tag"')
# For the log: why what is known is served although it is stale.
FEW_LEFT = "fewer pulls are left than ratelimit_floor"
MISS, HIT, STALE, REVALIDATED, BYPASS, HELD = "MISS", "HIT", "STALE", "REVALIDATED", "BYPASS", "HELD"


@dataclass(slots=True)
class Answer:
    """A response to be sent. The body is `body`, or what `source` gives, or nothing; `result` is for X-Cache and the log.

    `page` marks pages of cacheyd itself, which are neither counted nor logged; `note` is for the log: why it is an error.
    `stored` is the object that it was made from, where it is one on disk.
    `length` is the Content-Length in bytes, also of a HEAD; None if it is not known, which makes the body chunked.
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


def held(answer: Answer, budget: Budget) -> Answer:
    """The answer with a large body counted until it is sent, or the client has left; a 503 where there is no room for it.

    To be sent whole, each client would have a copy of it for as long as it does not read.
    """
    if len(answer.body) <= FLOOR or answer.source is not None:
        return answer
    if not budget.has_room_for(answer.body):
        return error_answer(cache_error(NO_ROOM, 503), answer.ref)
    answer.source, answer.body = Held(answer.body, budget), b""
    return answer


def scope_headers(ref: Reference | None) -> HeaderList:
    """The headers that say which registry this was about."""
    if ref is None:
        return (PROXIED_BY,)
    scoped = (("OCI-Namespace", ref.ns),) if ref.scoped else ()
    return (PROXIED_BY, ("X-Proxied-For", ref.registry), *scoped)


def object_headers(ref: Reference, digest: str, media_type: str, result: str) -> HeaderList:
    """The headers of an object (distribution-spec: Docker-Content-Digest is owed on GET and HEAD)."""
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
    """Age in seconds since upstream confirmed it (RFC 9111 section 5.1), and when this cache answered."""
    date = _http_date(int(now))
    return (("Age", str(max(0, int(now - since)))), ("Date", date), ("X-Proxy-Date", date))


def error_answer(error: RequestError, ref: Reference | None = None) -> Answer:
    """A failure as OCI error JSON."""
    failure = error.failure
    body = failure.body()
    headers = (("Content-Type", "application/json"), API_VERSION, *failure.headers, *scope_headers(ref))
    return Answer(failure.status, headers, body, None, len(body), "", ref, note=failure.message)


def why_stale(error: Relayed | RequestError) -> str:
    """For the log: what kept upstream from confirming what is served."""
    return f"upstream answered {error.relay.status}" if isinstance(error, Relayed) else error.failure.message


def text_answer(status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> Answer:
    """A page of cacheyd itself."""
    headers = (
        ("Content-Type", content_type),
        ("Date", _http_date(int(time.time()))),
        ("Cache-Control", "no-store"),
    )
    return Answer(status, headers, body, None, len(body), page=True)

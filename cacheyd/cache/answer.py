"""Answers: status, headers and body of a response, the same for every way it goes out."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import quote

from cacheyd.cache.bodies import BodyBroken, Source
from cacheyd.cache.decoded import NO_ROOM
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, cache_error
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header, without
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.targets import is_ns, name_to_ask
from cacheyd.resources.budget import FLOOR, Budget, HeldBody
from cacheyd.store.rows import Stored
from cacheyd.upstream.port import Relay, Relayed, UpstreamBroken, UpstreamResponse

API_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
PROXIED_BY = ("X-Proxied-By", "cacheyd")
# A piece has a turn at its registry until its client has it; for so long at the most (seconds).
PIECE_TIME = 120.0
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


class RelaySource:
    """An upstream's body, passed on as it comes and not kept."""

    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """What has come since; empty at the end. Raises BodyBroken."""
        try:
            return b"".join(await self._response.read())
        except UpstreamBroken as error:
            raise BodyBroken(str(error)) from error

    def close(self) -> None:
        """Ends the upstream's response, too."""
        self._response.close()


class PieceSource(RelaySource):
    """A piece of an upstream's blob, passed on as it comes: no more of it than was said, and not for ever."""

    def __init__(self, response: UpstreamResponse, length: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(response)
        self._left = length
        self._clock = clock
        self._until = clock() + PIECE_TIME

    async def read(self) -> bytes:
        """As in the base class."""
        if self._left and self._clock() > self._until:
            raise BodyBroken("the client takes too long for a piece")
        data = await super().read()
        self._left -= len(data)
        if self._left < 0:
            raise BodyBroken("upstream sent more of a piece than it said")
        return data


def held(answer: Answer, budget: Budget) -> Answer:
    """The answer with a large body counted until it is sent, or the client has left; a 503 where there is no room for it.

    To be sent whole, each client would have a copy of it for as long as it does not read.
    """
    if len(answer.body) <= FLOOR or answer.source is not None:
        return answer
    if not budget.has_room_for(answer.body):
        return error_answer(cache_error(NO_ROOM, 503), answer.ref)
    answer.source, answer.body = HeldBody(answer.body, budget), b""
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


def relay_answer(ref: Reference, relay: Relay, result: str, *, head: bool) -> Answer:
    """An upstream's answer, unaltered but for what says that it came through here, and what an object's answer owes."""
    ours = "x-cache", "x-proxied-by", "x-proxied-for", "oci-namespace"
    # What is sent on is not encoded.
    headers = without(relay.headers, "content-length", "content-encoding", *ours)
    body = relay.body
    length: int | None = len(body)
    if head:
        length = content_length(relay.headers)
    elif relay.from_head and relay.status >= 400:
        body = _stand_in(relay.status)
        length = len(body)
        headers = (*without(headers, "content-type"), ("Content-Type", "application/json"))
    if ref.kind in (Kind.TAGS, Kind.REFERRERS):
        headers = tuple((name, _next_page(value, ref) if name.lower() == "link" else value) for name, value in headers)
    elif 200 <= relay.status < 300:
        headers = _as_object(ref, headers)
    return Answer(relay.status, (*headers, ("X-Cache", result), *scope_headers(ref)), body, None, length, result, ref)


def _stand_in(status: int) -> bytes:
    """The body of an error that is known from a HEAD only."""
    code = {401: Code.UNAUTHORIZED, 403: Code.DENIED, 404: Code.MANIFEST_UNKNOWN, 429: Code.TOOMANYREQUESTS}
    return Failure(status, code.get(status, Code.UNKNOWN), f"the registry answered {status}", Blame.UPSTREAM).body()


def _as_object(ref: Reference, headers: HeaderList) -> HeaderList:
    """Docker-Content-Digest, which a CDN does not know that it owes, and the ETag that goes with it."""
    stated = header(headers, "docker-content-digest") or ""
    digest = ref.digest or (stated if DIGEST.fullmatch(stated) else "")
    if not digest:
        return headers
    kept = without(headers, "docker-content-digest", "etag", "last-modified")
    return (*kept, ("Docker-Content-Digest", digest), ("ETag", f'"{digest}"'))


def _next_page(link: str, ref: Reference) -> str:
    """The Link to the next page of a list (distribution-spec, "Listing Tags"), as this client has to ask for it here."""
    match = re.fullmatch(r"<[^>?]*(?:\?([^>]*))?>(.*)", link)
    if match is None:
        return link
    # What page comes next is the registry's to say, but not of which registry.
    query = [part for part in (match[1] or "").split("&") if part and not is_ns(part)]
    scoped = f"ns={quote(ref.ns, safe='')}" if ref.scoped else ""
    tail = "tags/list" if ref.kind is Kind.TAGS else f"referrers/{ref.reference}"
    return f"</v2/{name_to_ask(ref)}/{tail}?{'&'.join([*query, scoped] if scoped else query)}>{match[2]}"


def stream_answer(ref: Reference, response: UpstreamResponse, result: str, length: int | None) -> Answer:
    """An upstream's response with its body passed on as it comes."""
    relay = Relay(response.status, end_to_end(response.headers), b"")
    answer = relay_answer(ref, relay, result, head=False)
    answer.length, answer.source = length, RelaySource(response)
    return answer


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

"""Passes on upstream's own answers: their headers as clients must get them, and their bodies as they come."""

import re
from urllib.parse import quote

from cacheyd.cache.answer import Answer, scope_headers
from cacheyd.cache.bodies import BodyBroken
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import Blame, Code, Failure
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header, without
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.targets import is_ns, name_to_ask
from cacheyd.upstream.port import Relay, UpstreamBroken, UpstreamResponse


class RelaySource:
    """An upstream's body, passed on as it comes and not kept."""

    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """The bytes that have come since the last call; empty at the end. Raises BodyBroken."""
        try:
            return b"".join(await self._response.read())
        except UpstreamBroken as error:
            raise BodyBroken(str(error)) from error

    def close(self) -> None:
        """Ends the upstream's response, too."""
        self._response.close()


def relay_answer(ref: Reference, relay: Relay, result: str, *, head: bool) -> Answer:
    """An upstream's answer, with changes only to the headers that name cacheyd and the headers that an object must have."""
    ours = "x-cache", "x-proxied-by", "x-proxied-for", "oci-namespace"
    # The body of the answer is not encoded.
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
    """A body for an error that answered a HEAD: such an answer has no body of its own."""
    code = {401: Code.UNAUTHORIZED, 403: Code.DENIED, 404: Code.MANIFEST_UNKNOWN, 429: Code.TOOMANYREQUESTS}
    return Failure(status, code.get(status, Code.UNKNOWN), f"the registry answered {status}", Blame.UPSTREAM).body()


def _as_object(ref: Reference, headers: HeaderList) -> HeaderList:
    """The headers with Docker-Content-Digest, which CDNs do not send, and with the ETag of that digest."""
    stated = header(headers, "docker-content-digest") or ""
    digest = ref.digest or (stated if DIGEST.fullmatch(stated) else "")
    if not digest:
        return headers
    kept = without(headers, "docker-content-digest", "etag", "last-modified")
    return (*kept, ("Docker-Content-Digest", digest), ("ETag", f'"{digest}"'))


def _next_page(link: str, ref: Reference) -> str:
    """The Link to the next page of a list (distribution-spec, "Listing Tags"), in the form that this client must ask for."""
    match = re.fullmatch(r"<[^>?]*(?:\?([^>]*))?>(.*)", link)
    if match is None:
        return link
    # The registry's query names the next page; the path is always this list's.
    query = [part for part in (match[1] or "").split("&") if part and not is_ns(part)]
    scoped = f"ns={quote(ref.ns, safe='')}" if ref.scoped else ""
    tail = "tags/list" if ref.kind is Kind.TAGS else f"referrers/{ref.reference}"
    return f"</v2/{name_to_ask(ref)}/{tail}?{'&'.join([*query, scoped] if scoped else query)}>{match[2]}"


def stream_answer(ref: Reference, response: UpstreamResponse, result: str, length: int | None) -> Answer:
    """The answer that passes on an upstream's response, with its body as it comes."""
    relay = Relay(response.status, end_to_end(response.headers), b"")
    return relay_answer(ref, relay, result, head=False).with_source(RelaySource(response), length)

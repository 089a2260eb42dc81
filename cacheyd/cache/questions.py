"""Asks upstream about an object without fetching it: whether it is there, whether a login may read it, how large it is.

Some registries do not know HEAD, and some hosts to which they redirect take only GET: then the cache asks for one byte.
"""

import hashlib

from cacheyd.cache.fetch import Fetcher
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.headers import HeaderList, content_length, header, media_type
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED
from cacheyd.protocol.ranges import parse_content_range
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.store.records import Stored
from cacheyd.upstream.port import UpstreamResponse

# Answers to a HEAD after which a GET is sent: some registries do not know HEAD.
NO_HEAD = frozenset({404, 405, 501})
# A CDN's URLs are signed for GET, so its refusal of a HEAD means nothing: a GET of one byte decides.
REFUSED_ELSEWHERE = frozenset({400, 403})
ONE_BYTE = ("Range", "bytes=0-0")
MANIFEST_TYPES = frozenset({DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED})
# The digests of the empty object: a GET of its first byte gets 416 (RFC 9110 section 15.5.17).
EMPTY = frozenset(f"{name}:{hashlib.new(name).hexdigest()}" for name in ("sha256", "sha512"))


async def ask_of(
    fetcher: Fetcher, ref: Reference, headers: HeaderList, *, as_client: bool = False
) -> tuple[str, UpstreamResponse]:
    """The method (HEAD, else GET), and upstream's answer about an object. A GET of a blob asks for one byte only."""
    response = await fetcher.asking.open(ref, "HEAD", headers, as_client=as_client)
    if response.status not in NO_HEAD and not says_nothing_of_get(response):
        return "HEAD", response
    response.close()
    headers = (*headers, ONE_BYTE) if ref.kind is Kind.BLOB else headers
    return "GET", await fetcher.asking.open(ref, "GET", headers, as_client=as_client)


def says_nothing_of_get(response: UpstreamResponse) -> bool:
    """Whether the registry redirected a HEAD to a host that takes only GET."""
    return response.by_other_host and response.status in REFUSED_ELSEWHERE


def looks_like(ref: Reference, response: UpstreamResponse, stored: Stored | None) -> bool:
    """Whether a successful answer is about the object: by its digest, its size, or at least its type."""
    name = media_type(response.headers).lower()
    stated = header(response.headers, "docker-content-digest") or ""
    if name.startswith("text/html") or (ref.digest and stated and stated != ref.digest):
        return False
    size = stated_size(response)
    if stored is not None and size is not None:
        return size == stored.size
    if DIGEST.fullmatch(stated):
        return True
    # A blob can come from any host, with any type. A blob that is not stored cannot be given away.
    return name in MANIFEST_TYPES if ref.kind is Kind.MANIFEST else stored is None


def stated_size(response: UpstreamResponse) -> int | None:
    """The size of the object (bytes) that a successful answer states, also for a part of it; None if it states none."""
    if response.status == 416:
        return 0
    if response.status != 206:
        return content_length(response.headers)
    part = parse_content_range(header(response.headers, "content-range"))
    return part[2] if part is not None else None


def is_one_byte(ref: Reference, status: int) -> bool:
    """Whether this status answers a request for the first byte of a blob."""
    return ref.kind is Kind.BLOB and (status == 206 or (status == 416 and ref.digest in EMPTY))

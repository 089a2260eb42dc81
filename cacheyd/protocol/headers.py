"""Header lists: pairs of names and values in the order of arrival (RFC 9110 section 5)."""

import hashlib
import re

type HeaderList = tuple[tuple[str, str], ...]


_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "trailers", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def header(headers: HeaderList, name: str) -> str | None:
    """The first value of a header; None if the header is missing. `name` is in lower case."""
    return next((value for key, value in headers if key.lower() == name), None)


def without(headers: HeaderList, *names: str) -> HeaderList:
    """All headers except those with these names (in lower case)."""
    return tuple(item for item in headers if item[0].lower() not in names)


def end_to_end(headers: HeaderList) -> HeaderList:
    """All headers except hop-by-hop headers and headers that Connection names (RFC 9110 section 7.6.1)."""
    named = {token.strip().lower() for key, value in headers if key.lower() == "connection" for token in value.split(",")}
    return without(headers, *_HOP_BY_HOP, *named)


def content_length(headers: HeaderList) -> int | None:
    """Content-Length in bytes; None if the header is missing or not a number."""
    value = header(headers, "content-length") or ""
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def media_type(headers: HeaderList) -> str:
    """The media type in Content-Type, without parameters; empty if the header is missing."""
    return (header(headers, "content-type") or "").partition(";")[0].strip()


def credentials_of(headers: HeaderList) -> bytes:
    """A hash of a client's credentials: it tells two clients apart, and nobody needs to keep the credentials."""
    # Hashes all Authorization lines: each upstream decides itself which line it believes.
    lines = [value for key, value in headers if key.lower() == "authorization"]
    return hashlib.blake2b("\n".join((*lines, "")).encode(), digest_size=16).digest()

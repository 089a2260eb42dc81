"""Examines the bytes that an upstream sent as a manifest: finds their digest and type, and checks the digest."""

from dataclasses import dataclass

from cacheyd.protocol.description import Description, describe
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, header, media_type
from cacheyd.protocol.manifest import signed_payload
from cacheyd.protocol.media_types import OCTET_STREAM, SCHEMA_1, SCHEMA_1_SIGNED, is_media_type
from cacheyd.protocol.reference import Reference


@dataclass(frozen=True, slots=True)
class Examined:
    """A manifest's bytes with their digest and their type. `description` is what the bytes say themselves."""

    digest: str
    media_type: str
    data: bytes | bytearray
    description: Description


def examine(ref: Reference, headers: HeaderList, data: bytes | bytearray) -> Examined:
    """Upstream's decoded bytes as a manifest. Raises RequestError if they are not the manifest that was asked for."""
    expected, algorithm = expected_digest(ref, headers)
    digest = digest_of(data, algorithm)
    description = describe(data)
    media_type = description.media_type
    if description.schema == 1:
        payload = signed_payload(data)
        media_type = SCHEMA_1 if payload is None else SCHEMA_1_SIGNED
        digest = digest if payload is None else digest_of(payload, algorithm)
    if expected not in ("", digest):
        message = "upstream sent a manifest that does not have its digest"
        raise RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": expected}))
    return Examined(digest, media_type or _stated_type(ref, headers), data, description)


def expected_digest(ref: Reference, headers: HeaderList) -> tuple[str, str]:
    """The digest that a manifest must have, empty if unknown, and its algorithm."""
    expected = ref.digest or header(headers, "docker-content-digest") or ""
    algorithm = expected.partition(":")[0]
    return (expected, algorithm) if algorithm in ("sha256", "sha512") else ("", "sha256")


def is_whole(ref: Reference, headers: HeaderList, data: bytearray) -> bool:
    """Whether the bytes are the whole manifest: then only the end of the message was missing."""
    expected, algorithm = expected_digest(ref, headers)
    return bool(expected) and digest_of(data, algorithm) == expected


def _stated_type(ref: Reference, headers: HeaderList) -> str:
    """The type to pass on with bytes that do not state a type. Raises RequestError for a text page in place of a manifest."""
    stated = media_type(headers) or OCTET_STREAM
    if stated.startswith("text/") and ref.digest is None:
        raise upstream_error(502, f"upstream answered with {stated[:100]} to a request for a manifest")
    return stated if is_media_type(stated) and not stated.startswith("text/") else OCTET_STREAM

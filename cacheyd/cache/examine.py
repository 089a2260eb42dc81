"""What an upstream sent as a manifest: its digest, its type, and whether it is the one that was asked for."""

from dataclasses import dataclass

from cacheyd.protocol.description import Description, describe
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.manifest import signed_payload
from cacheyd.protocol.media_types import OCTET_STREAM, SCHEMA_1, SCHEMA_1_SIGNED, is_media_type
from cacheyd.protocol.reference import Reference


@dataclass(frozen=True, slots=True)
class Examined:
    """A manifest's bytes with the digest that they have, and its type. `description` is what they say themselves."""

    digest: str
    media_type: str
    data: bytes | bytearray
    description: Description


def examine(ref: Reference, headers: HeaderList, data: bytes | bytearray) -> Examined:
    """What upstream sent, decoded, as a manifest. Raises RequestError for what is not the one that was asked for."""
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
    """The digest that a manifest is to have, empty if nobody says, and its algorithm."""
    expected = ref.digest or header(headers, "docker-content-digest") or ""
    algorithm = expected.partition(":")[0]
    return (expected, algorithm) if algorithm in ("sha256", "sha512") else ("", "sha256")


def is_whole(ref: Reference, headers: HeaderList, data: bytearray) -> bool:
    """Whether all of a manifest is there, and only the end of the message was missing."""
    expected, algorithm = expected_digest(ref, headers)
    return bool(expected) and digest_of(data, algorithm) == expected


def _stated_type(ref: Reference, headers: HeaderList) -> str:
    """The type to pass on with what is no manifest by its bytes. Raises RequestError for a page in place of a manifest."""
    stated = (header(headers, "content-type") or OCTET_STREAM).partition(";")[0].strip()
    if stated.startswith("text/") and ref.digest is None:
        raise upstream_error(502, f"upstream answered {stated[:100]} where a manifest was asked for")
    return stated if is_media_type(stated) and not stated.startswith("text/") else OCTET_STREAM

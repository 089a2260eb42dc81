"""Failures as values: each has an HTTP status, an OCI error code and a side to blame; one renderer makes the JSON."""

import json
import traceback
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path

from cacheyd.protocol.headers import HeaderList

# The most characters of an exception's message that an error shows: the message can quote a peer.
MAX_REASON = 300


class Blame(StrEnum):
    """The side that must change something before the request can succeed."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    CACHE = "cache"


class Code(StrEnum):
    """Error codes of the OCI distribution-spec, section "Error Codes"."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    DENIED = "DENIED"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNKNOWN = "UNKNOWN"
    UNSUPPORTED = "UNSUPPORTED"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as an answer. `status` is the HTTP status; `detail` must never hold a credential."""

    status: int
    code: Code
    message: str
    blame: Blame
    detail: dict[str, str] = field(default_factory=dict)
    headers: HeaderList = ()

    def body(self) -> bytes:
        """The error as OCI JSON (distribution-spec, "Error Codes")."""
        error = {"code": str(self.code), "message": self.message, "detail": {"from": "cacheyd", **self.detail}}
        return json.dumps({"errors": [error]}).encode()


class RequestError(Exception):
    """Carries a `Failure` from the code that finds it to the code that makes the answer.

    `again_at` is when the same request can succeed (monotonic clock); None if unknown or not soon.
    """

    def __init__(self, failure: Failure, again_at: float | None = None) -> None:
        super().__init__(f"{failure.status} {failure.code}: {failure.message}")
        self.failure = failure
        self.again_at = again_at


def client_error(status: int, code: Code, message: str, *, headers: HeaderList = (), **detail: str) -> RequestError:
    """The error for a request that this cache refuses without asking upstream."""
    return RequestError(Failure(status, code, message, Blame.CLIENT, detail, headers))


def upstream_error(status: int, message: str, **detail: str) -> RequestError:
    """The error for an upstream that gave no answer to pass on: 502 (broken), 503 (refused) or 504 (deadline)."""
    return RequestError(Failure(status, Code.UNKNOWN, message, Blame.UPSTREAM, detail))


def cache_error(message: str, status: int = 500) -> RequestError:
    """The error for a failure of this cache itself; 5xx, so that a client with a fallback uses the fallback."""
    return RequestError(Failure(status, Code.UNKNOWN, message, Blame.CACHE))


def explain(error: BaseException) -> str:
    """An unexpected exception as one short line for the log: its type, its message, and the place that raised it."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        where = f" ({Path(frame.f_code.co_filename).name}:{line}, {frame.f_code.co_name})"
    return f"{type(error).__name__}: {str(error)[:MAX_REASON]}{where}"


def reason(status: int) -> str:
    """The reason phrase of a status, never empty: some clients refuse an empty one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"

"""Asks token services for tokens.

Source: distribution's token authentication (https://distribution.github.io/distribution/spec/auth/token/).
"""

import base64
import math
import re
import time
from urllib.parse import urlencode

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.codings import BadCoding, codings_of
from cacheyd.protocol.urls import from_field, parse_url
from cacheyd.resources.decoding import NoTurn, undo
from cacheyd.upstream.challenges import Challenge
from cacheyd.upstream.port import Transport, UpstreamBroken, read_all
from cacheyd.upstream.retry_after import wanted_wait

# The most bytes of a token service's answer, and of the token in it. Real tokens have up to 4 KiB.
ANSWER_MAX, TOKEN_MAX = 256 << 10, 16 << 10
# How long a token holds if its service does not say (distribution's default), how much earlier cacheyd drops a token because
# of the time in transit, and how long it keeps a token at most (seconds).
TOKEN_LIFE, TOKEN_MARGIN, TOKEN_LIFE_MAX = 60.0, 10.0, 3600.0
_TOKEN = re.compile(r"[\x21-\x7e]+")


class LoginRefused(UpstreamBroken):
    """The registry or its token service refused this login."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


async def request_token(
    transport: Transport, registry: str, challenge: Challenge, scope: str, login: str
) -> tuple[str, float]:
    """A token from the service that the challenge names, and how long it holds (seconds). Raises UpstreamBroken."""
    realm, service = realm_of(challenge), challenge.params.get("service")
    query = {"service": service} if service is not None else {}
    # A header's value has one character for each byte (latin-1), so the service gets the same bytes back.
    asked = urlencode({**query, "scope": challenge.params.get("scope") or scope}, encoding="latin-1", errors="replace")
    url = f"{realm}{'&' if '?' in realm else '?'}{asked}"
    headers = (("Authorization", basic(login)),) if login else ()
    try:
        response = await transport.fetch(registry, "GET", url, headers)
        try:
            body = await read_all(response, ANSWER_MAX)
        finally:
            response.close()
        if body is not None and (codings := codings_of(response.headers)):
            body = await _undone(registry, body, codings)
    except UpstreamBroken as error:
        # The registry has just answered, so the failure is elsewhere.
        error.add(by_other_host=True)
        raise
    if response.status in (401, 403):
        raise LoginRefused(f"its token service answered {response.status}")
    if response.status != 200:
        wait = wanted_wait(response.headers, time.time()) if response.status == 429 else None
        raise UpstreamBroken(f"its token service answered {response.status}", refused=True, wait=wait)
    return _parse_token(body)


async def _undone(registry: str, body: bytes, codings: tuple[str, ...]) -> bytes:
    try:
        return bytes(await undo(registry, body, codings, ANSWER_MAX))
    except BadCoding as error:
        raise UpstreamBroken(f"its body cannot be decoded: {error}") from None
    except NoTurn:
        raise UpstreamBroken("too many bodies wait to be decoded", refused=True) from None


def realm_of(challenge: Challenge) -> str:
    """The URL of the token service in a challenge. Raises UpstreamBroken if it is not a valid URL."""
    try:
        realm = from_field(challenge.params["realm"]).partition("#")[0]
        parse_url(realm)
    except ValueError:
        raise UpstreamBroken("its token service has no http or https URL", refused=True) from None
    return realm


def basic(login: str) -> str:
    """The Authorization of `user:password` (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def _parse_token(body: bytes | None) -> tuple[str, float]:
    """The token in an answer, and how long it holds (seconds). Raises UpstreamBroken."""
    token, life = None, TOKEN_LIFE
    try:
        answer = parse_object(body or b"")
        token = answer.get("token") or answer.get("access_token")
        life = float(answer.get("expires_in") or TOKEN_LIFE)
    except (ValueError, TypeError, OverflowError):
        pass  # A token with an invalid time is still a token.
    if not isinstance(token, str) or len(token) > TOKEN_MAX or not _TOKEN.fullmatch(token):
        raise UpstreamBroken("its token service gave no token", refused=True)
    return token, life if math.isfinite(life) and life > 0 else TOKEN_LIFE

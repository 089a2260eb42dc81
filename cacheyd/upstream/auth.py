"""As whom upstreams are asked: the client itself (the default), a stored login, or an anonymous token.

Sources: distribution's token authentication (https://distribution.github.io/distribution/spec/auth/token/) and RFC 9110
section 11. Stored credentials go to the registry's own host and to token services of its operator or of the
configuration, and never elsewhere.
"""

import asyncio
import base64
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import unquote, urlencode

from cacheyd.protocol.codings import BadCoding, codings_of
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.headers import HeaderList, header, without
from cacheyd.protocol.manifest import parse_object
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.urls import Url, from_field, is_upgrade, parse_url
from cacheyd.resources.decoding import NoTurn, undo
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.logins import Logins
from cacheyd.upstream.port import Transport, UpstreamBroken, UpstreamRequest, UpstreamResponse, read_all
from cacheyd.upstream.retry_after import wanted_wait

log = logging.getLogger(__name__)

# Of the answer of a token service, and of the token in it: those of real ones have up to 4 KiB (bytes).
ANSWER_MAX, TOKEN_MAX = 256 << 10, 16 << 10
# distribution's default where the service does not say how long a token holds, and what is taken off for the way (seconds).
TOKEN_LIFE, TOKEN_MARGIN, TOKEN_LIFE_MAX = 60.0, 10.0, 3600.0
# Tokens that are kept: how many, and their bytes in all.
MAX_TOKENS, TOKEN_ROOM = 4096, 4 << 20
# All challenges of a response together; of longer ones there is none that could be answered (bytes).
CHALLENGES_MAX = 4 << 10
_WORD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_UNQUOTED = re.compile(r"[^\s,]+")
_GAP = re.compile(r"[\s,]*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
# Token services of registries that run them under another name of the same owner.
_KNOWN_REALMS = {"registry-1.docker.io": ("auth.docker.io",)}


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate challenge: `scheme` in lower case, with its parameters."""

    scheme: str
    params: dict[str, str]


class _Key(NamedTuple):
    """What a token is for. `who` tells logins apart: a stored login's token is for nobody else, empty is nobody."""

    registry: str
    base: str
    scope: str
    who: str


@dataclass(frozen=True, slots=True)
class _Token:
    """`final`: a 403 is not about the token, which is not replaced for one."""

    value: str
    expires: float
    final: bool = False


class _LoginRefused(UpstreamBroken):
    """The registry, or its token service, does not take this login."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


def parse_challenges(headers: HeaderList) -> list[Challenge]:
    """Each challenge of a 401, in order; several lines, and several in one line (RFC 9110 section 11.6.1).

    None if they are longer than 4 KiB together. What is no challenge is passed over, up to the next comma.
    """
    lines = [value for name, value in headers if name.lower() == "www-authenticate"]
    if sum(map(len, lines)) > CHALLENGES_MAX:
        return []
    return [challenge for line in lines for challenge in _challenges(line)]


def _challenges(line: str) -> list[Challenge]:
    """Looks at each character once, or twice: whatever does not match is passed over, and nothing is tried again."""
    found: list[Challenge] = []
    at, comma = 0, True
    while True:
        gap = _GAP.match(line, at)
        assert gap
        at, comma = gap.end(), comma or "," in gap[0]
        if at == len(line):
            return found
        word = _WORD.match(line, at)
        equals = _EQUALS.match(line, word.end()) if word else None
        if word and equals:
            value = (_QUOTED if line[equals.end() : equals.end() + 1] == '"' else _UNQUOTED).match(line, equals.end())
            if value is None and line[equals.end() : equals.end() + 1] == '"':
                return found  # What follows is in a quoted string that has no end.
            if value and found:
                found[-1].params[word[0].lower()] = _value(value)
            at = value.end() if value else equals.end()
        elif word and comma and _SCHEME.fullmatch(word[0]):
            found.append(Challenge(word[0].lower(), {}))
            at = _after_token68(line, word.end())
        else:
            at = _pass_over(line, at)
        comma = False


def _value(match: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", match[1]) if match.re is _QUOTED else match[0]


def _after_token68(line: str, at: int) -> int:
    """Where a scheme's token68 ends, if it has one and no parameters."""
    start = at
    while line[start : start + 1] == " ":
        start += 1
    token = _TOKEN68.match(line, start) if start > at else None
    return token.end() if token else at


def _pass_over(line: str, at: int) -> int:
    """The end of what is neither a scheme nor a parameter."""
    match = _QUOTED.match(line, at) or _UNQUOTED.match(line, at)
    return match.end() if match else at + 1


def _bearer(challenges: list[Challenge]) -> Challenge | None:
    return next((c for c in challenges if c.scheme == "bearer" and "realm" in c.params), None)


class _Tokens:
    """Tokens that are kept, the oldest ones going first where they are too many."""

    def __init__(self) -> None:
        self._tokens: dict[_Key, _Token] = {}
        self._room = TOKEN_ROOM

    def __len__(self) -> int:
        return len(self._tokens)

    def get(self, key: _Key) -> _Token | None:
        return self._tokens.get(key)

    def keep(self, key: _Key, token: _Token) -> None:
        self.drop(key)
        self._tokens[key] = token
        self._room -= _cost(key, token)
        while self._room < 0 or len(self._tokens) > MAX_TOKENS:
            self.drop(next(iter(self._tokens)))

    def settle(self, key: _Key) -> None:
        """A 403 was not about the token: another one would be, or was, refused in the same way."""
        if token := self._tokens.get(key):
            self._tokens[key] = replace(token, final=True)

    def drop(self, key: _Key) -> None:
        if token := self._tokens.pop(key, None):
            self._room += _cost(key, token)


def _cost(key: _Key, token: _Token) -> int:
    return len(token.value) + sum(map(len, key)) + 500


class Authorizer:
    """Adds the login that a registry's settings want, and keeps tokens until they expire."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._tokens = _Tokens()
        self._basic: set[str] = set()
        self._asking: SingleFlight[_Key, None, str] = SingleFlight()
        self._logins = Logins(clock)

    def forget(self) -> None:
        """After a change of settings: no token and no login of before is used."""
        # New tables: what is asked for now is put into the old ones.
        self._tokens, self._basic = _Tokens(), set()
        self._logins.forget()

    async def close(self) -> None:
        """Ends programs that are asked for a login."""
        await self._logins.close()

    async def prepare(self, request: UpstreamRequest) -> None:
        """Waits for the stored login that the request needs: how long that takes says nothing about the registry.

        Raises UpstreamBroken.
        """
        if self.settings.registry(request.ref.registry).auth != "credentials" or request.as_client:
            return
        try:
            async with asyncio.timeout(self.settings.head_timeout):
                await self._logins.get(self.settings, request.ref)
        except TimeoutError:
            raise UpstreamBroken("its login was not there in time", refused=True) from None

    async def fetch(self, transport: Transport, request: UpstreamRequest, base: str) -> UpstreamResponse:
        """The upstream's response to the request, as whom the settings say. Raises UpstreamBroken."""
        registry = self.settings.registry(request.ref.registry)
        name, url = request.ref.registry, target(base, request.ref)
        if registry.auth == "passthrough" or request.as_client:
            if request.ref.scoped or header(request.headers, "authorization") is not None:
                return await transport.fetch(name, request.method, url, request.headers)
            return await self._anonymous(transport, request, base)
        login = await self._logins.get(self.settings, request.ref)
        try:
            response = await self._logged_in(transport, request, base, registry, login)
        except _LoginRefused:
            other = await self._logins.other(self.settings, request.ref, login)
            if not other:
                raise
            return await self._logged_in(transport, request, base, registry, other)
        if response.status != 403 or not (other := await self._logins.other(self.settings, request.ref, login)):
            return response
        response.close()
        return await self._logged_in(transport, request, base, registry, other)

    async def _logged_in(
        self, transport: Transport, request: UpstreamRequest, base: str, registry: RegistrySettings, login: str
    ) -> UpstreamResponse:
        """The response for this login (empty: for anybody). A token that is refused, with 401 or 403, is replaced once."""
        name, url = request.ref.registry, target(base, request.ref)
        headers = without(request.headers, "authorization")
        key = _Key(name, base, _scope(request.ref), _who(login))
        known = self._known(key, login)
        response = await transport.fetch(name, request.method, url, (*headers, *known))
        replaced = response.status == 403 and self._is_replaceable(key, known)
        if replaced:
            # Some say 403 of a token that has expired. The challenge, which says where tokens are, needs a request without.
            response.close()
            response = await transport.fetch(name, request.method, url, headers)
        if response.status != 401:
            if replaced:
                self._tokens.settle(key)
            return response
        challenges = parse_challenges(response.headers)
        response.close()
        answer = await self._answer(transport, registry, key, login, challenges, known)
        response = await transport.fetch(name, request.method, url, (*headers, ("Authorization", answer)))
        if response.status == 401:
            response.close()
            self._tokens.drop(key)
            self._basic.discard(base)
            raise _LoginRefused(f"{name} refused {'the stored login' if login else 'an anonymous token'}")
        if response.status == 403 and replaced:
            self._tokens.settle(key)
        return response

    def _is_replaceable(self, key: _Key, sent: HeaderList) -> bool:
        token = self._tokens.get(key)
        return bool(sent) and token is not None and not token.final and sent[0][1].startswith("Bearer ")

    async def _anonymous(self, transport: Transport, request: UpstreamRequest, base: str) -> UpstreamResponse:
        """For clients that name the registry in the path and bring no login.

        skopeo, podman and CRI-O look for the challenge at `/v2/`, which is about no registry in particular here, and take
        a later one as final: what everybody may read would not be there for them.
        """
        name, url = request.ref.registry, target(base, request.ref)
        key = _Key(name, base, _scope(request.ref), "")
        known = self._known(key, "")
        response = await transport.fetch(name, request.method, url, (*request.headers, *known))
        bearer = _bearer(parse_challenges(response.headers))
        if response.status != 401 or bearer is None:
            return response
        try:
            token = await self._token(transport, RegistrySettings(), key, "", bearer, known)
        except (UpstreamBroken, RequestError) as error:
            if isinstance(error, UpstreamBroken) and error.wait is not None:
                response.close()
                raise
            return response
        except BaseException:
            response.close()
            raise
        response.close()
        return await transport.fetch(name, request.method, url, (*request.headers, ("Authorization", f"Bearer {token}")))

    def _known(self, key: _Key, login: str) -> HeaderList:
        token = self._tokens.get(key)
        if token and self._clock() < token.expires:
            return (("Authorization", f"Bearer {token.value}"),)
        return (("Authorization", basic(login)),) if login and key.base in self._basic else ()

    async def _answer(
        self,
        transport: Transport,
        registry: RegistrySettings,
        key: _Key,
        login: str,
        challenges: list[Challenge],
        sent: HeaderList,
    ) -> str:
        """The Authorization that answers a challenge to a request that was made with `sent`."""
        bearer = _bearer(challenges)
        if bearer is not None:
            return f"Bearer {await self._token(transport, registry, key, login, bearer, sent)}"
        if login and any(c.scheme == "basic" for c in challenges):
            self._basic.add(key.base)
            return basic(login)
        raise UpstreamBroken(f"{key.registry} asks for a login that cacheyd cannot give", refused=True)

    async def _token(
        self,
        transport: Transport,
        registry: RegistrySettings,
        key: _Key,
        login: str,
        challenge: Challenge,
        sent: HeaderList,
    ) -> str:
        """A token other than the one that was sent, asked for once however many requests need it."""
        known = self._known(key, "")
        if known and known != sent:
            return known[0][1].removeprefix("Bearer ")
        _, token = self._asking.join(key, None, lambda: self._ask(transport, key, registry, login, challenge))
        return await token

    async def _ask(self, transport: Transport, key: _Key, registry: RegistrySettings, login: str, challenge: Challenge) -> str:
        name, base, scope, _ = key
        tokens = self._tokens
        realm = _realm(challenge)
        if login and not realm_belongs(realm, base, registry.token_realms):
            log.error("%s sends logins to %s, which is not its own; allow it with token_realms", name, parse_url(realm).host)
            raise UpstreamBroken("its token service is not one that may see the stored login", refused=True)
        token, life = await _request_token(transport, name, challenge, scope, login)
        tokens.keep(key, _Token(token, self._clock() + max(0.0, min(life, TOKEN_LIFE_MAX) - TOKEN_MARGIN)))
        return token


async def answer_challenge(transport: Transport, ref: Reference, bases: Iterable[str], headers: HeaderList, login: str) -> str:
    """The Authorization that a client with this login (`user:password`) answers a 401 with; `headers` are the 401's.

    As clients do, it believes the registry about its token service, which must be reached as safely as the registry
    itself. Raises UpstreamBroken.
    """
    challenges = parse_challenges(headers)
    bearer = _bearer(challenges)
    if bearer is None:
        if any(c.scheme == "basic" for c in challenges):
            return basic(login)
        raise UpstreamBroken(f"{ref.registry} asks for no login that is known here", refused=True)
    realm = _realm(bearer)
    if not (parse_url(realm).scheme == "https" or any(realm_belongs(realm, base, ()) for base in bases)):
        raise UpstreamBroken("its token service has no https, so it does not see the login", refused=True)
    token, _ = await _request_token(transport, ref.registry, bearer, _scope(ref), login)
    return f"Bearer {token}"


async def _request_token(
    transport: Transport, registry: str, challenge: Challenge, scope: str, login: str
) -> tuple[str, float]:
    """A token and for how many seconds it holds, from the service that the challenge names."""
    realm, service = _realm(challenge), challenge.params.get("service")
    query = {"service": service} if service is not None else {}
    # A header's value has a character for each byte, and these are what the service gets back.
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
        # The registry has just answered: it is there.
        error.elsewhere = True
        raise
    if response.status in (401, 403):
        raise _LoginRefused(f"its token service answered {response.status}")
    if response.status != 200:
        refused = UpstreamBroken(f"its token service answered {response.status}", refused=True)
        refused.wait = wanted_wait(response.headers, time.time()) if response.status == 429 else None
        raise refused
    return _parse_token(body)


async def _undone(registry: str, body: bytes, codings: tuple[str, ...]) -> bytes:
    try:
        return bytes(await undo(registry, body, codings, ANSWER_MAX))
    except BadCoding as error:
        raise UpstreamBroken(f"its body cannot be decoded: {error}") from None
    except NoTurn:
        raise UpstreamBroken("too much waits to be decoded", refused=True) from None


def _realm(challenge: Challenge) -> str:
    """The URL of a token service. Raises UpstreamBroken for what is none."""
    try:
        realm = from_field(challenge.params["realm"]).partition("#")[0]
        parse_url(realm)
    except ValueError:
        raise UpstreamBroken("its token service has no http or https URL", refused=True) from None
    return realm


def _scope(ref: Reference) -> str:
    return f"repository:{ref.repository}:pull"


def target(base: str, ref: Reference) -> str:
    """The URL of something at an upstream. A base with `/v2` in its path has it already (Harbor: https://host/v2/project)."""
    has_v2 = "/v2/" in f"/{base.partition('://')[2].partition('/')[2]}/"
    return base + (ref.path.removeprefix("/v2") if has_v2 else ref.path)


def realm_belongs(realm: str, base: str, allowed: tuple[str, ...]) -> bool:
    """Whether a token service may see a registry's stored login: on the registry's own origin, or allowed by name.

    https is needed for any host but the registry's own origin, where the operator chose the scheme: that, or https instead.
    """
    try:
        url, own = parse_url(realm), parse_url(base)
    except ValueError:
        return False
    if url.site == own.site or is_upgrade(own, url) or any(_is_below(url, parse_url(known)) for known in allowed):
        return True
    if url.scheme != "https" or url.port != 443:
        return False
    return url.host == own.host or url.host in _KNOWN_REALMS.get(own.host, ())


def _is_below(url: Url, known: Url) -> bool:
    base = known.path.rstrip("/")
    if url.site != known.site or not (url.path == base or url.path.startswith((f"{base}/", f"{base}?"))):
        return False
    return not base or not _may_leave(url.path[len(base) :].partition("?")[0])


def _may_leave(path: str) -> bool:
    """Whether some server may take what follows a base for something outside it: dot segments and empty ones, encoded
    however often, with backslashes or with parameters (`..;x`).
    """
    while (plain := unquote(path)) != path:
        path = plain
    segments = [part.partition(";")[0] for part in path.replace("\\", "/").split("/")]
    return any(part in (".", "..") for part in segments) or "" in segments[1:-1]


def _who(login: str) -> str:
    return hashlib.blake2b(login.encode(), digest_size=16).hexdigest() if login else ""


def basic(login: str) -> str:
    """The Authorization of `user:password` (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def _parse_token(body: bytes | None) -> tuple[str, float]:
    """The token and for how many seconds it holds. Raises UpstreamBroken."""
    token, life = None, TOKEN_LIFE
    try:
        answer = parse_object(body or b"")
        token = answer.get("token") or answer.get("access_token")
        life = float(answer.get("expires_in") or TOKEN_LIFE)
    except (ValueError, TypeError, OverflowError):
        pass  # A token without a right time is one all the same.
    if not isinstance(token, str) or len(token) > TOKEN_MAX or not _TOKEN.fullmatch(token):
        raise UpstreamBroken("its token service gave no token", refused=True)
    return token, life if math.isfinite(life) and life > 0 else TOKEN_LIFE

"""Tokens: cacheyd keeps each until it expires, and asks for it once, also if many requests need it."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.urls import parse_url
from cacheyd.settings.settings import RegistrySettings
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.challenges import Challenge, bearer_of
from cacheyd.upstream.port import Transport, UpstreamBroken
from cacheyd.upstream.realms import realm_belongs
from cacheyd.upstream.token_service import TOKEN_LIFE_MAX, TOKEN_MARGIN, basic, realm_of, request_token

log = logging.getLogger(__name__)
# The most tokens that are kept, and the most bytes of all of them.
MAX_TOKENS, TOKEN_ROOM = 4096, 4 << 20


class Key(NamedTuple):
    """The purpose of a token. `who` stands for its login, so no other login gets the token; empty means no login."""

    registry: str
    base: str
    scope: str
    who: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token. `expires` is on the monotonic clock. `final`: a 403 is not about this token, so no new token replaces it."""

    value: str
    expires: float
    final: bool = False


class KeptTokens:
    """The tokens that are kept. If there are too many, it drops the oldest first."""

    def __init__(self) -> None:
        self._tokens: dict[Key, Token] = {}
        self._room = TOKEN_ROOM

    def __len__(self) -> int:
        return len(self._tokens)

    def get(self, key: Key) -> Token | None:
        """The token, which can have expired; None if there is none."""
        return self._tokens.get(key)

    def keep(self, key: Key, token: Token) -> None:
        """Keeps a token; it replaces the earlier token of this key."""
        self.drop(key)
        self._tokens[key] = token
        self._room -= _cost(key, token)
        while self._room < 0 or len(self._tokens) > MAX_TOKENS:
            self.drop(next(iter(self._tokens)))

    def settle(self, key: Key) -> None:
        """Marks the token as final: a 403 was not about the token, because the registry refuses other tokens as well."""
        if token := self._tokens.get(key):
            self._tokens[key] = replace(token, final=True)

    def drop(self, key: Key) -> None:
        """Forgets a token."""
        if token := self._tokens.pop(key, None):
            self._room += _cost(key, token)


def _cost(key: Key, token: Token) -> int:
    return len(token.value) + sum(map(len, key)) + 500


def who_of(login: str) -> str:
    """A hash that stands for a login in a `Key`; empty for no login."""
    return hashlib.blake2b(login.encode(), digest_size=16).hexdigest() if login else ""


class Tokens:
    """Answers challenges, with tokens that hold, or with the login itself if a registry wants that."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept = KeptTokens()
        # The base URLs of upstreams that want the login itself with each request.
        self._basic: set[str] = set()
        self._asking: SingleFlight[Key, None, str] = SingleFlight()

    def forget(self) -> None:
        """Drops all tokens, after a change of settings."""
        # Makes new tables: the requests for tokens that run now put their results into the old ones.
        self._kept, self._basic = KeptTokens(), set()

    def is_replaceable(self, key: Key, sent: HeaderList) -> bool:
        """Whether a 403 to a request with the Authorization `sent` can be about its token."""
        token = self._kept.get(key)
        return bool(sent) and token is not None and not token.final and sent[0][1].startswith("Bearer ")

    def settle(self, key: Key) -> None:
        """Marks the token as final: a 403 was not about the token."""
        self._kept.settle(key)

    def refused(self, key: Key) -> None:
        """Drops the token or login: the registry asked for it, and then refused it."""
        self._kept.drop(key)
        self._basic.discard(key.base)

    def known(self, key: Key, login: str) -> HeaderList:
        """The Authorization that the next request can send at once; empty if no token or login holds."""
        token = self._kept.get(key)
        if token and self._clock() < token.expires:
            return (("Authorization", f"Bearer {token.value}"),)
        return (("Authorization", basic(login)),) if login and key.base in self._basic else ()

    async def answer(
        self,
        transport: Transport,
        registry: RegistrySettings,
        key: Key,
        login: str,
        challenges: list[Challenge],
        sent: HeaderList,
    ) -> str:
        """The Authorization that answers the challenges to a request with the Authorization `sent`. Raises UpstreamBroken."""
        bearer = bearer_of(challenges)
        if bearer is not None:
            return f"Bearer {await self.token(transport, registry, key, login, bearer, sent)}"
        if login and any(c.scheme == "basic" for c in challenges):
            self._basic.add(key.base)
            return basic(login)
        raise UpstreamBroken(f"{key.registry} asks for a login that cacheyd cannot give", refused=True)

    async def token(
        self,
        transport: Transport,
        registry: RegistrySettings,
        key: Key,
        login: str,
        challenge: Challenge,
        sent: HeaderList,
    ) -> str:
        """A token other than the sent token. Many requests that need it at once ask the token service only once."""
        known = self.known(key, "")
        if known and known != sent:
            return known[0][1].removeprefix("Bearer ")
        _, token = self._asking.join(key, None, lambda: self._ask(transport, key, registry, login, challenge))
        return await token

    async def _ask(self, transport: Transport, key: Key, registry: RegistrySettings, login: str, challenge: Challenge) -> str:
        name, base, scope, _ = key
        kept = self._kept
        realm = realm_of(challenge)
        if login and not realm_belongs(realm, base, registry.token_realms):
            log.error("%s sends logins to %s, which is not its own; allow it with token_realms", name, parse_url(realm).host)
            raise UpstreamBroken("its token service must not see the stored login", refused=True)
        token, life = await request_token(transport, name, challenge, scope, login)
        kept.keep(key, Token(token, self._clock() + max(0.0, min(life, TOKEN_LIFE_MAX) - TOKEN_MARGIN)))
        return token

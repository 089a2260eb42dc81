"""Tokens: kept until they expire, and asked for once however many requests need one."""

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
# Tokens that are kept: how many, and their bytes in all.
MAX_TOKENS, TOKEN_ROOM = 4096, 4 << 20


class Key(NamedTuple):
    """What a token is for. `who` tells logins apart: a stored login's token is for nobody else, empty is nobody."""

    registry: str
    base: str
    scope: str
    who: str


@dataclass(frozen=True, slots=True)
class Token:
    """`expires` is on the clock that never jumps. `final`: a 403 is not about the token, which is not replaced for one."""

    value: str
    expires: float
    final: bool = False


class KeptTokens:
    """Tokens that are kept, the oldest ones going first where they are too many."""

    def __init__(self) -> None:
        self._tokens: dict[Key, Token] = {}
        self._room = TOKEN_ROOM

    def __len__(self) -> int:
        return len(self._tokens)

    def get(self, key: Key) -> Token | None:
        """The token, perhaps one that has expired."""
        return self._tokens.get(key)

    def keep(self, key: Key, token: Token) -> None:
        """Keeps a token instead of the one before."""
        self.drop(key)
        self._tokens[key] = token
        self._room -= _cost(key, token)
        while self._room < 0 or len(self._tokens) > MAX_TOKENS:
            self.drop(next(iter(self._tokens)))

    def settle(self, key: Key) -> None:
        """A 403 was not about the token: another one would be, or was, refused in the same way."""
        if token := self._tokens.get(key):
            self._tokens[key] = replace(token, final=True)

    def drop(self, key: Key) -> None:
        """Forgets a token."""
        if token := self._tokens.pop(key, None):
            self._room += _cost(key, token)


def _cost(key: Key, token: Token) -> int:
    return len(token.value) + sum(map(len, key)) + 500


def who_of(login: str) -> str:
    """Stands for a login where tokens are told apart; empty for nobody's."""
    return hashlib.blake2b(login.encode(), digest_size=16).hexdigest() if login else ""


class Tokens:
    """What answers challenges: tokens that hold, and the login itself where a registry wants that."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept = KeptTokens()
        # Upstreams that want the login itself, with each request.
        self._basic: set[str] = set()
        self._asking: SingleFlight[Key, None, str] = SingleFlight()

    def forget(self) -> None:
        """After a change of settings: no token of before is used."""
        # New tables: what is asked for now is put into the old ones.
        self._kept, self._basic = KeptTokens(), set()

    def is_replaceable(self, key: Key, sent: HeaderList) -> bool:
        """Whether a 403 to a request with `sent` may be about its token."""
        token = self._kept.get(key)
        return bool(sent) and token is not None and not token.final and sent[0][1].startswith("Bearer ")

    def settle(self, key: Key) -> None:
        """A 403 was not about the token."""
        self._kept.settle(key)

    def refused(self, key: Key) -> None:
        """The registry did not take what it had asked for."""
        self._kept.drop(key)
        self._basic.discard(key.base)

    def known(self, key: Key, login: str) -> HeaderList:
        """The Authorization that the next request can have at once; none if there is none that holds."""
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
        """The Authorization that answers a challenge to a request that was made with `sent`."""
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
        """A token other than the one that was sent, asked for once however many requests need it."""
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
            raise UpstreamBroken("its token service is not one that may see the stored login", refused=True)
        token, life = await request_token(transport, name, challenge, scope, login)
        kept.keep(key, Token(token, self._clock() + max(0.0, min(life, TOKEN_LIFE_MAX) - TOKEN_MARGIN)))
        return token

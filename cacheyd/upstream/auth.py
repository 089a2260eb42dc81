"""Chooses the login for upstreams: the client's own (the default), a stored login, or an anonymous token.

Sources: distribution's token authentication (https://distribution.github.io/distribution/spec/auth/token/) and RFC 9110
section 11. cacheyd sends stored credentials only to the registry's own host, and to token services of the registry's
operator or of the configuration.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.headers import HeaderList, header, without
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.urls import parse_url
from cacheyd.settings.live import Live
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream.bases import target
from cacheyd.upstream.challenges import bearer_of, parse_challenges
from cacheyd.upstream.logins import Logins
from cacheyd.upstream.port import Transport, UpstreamBroken, UpstreamRequest, UpstreamResponse
from cacheyd.upstream.realms import realm_belongs
from cacheyd.upstream.token_service import LoginRefused, basic, realm_of, request_token
from cacheyd.upstream.tokens import Key, Tokens, who_of

log = logging.getLogger(__name__)


class Authorizer:
    """Adds the login that a registry's settings require to requests, and keeps tokens until they expire."""

    def __init__(self, settings: Settings | Live, clock: Callable[[], float] = time.monotonic) -> None:
        self._live = Live.of(settings)
        self._tokens = Tokens(clock)
        self._logins = Logins(clock)
        self._live.listen(lambda _: self.forget())

    def forget(self) -> None:
        """Drops all tokens and logins, after a change of settings."""
        self._tokens.forget()
        self._logins.forget()

    async def close(self) -> None:
        """Ends the programs that look up logins now."""
        await self._logins.close()

    async def prepare(self, request: UpstreamRequest) -> None:
        """Waits for the stored login that the request needs. This wait is separate: its time says nothing about the registry.

        Raises UpstreamBroken.
        """
        if self._live.settings.registry(request.ref.registry).auth != "credentials" or request.as_client:
            return
        try:
            async with asyncio.timeout(self._live.settings.head_timeout):
                await self._logins.get(self._live.settings, request.ref)
        except TimeoutError:
            raise UpstreamBroken("its login did not come in time", refused=True) from None

    async def fetch(self, transport: Transport, request: UpstreamRequest, base: str) -> UpstreamResponse:
        """The upstream's response to the request, with the login of the settings. Raises UpstreamBroken."""
        registry = self._live.settings.registry(request.ref.registry)
        name, url = request.ref.registry, target(base, request.ref)
        if registry.auth == "passthrough" or request.as_client:
            if request.ref.scoped or header(request.headers, "authorization") is not None:
                return await transport.fetch(name, request.method, url, request.headers)
            return await self._anonymous(transport, request, base)
        login = await self._logins.get(self._live.settings, request.ref)
        try:
            response = await self._logged_in(transport, request, base, registry, login)
        except LoginRefused:
            other = await self._logins.other(self._live.settings, request.ref, login)
            if not other:
                raise
            return await self._logged_in(transport, request, base, registry, other)
        if response.status != 403 or not (other := await self._logins.other(self._live.settings, request.ref, login)):
            return response
        response.close()
        return await self._logged_in(transport, request, base, registry, other)

    async def _logged_in(
        self, transport: Transport, request: UpstreamRequest, base: str, registry: RegistrySettings, login: str
    ) -> UpstreamResponse:
        """The response for this login (empty: anonymous). Replaces a token once if the registry refuses it (401 or 403)."""
        name, url = request.ref.registry, target(base, request.ref)
        headers = without(request.headers, "authorization")
        key = Key(name, base, _scope(request.ref), who_of(login))
        known = self._tokens.known(key, login)
        response = await transport.fetch(name, request.method, url, (*headers, *known))
        replaced = response.status == 403 and self._tokens.is_replaceable(key, known)
        if replaced:
            # Some registries answer 403 to an expired token. Only a request without a token gets the challenge, which names
            # the token service.
            response.close()
            response = await transport.fetch(name, request.method, url, headers)
        if response.status != 401:
            if replaced:
                self._tokens.settle(key)
            return response
        challenges = parse_challenges(response.headers)
        response.close()
        answer = await self._tokens.answer(transport, registry, key, login, challenges, known)
        response = await transport.fetch(name, request.method, url, (*headers, ("Authorization", answer)))
        if response.status == 401:
            response.close()
            self._tokens.refused(key)
            raise LoginRefused(f"{name} refused {'the stored login' if login else 'an anonymous token'}")
        if response.status == 403 and replaced:
            self._tokens.settle(key)
        return response

    async def _anonymous(self, transport: Transport, request: UpstreamRequest, base: str) -> UpstreamResponse:
        """The response for a client that names the registry in the path and has no login: with an anonymous token if needed.

        skopeo, podman and CRI-O look for the challenge at `/v2/`. Here, this path belongs to no registry. These clients take
        a later challenge as final, so without this token they could not read public images.
        """
        name, url = request.ref.registry, target(base, request.ref)
        key = Key(name, base, _scope(request.ref), "")
        known = self._tokens.known(key, "")
        response = await transport.fetch(name, request.method, url, (*request.headers, *known))
        bearer = bearer_of(parse_challenges(response.headers))
        if response.status != 401 or bearer is None:
            return response
        try:
            token = await self._tokens.token(transport, RegistrySettings(), key, "", bearer, known)
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


async def answer_challenge(transport: Transport, ref: Reference, bases: Iterable[str], headers: HeaderList, login: str) -> str:
    """The Authorization with which a client with this login (`user:password`) answers a 401; `headers` are those of the 401.

    As clients do, this function trusts the registry about its token service. The connection to the service must be as safe
    as the connection to the registry. Raises UpstreamBroken.
    """
    challenges = parse_challenges(headers)
    bearer = bearer_of(challenges)
    if bearer is None:
        if any(c.scheme == "basic" for c in challenges):
            return basic(login)
        raise UpstreamBroken(f"{ref.registry} asks for no kind of login that cacheyd knows", refused=True)
    realm = realm_of(bearer)
    if not (parse_url(realm).scheme == "https" or any(realm_belongs(realm, base, ()) for base in bases)):
        raise UpstreamBroken("its token service has no https, so cacheyd does not send the login to it", refused=True)
    token, _ = await request_token(transport, ref.registry, bearer, _scope(ref), login)
    return f"Bearer {token}"


def _scope(ref: Reference) -> str:
    return f"repository:{ref.repository}:pull"

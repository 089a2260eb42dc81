"""As whom a registry is asked, and what it says to that."""

import asyncio
import base64
import json
from collections.abc import Callable

import pytest

from cacheyd.protocol.headers import HeaderList
from cacheyd.settings.settings import RegistrySettings
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.logins import REF, Scene, given, ref_of


class Reply:
    by_other_host = False

    def __init__(self, status: int, headers: HeaderList = (), body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self._body = [body] if body else []

    async def read(self) -> list[bytes]:
        chunks, self._body = self._body, []
        return chunks

    def close(self) -> None:
        pass


CHALLENGE = (("WWW-Authenticate", 'Bearer realm="https://reg.test/token",service="x"'),)


class Registry:
    """Gives tokens `t0`, `t1`, … to logins in `logins`; `says` is the status for a token."""

    def __init__(self, says: Callable[[str], int]) -> None:
        self.says = says
        self.logins: set[str] = {"a:1"}
        self.tokens = 0
        self.asked: list[str] = []

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> Reply:
        sent = dict(headers).get("Authorization", "")
        if "/token" in url:
            login = base64.b64decode(sent.removeprefix("Basic ")).decode()
            self.asked.append(f"token for {login}")
            if login not in self.logins:
                return Reply(401)
            self.tokens += 1
            return Reply(200, (), json.dumps({"token": f"t{self.tokens - 1}"}).encode())
        token = sent.removeprefix("Bearer ")
        self.asked.append(token)
        return Reply(self.says(token)) if token else Reply(401, CHALLENGE)

    def told(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


REQUEST = UpstreamRequest(REF, "GET", ())


def authorizer_of(scene: Scene) -> Authorizer:
    return Authorizer(scene.settings, scene.clock)


async def test_a_token_that_is_refused_with_403_is_replaced_once(scene: Scene) -> None:
    scene.set(RegistrySettings(username="a", password="1"))
    bad: set[str] = set()
    registry, authorizer = Registry(lambda token: 403 if token in bad else 200), authorizer_of(scene)

    async def ask() -> int:
        return (await authorizer.fetch(registry, REQUEST, "https://reg.test")).status

    assert await ask() == 200
    assert registry.told() == ["", "token for a:1", "t0"]
    bad.add("t0")
    assert await ask() == 200
    assert registry.told() == ["t0", "", "token for a:1", "t1"]
    assert await ask() == 200
    assert registry.told() == ["t1"]
    bad.update({"t1", "t2"})
    assert await ask() == 403
    assert registry.told() == ["t1", "", "token for a:1", "t2"]
    # It was not about the token.
    assert await ask() == 403
    assert registry.told() == ["t2"]


async def test_many_with_a_refused_token_get_one(scene: Scene) -> None:
    scene.set(RegistrySettings(username="a", password="1"))
    bad: set[str] = set()
    registry, authorizer = Registry(lambda token: 403 if token in bad else 200), authorizer_of(scene)
    await authorizer.fetch(registry, REQUEST, "https://reg.test")
    bad.add("t0")
    replies = await asyncio.gather(*(authorizer.fetch(registry, REQUEST, "https://reg.test") for _ in range(10)))
    assert {reply.status for reply in replies} == {200}
    assert registry.tokens == 2


async def test_a_login_that_the_token_service_refuses_is_asked_for_again(scene: Scene) -> None:
    scene.write(given("a:1"))
    registry, authorizer = Registry(lambda token: 200), authorizer_of(scene)
    assert (await authorizer.fetch(registry, REQUEST, "https://reg.test")).status == 200
    registry.logins = {"a:2"}
    scene.write(given("a:2"))
    registry.told()
    other = UpstreamRequest(ref_of("acme/other"), "GET", ())
    assert (await authorizer.fetch(registry, other, "https://reg.test")).status == 200
    assert registry.told() == ["", "token for a:1", "", "token for a:2", "t1"]
    registry.logins = set()
    third = UpstreamRequest(ref_of("acme/third"), "GET", ())
    for _ in range(5):
        with pytest.raises(UpstreamBroken, match="token service answered 401"):
            await authorizer.fetch(registry, third, "https://reg.test")
    assert scene.runs == 2

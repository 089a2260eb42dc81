"""Questions that are asked once for many requesters."""

import asyncio

import pytest

from cacheyd.cache.requester import ANONYMOUS, Question, Requester, ask_once
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.port import Relay, Relayed

QUESTION: Question = ("reg.test", "a", "1")


class Registry:
    """Refuses all but the logins that it knows, and is quicker to refuse than to answer."""

    def __init__(self, *known: bytes) -> None:
        self.known = known
        self.asked: list[bytes] = []
        self.once: SingleFlight[Question, Requester, str] = SingleFlight()

    async def _answer(self, credentials: bytes) -> str:
        self.asked.append(credentials)
        await asyncio.sleep(0.03 if credentials in self.known else 0.01)
        if credentials not in self.known:
            raise Relayed(Relay(401, (), b""))
        return "yes"

    async def ask(self, credentials: bytes) -> str | int:
        mine = Requester("reg.test", "a", credentials)
        try:
            return await ask_once(self.once, QUESTION, mine, lambda: self._answer(credentials))
        except Relayed as error:
            return error.relay.status


async def test_logins_that_waited_for_somebody_without_one_ask_together() -> None:
    """As nodes do that pull at once: each asks without a login first, and comes back with a token of its own."""
    registry = Registry(b"a", b"b", b"c")
    answers = await asyncio.gather(*map(registry.ask, (ANONYMOUS, b"a", b"b", b"c")))
    assert answers == [401, "yes", "yes", "yes"]
    assert registry.asked == [ANONYMOUS, b"a"]


@pytest.mark.parametrize("first", [ANONYMOUS, b"made up"])
async def test_a_made_up_login_is_waited_for_once(first: bytes) -> None:
    registry = Registry(b"a", b"b")
    answers = await asyncio.gather(*map(registry.ask, (first, b"made up, too", b"a", b"b")))
    assert answers == [401, 401, "yes", "yes"]
    assert len(registry.asked) <= 4


async def test_nodes_that_begin_one_after_the_other_share_one_answer() -> None:
    registry = Registry(b"a", b"b", b"c")

    async def node(token: bytes, after: float) -> str | int:
        await asyncio.sleep(after)
        answer = await registry.ask(ANONYMOUS)
        return await registry.ask(token) if answer == 401 else answer

    assert await asyncio.gather(*(node(token, 0.006 * n) for n, token in enumerate((b"a", b"b", b"c")))) == ["yes"] * 3
    assert sum(asked != ANONYMOUS for asked in registry.asked) == 1


async def test_those_without_a_login_share_its_refusal() -> None:
    registry = Registry(b"a")
    assert await asyncio.gather(*map(registry.ask, (ANONYMOUS, ANONYMOUS, ANONYMOUS))) == [401, 401, 401]
    assert registry.asked == [ANONYMOUS]

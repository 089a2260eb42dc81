"""Which origins are asked, and what a change of settings changes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cacheyd.observe.events import Events
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.origins import Origins
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest

REF = Reference("reg.test", "acme/app", Kind.MANIFEST, "1.0", None, "reg.test")
REQUEST = UpstreamRequest(REF, "GET", ())


class Answer:
    """A response without a body."""

    by_other_host = False

    def __init__(self, status: int, headers: HeaderList) -> None:
        self.status = status
        self.headers = headers

    async def read(self) -> Sequence[bytes]:
        return ()

    def close(self) -> None:
        pass


class Hosts:
    """A transport; `says` has the status of each base, None for one that times out."""

    def __init__(self, **says: int | None) -> None:
        self.says = {f"https://{name}.test": status for name, status in says.items()}
        self.headers: HeaderList = ()
        self.asked: list[str] = []

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> Answer:
        base = url.partition("/v2/")[0]
        self.asked.append(base)
        status = self.says[base]
        if status is None:
            raise UpstreamBroken("no answer", timeout=True)
        return Answer(status, self.headers)


class Heard(Events):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        self.told.append(code)

    def ratelimit(self, registry: str, remaining: int) -> None:
        self.told.append(remaining)


def settings_of(*bases: str, **more: object) -> Settings:
    row = RegistrySettings(configured=True, upstream=tuple(f"https://{base}.test" for base in bases), **more)  # type: ignore[arg-type]
    return Settings(registries={"reg.test": row})


def origins_of(hosts: Hosts, settings: Settings | Live, events: Events) -> Origins:
    return Origins(hosts, Authorizer(settings), settings, events)


async def test_a_dead_origin_is_left_alone_until_the_settings_change() -> None:
    hosts, heard, live = Hosts(a=None, b=200), Heard(), Live(settings_of("a", "b"))
    origins = origins_of(hosts, live, heard)
    for _ in range(2):
        assert (await origins.open(REQUEST)).status == 200
    assert hosts.asked == ["https://a.test", "https://b.test", "https://b.test"]
    assert heard.told == ["timeout", "200", "dead", "200"]
    live.change(live.settings)
    await origins.open(REQUEST)
    assert hosts.asked[3:] == ["https://a.test", "https://b.test"]


async def test_the_last_answer_counts_where_all_are_errors() -> None:
    hosts = Hosts(a=500, b=503)
    assert (await origins_of(hosts, settings_of("a", "b"), Events()).open(REQUEST)).status == 503


async def test_what_may_be_asked_for_changes_with_the_settings() -> None:
    hosts, live = Hosts(a=200), Live(settings_of("a"))
    origins = origins_of(hosts, live, Events())
    await origins.open(REQUEST)
    live.change(replace(live.settings, deny=("reg.test/acme/*",)))
    with pytest.raises(RequestError) as caught:
        await origins.open(REQUEST)
    assert caught.value.failure.status == 403
    assert len(hosts.asked) == 1


async def test_pulls_that_are_left_are_told_and_forgotten() -> None:
    hosts, heard, live = Hosts(a=200), Heard(), Live(settings_of("a", ratelimit_floor=10))
    hosts.headers = (("RateLimit-Remaining", "9;w=21600"),)
    origins = origins_of(hosts, live, heard)
    assert not origins.below_floor("reg.test")
    await origins.open(REQUEST)
    assert heard.told == [9, "200"]
    assert origins.below_floor("reg.test")
    live.change(live.settings)
    assert not origins.below_floor("reg.test")

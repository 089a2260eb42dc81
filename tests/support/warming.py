"""A cache in front of the test origin, for tests that warm images."""

from pathlib import Path
from typing import Any

from cacheyd.admin.image_orders import Warm
from cacheyd.admin.warm import warm
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.observe.metrics import Metrics
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import parse_platform
from cacheyd.settings.load import load
from cacheyd.store.store import Store
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.origins import Origins
from tests.support.images import Image, Index, make_image, make_index
from tests.support.origin import Origin
from tests.support.transport import PlainTransport

REPO = "acme/app"


AMD64 = parse_platform("linux/amd64")


class Scene:
    """A cache in front of the test origin."""

    def __init__(self, store: Store, origin: Origin, directory: Path, **flags: str) -> None:
        self.store, self.origin = store, origin
        self.registry = "registry.test"
        config = directory / "c.toml"
        config.write_text(f'[registries."{self.registry}"]\nupstream = "{origin.url}"\n')
        settings = load(file=str(config), environ={}, flags={"retries": "0", "head_timeout": "5s"} | flags)
        store.live.change(settings)
        self.transport = PlainTransport()
        origins = Origins(self.transport, Authorizer(settings), settings, Metrics(settings.registries))
        self.cache = Cache(store, Fetcher(store, origins, settings), settings)

    async def warm(
        self,
        *names: str,
        platforms: tuple[str, ...] | None = ("linux/amd64",),
        login: str = "",
        layers: int = 4,
        referrers: bool = False,
    ) -> list[Any]:
        images = tuple(parse_image(f"{self.registry}/{name}") for name in names or (f"{REPO}:1.0",))
        wanted = None if platforms is None else tuple(map(parse_platform, platforms))
        order = Warm(images, wanted, {str(image): login for image in images if login}, layers, referrers)
        return [event async for event in warm(self.cache, self.transport, order)]

    def asked(self, method: str = "GET") -> list[str]:
        """The last part of the path of each request with this method, without `/token`."""
        return [r.path.rpartition("/")[2] for r in self.origin.requests if r.method == method and r.path != "/token"]

    def has(self, *digests: str) -> list[bool]:
        return [self.store.objects.find(digest) is not None for digest in digests]


def two_platforms(layers: int = 2, layer_size: int = 2048) -> tuple[Image, Image, Index]:
    amd64 = make_image(layers=layers, layer_size=layer_size, seed=1)
    arm64 = make_image(layers=layers, layer_size=layer_size, seed=2, architecture="arm64")
    return amd64, arm64, make_index(amd64, arm64)


def by_event(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event["event"] == kind]

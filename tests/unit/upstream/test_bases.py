"""Base URLs of upstreams."""

import pytest

from cacheyd.protocol.registries import DOCKER_HUB
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream.bases import image_of
from tests.support.logins import REGISTRY, ref_of


@pytest.mark.parametrize(
    ("registry", "upstream", "image"),
    [
        (REGISTRY, (), "reg.test/acme/app"),
        (DOCKER_HUB, (), "docker.io/acme/app"),
        (DOCKER_HUB, ("https://registry-1.docker.io",), "docker.io/acme/app"),
        (DOCKER_HUB, ("https://1.dkr.ecr.eu-west-1.amazonaws.com/v2/hub",), "1.dkr.ecr.eu-west-1.amazonaws.com/hub/acme/app"),
        (REGISTRY, ("https://a.test:5000/mirror", "https://b.test"), "a.test:5000/acme/app"),
        (REGISTRY, ("http://[::1]:5000",), "[::1]:5000/acme/app"),
    ],
)
def test_the_image_is_named_as_its_own_registry_names_it(registry: str, upstream: tuple[str, ...], image: str) -> None:
    settings = Settings(registries={registry: RegistrySettings(upstream=upstream)})
    assert image_of(settings, ref_of(registry=registry)) == image

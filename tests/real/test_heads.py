"""HEAD tells containerd the digest, the type and the exact length, before and after the object is kept."""

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.real.cache import Cacheyd, Reply
from tests.real.conftest import MakeCache
from tests.real.lab import REGISTRY, Lab, image_for, registry_table
from tests.real.procs import wait_until
from tests.support.images import OCI_INDEX

ACCEPT = {"Accept": f"{OCI_INDEX}, application/vnd.oci.image.manifest.v1+json, */*"}
NS = f"?ns={quote(REGISTRY, safe='')}"


@pytest.fixture
def open_cache(open_lab: Lab, make_cache: MakeCache) -> Cacheyd:
    return make_cache(registry_table(REGISTRY, open_lab.registry.url, open_lab.ca_file))


def described(reply: Reply) -> tuple[int, str | None, str | None, str | None]:
    """Status, digest, type, length."""
    names = ("docker-content-digest", "content-type", "content-length")
    digest, media_type, length = (reply.headers.get(name) for name in names)
    return reply.status, digest, media_type, length


def test_manifest(open_lab: Lab, open_cache: Cacheyd, tmp_path: Path) -> None:
    image = open_lab.publish(tmp_path, "lab/head")
    for target in (f"/v2/lab/head/manifests/1.0{NS}", f"/v2/lab/head/manifests/{image.digest}{NS}"):
        expected = (200, image.digest, OCI_INDEX, str(len(image.manifest)))
        cold = open_cache.request("HEAD", target, ACCEPT)
        assert described(cold) == expected
        assert cold.body == b""
        got = open_cache.request("GET", target, ACCEPT)
        assert described(got) == expected
        assert got.body == image.manifest
        warm = open_cache.request("HEAD", target, ACCEPT)
        assert described(warm) == expected
        assert warm.headers["x-cache"] == "HIT"
        assert warm.body == b""


def test_blob(open_lab: Lab, open_cache: Cacheyd, tmp_path: Path) -> None:
    layer = image_for(open_lab.publish(tmp_path, "lab/head-blob"), "linux/amd64").layers[0]
    target = f"/v2/lab/head-blob/blobs/{layer.digest}{NS}"
    for method, x_cache in (("HEAD", "MISS"), ("GET", "MISS"), ("HEAD", "HIT"), ("GET", "HIT")):
        reply = open_cache.request(method, target)
        assert described(reply)[:2] == (200, layer.digest)
        assert reply.headers["content-length"] == str(len(layer.data))
        assert reply.body == (layer.data if method == "GET" else b"")
        assert reply.headers["x-cache"] == x_cache
        if (method, x_cache) == ("GET", "MISS"):
            open_cache.keeps({layer.digest})
            wait_until(lambda: open_cache.metric("cacheyd_flights") == 0, "the fetch is over")


def test_login_is_the_registrys(lab: Lab, cache: Cacheyd, tmp_path: Path) -> None:
    """The challenge is passed on as it is: the client asks that realm itself."""
    lab.publish(tmp_path, "lab/login")
    reply = cache.request("HEAD", f"/v2/lab/login/manifests/1.0{NS}", ACCEPT)
    assert lab.tokens
    assert reply.status == 401
    assert f'realm="{lab.tokens.realm}"' in reply.headers["www-authenticate"]
    assert 'scope="repository:lab/login:pull"' in reply.headers["www-authenticate"]

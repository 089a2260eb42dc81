"""What containerd does with a mirror that breaks: cacheyd's design stands on it. No cacheyd here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.containerd import Containerd, Pull, write_hosts
from tests.support.images import Image, make_image
from tests.support.origin import Origin, Request

REGISTRY = "behaviour.test:5000"
CUT_AT = 100_000


@dataclass
class Mirrored:
    """A mirror and an upstream with the same image."""

    mirror: Origin
    upstream: Origin
    image: Image
    containerd: Containerd
    hosts: Path

    @property
    def blob(self) -> str:
        """A regex for requests for the layer."""
        return f"GET .*/blobs/{self.image.layers[0].digest}"

    def pull(self) -> Pull:
        return self.containerd.pull(f"{REGISTRY}/lab/img:1.0", self.hosts, seconds=30)

    def layer_requests(self, origin: Origin) -> list[Request]:
        return [request for request in origin.requests if request.path.endswith(self.image.layers[0].digest)]

    def ranges(self, origin: Origin) -> list[str | None]:
        """The Range of each request for the layer, in their order."""
        return [request.header("Range") for request in self.layer_requests(origin)]


@pytest.fixture
def mirrored(containerd: Containerd, tmp_path: Path) -> Iterator[Mirrored]:
    image = make_image(layer_size=400_000)
    with Origin() as mirror, Origin() as upstream:
        for origin in (mirror, upstream):
            origin.push("lab/img", "1.0", image)
        hosts = write_hosts(tmp_path / "hosts", REGISTRY, mirror.url, server=upstream.url)
        yield Mirrored(mirror, upstream, image, containerd, hosts)


def test_asks_the_mirror_with_ns(mirrored: Mirrored) -> None:
    assert mirrored.pull().ok
    assert [request.method for request in mirrored.mirror.requests][:2] == ["HEAD", "GET"]
    assert {request.query for request in mirrored.mirror.requests} == {"ns=behaviour.test%3A5000"}
    assert mirrored.upstream.requests == []


def test_fin_in_a_body_is_resumed_at_the_mirror(mirrored: Mirrored) -> None:
    mirrored.mirror.fault(mirrored.blob, times=1, cut_after=CUT_AT, how="fin")
    pull = mirrored.pull()
    assert pull.ok, pull.output
    assert all(mirrored.containerd.check(pull.namespace).values())
    assert mirrored.ranges(mirrored.mirror) == [None, f"bytes={CUT_AT}-"]
    assert mirrored.upstream.requests == []


def test_resume_answered_502_goes_upstream(mirrored: Mirrored) -> None:
    mirrored.mirror.fault(mirrored.blob, status=502)
    mirrored.mirror.fault(mirrored.blob, times=1, cut_after=CUT_AT, how="fin")
    pull = mirrored.pull()
    assert pull.ok, pull.output
    assert all(mirrored.containerd.check(pull.namespace).values())
    assert mirrored.ranges(mirrored.mirror) == [None, f"bytes={CUT_AT}-"]
    assert mirrored.ranges(mirrored.upstream) == [f"bytes={CUT_AT}-"]


def test_rst_in_a_body_is_fatal(mirrored: Mirrored) -> None:
    mirrored.mirror.fault(mirrored.blob, times=1, cut_after=CUT_AT, how="rst")
    pull = mirrored.pull()
    assert not pull.ok
    assert "connection reset by peer" in pull.output
    assert mirrored.upstream.requests == []


@pytest.mark.parametrize("status", [400, 404, 500, 502, 503, 504])
def test_refusal_before_the_body_goes_upstream(mirrored: Mirrored, status: int) -> None:
    mirrored.mirror.fault(".", status=status)
    pull = mirrored.pull()
    assert pull.ok, pull.output
    assert mirrored.ranges(mirrored.upstream) == [None]


def test_wrong_bytes_are_fatal(mirrored: Mirrored) -> None:
    """Why a body is verified before its end is sent."""
    mirrored.mirror.fault(mirrored.blob, corrupt_at=CUT_AT)
    assert not mirrored.pull().ok
    assert mirrored.layer_requests(mirrored.upstream) == []

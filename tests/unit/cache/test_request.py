"""What a request's headers mean."""

from dataclasses import FrozenInstanceError, replace

import pytest

from cacheyd.cache.request import Request, parse_request
from cacheyd.protocol.media_types import DOCKER_MANIFEST, OCI_INDEX
from cacheyd.protocol.ranges import Part
from cacheyd.protocol.reference import Kind, Reference

DIGEST = "sha256:" + "0" * 64
BLOB = Reference("reg.test", "a/b", Kind.BLOB, DIGEST, DIGEST, "reg.test")


def request(method: str = "GET", **headers: str) -> Request:
    return parse_request(method, BLOB, tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def test_what_goes_upstream() -> None:
    parsed = request(ACCEPT=OCI_INDEX, Cookie="c", authorization="Basic x", Range="bytes=0-1", User_Agent="u")
    assert parsed.headers == (("Accept", OCI_INDEX), ("Authorization", "Basic x"), ("User-Agent", "u"))


def test_the_types() -> None:
    parsed = request(accept=f"{OCI_INDEX}, {DOCKER_MANIFEST};q=0, */*")
    assert parsed.types == {OCI_INDEX, "*/*"}
    assert parsed.asked == {OCI_INDEX}
    assert parsed.types is parsed.types, "parsed once"
    assert (parsed.takes(OCI_INDEX), parsed.takes("")) == (True, False)
    assert not replace(parsed, accept=(OCI_INDEX,)).takes(DOCKER_MANIFEST), "a copy is parsed anew"


@pytest.mark.parametrize(
    ("method", "headers", "parts"),
    [
        ("GET", {}, ()),
        ("GET", {"range": "bytes=1-2"}, (Part(1, 3),)),
        ("HEAD", {"range": "bytes=1-2"}, ()),
        ("GET", {"range": "bytes=1-2", "if_range": f'"{DIGEST}"'}, (Part(1, 3),)),
        ("GET", {"range": "bytes=1-2", "if_range": '"other"'}, ()),
        ("GET", {"range": "bytes=0-0,2-3"}, (Part(0, 1), Part(2, 4))),
        ("GET", {"range": "bytes=0-0,20-30"}, ()),
        ("GET", {"range": "bytes=0-,0-"}, ()),
    ],
)
def test_the_parts_of_ten_bytes(method: str, headers: dict[str, str], parts: tuple[Part, ...]) -> None:
    assert request(method, **headers).parts(10) == parts


@pytest.mark.parametrize(
    ("value", "known"),
    [(f'"{DIGEST}"', True), (f'"x", W/"{DIGEST}"', True), ("*", True), ('"x"', False), (DIGEST, False), ("", False)],
)
def test_what_the_client_has(value: str, known: bool) -> None:
    assert request(if_none_match=value).knows(DIGEST) is known
    assert not request().knows(DIGEST)


def test_nobody_changes_it() -> None:
    with pytest.raises(FrozenInstanceError):
        request().method = "HEAD"  # type: ignore[misc]

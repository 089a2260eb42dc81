"""JSON that is none, or would take long."""

import time

import pytest

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.manifest import parse_manifest


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_manifest(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": [' + b"{}," * 60_000 + b"{}]}",
        b'{"x": "' + b"\\u00e9" * 60_000 + b'"}',
        b'{"x": ' + b"1" * 5000 + b"}",
        b'{"x": 0.' + b"1" * (4 << 20) + b"}",
    ],
    ids=["objects", "escapes", "digits", "fraction"],
)
def test_what_would_take_the_parser_long_is_not_looked_into(data: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match="not"):
        parse_object(data)
    assert time.perf_counter() - started < 0.1

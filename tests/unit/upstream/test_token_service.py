"""Answers of token services, right ones and others."""

import json

import pytest

from cacheyd.upstream.port import UpstreamBroken
from cacheyd.upstream.token_service import TOKEN_LIFE, TOKEN_MAX, _parse_token


@pytest.mark.parametrize(
    ("life", "seconds"),
    [
        ("300", 300.0), ('"300"', 300.0), ("0", TOKEN_LIFE), ("null", TOKEN_LIFE), ("-5", TOKEN_LIFE), ("NaN", TOKEN_LIFE),
        ("Infinity", TOKEN_LIFE), ("-Infinity", TOKEN_LIFE), ("1e999", TOKEN_LIFE),
        ("[]", TOKEN_LIFE),
        ('"x"', TOKEN_LIFE), ("{}", TOKEN_LIFE), ("[1]", TOKEN_LIFE), ("1.5", 1.5),
    ],
)  # fmt: skip
def test_how_long_a_token_holds(life: str, seconds: float) -> None:
    assert _parse_token(b'{"token":"x","expires_in":%s}' % life.encode()) == ("x", seconds)


@pytest.mark.parametrize(
    "body",
    [
        None, b"", b"{}", b"[]", b"null", b"1", b'"x"', b"\xff", b'{"token":1}', b'{"token":""}', b'{"token":"a b"}',
        b'{"token":"a\\r\\nX: y"}', b'{"token":"a\\u0000"}', b'{"token":"\\u00fc"}', b'{"token":"\\ud800"}',
        b'{"token":["x"]}',
        b"[" * 100_000, b'{"a":' * 50_000, b'{"token":"x"', b'{"token":"x","expires_in":' + b"1" * 400 + b"}",
        b'{"token":"x","expires_in":' + b"1" * 5000 + b"}",
        json.dumps({"token": "x" * (TOKEN_MAX + 1)}).encode(),
    ],
)  # fmt: skip
def test_what_is_no_token(body: bytes | None) -> None:
    with pytest.raises(UpstreamBroken):
        _parse_token(body)


def test_a_long_token_is_one() -> None:
    assert _parse_token(json.dumps({"access_token": "x" * TOKEN_MAX}).encode()) == ("x" * TOKEN_MAX, TOKEN_LIFE)

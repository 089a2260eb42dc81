"""Challenges and token answers, right ones and others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.upstream.challenges import CHALLENGES_MAX, Challenge, parse_challenges
from cacheyd.upstream.port import UpstreamBroken
from cacheyd.upstream.realms import realm_belongs
from cacheyd.upstream.token_service import TOKEN_LIFE, TOKEN_MAX, _parse_token
from cacheyd.upstream.tokens import TOKEN_ROOM, KeptTokens, Key, Token

REALM = "https://auth.test/token"


def parsed(*lines: str) -> list[tuple[str, dict[str, str]]]:
    return [(c.scheme, c.params) for c in parse_challenges(tuple(("WWW-Authenticate", line) for line in lines))]


@pytest.mark.parametrize(
    ("line", "challenges"),
    [
        (f'Bearer realm="{REALM}",service="reg.test",scope="repository:a/b:pull,push"', [
            ("bearer", {"realm": REALM, "service": "reg.test", "scope": "repository:a/b:pull,push"})]),
        ('BEARER  Realm = "x" , SERVICE=y', [("bearer", {"realm": "x", "service": "y"})]),
        ("Basic", [("basic", {})]),
        ('Basic realm="a", Bearer realm="b"', [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        ("Negotiate, Basic", [("negotiate", {}), ("basic", {})]),
        ('Negotiate YII=, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Negotiate a/b+c==, Bearer realm="x"', [("negotiate", {}), ("bearer", {"realm": "x"})]),
        (r'Bearer realm="a\"b\\c, Basic realm=\"d\""', [("bearer", {"realm": r'a"b\c, Basic realm="d"'})]),
        ('Bearer realm="a, Basic b=c",service="d"', [("bearer", {"realm": "a, Basic b=c", "service": "d"})]),
        ("Bearer realm=https://auth.test/token?x=y,service=z", [("bearer", {"realm": f"{REALM}?x=y", "service": "z"})]),
        ("Bearer realm=x service=y", [("bearer", {"realm": "x", "service": "y"})]),
        (', ,Basic realm="x",,', [("basic", {"realm": "x"})]),
        ('Bearer realm=""', [("bearer", {"realm": ""})]),
        ('Bearer realm="x', [("bearer", {})]),
        ('Basic realm="x", Bearer realm="y', [("basic", {"realm": "x"}), ("bearer", {})]),
        ('Bearer realm="x\\', [("bearer", {})]),
        ('Bearer realm=,service="x"', [("bearer", {"service": "x"})]),
        ('realm="x"', []),
        ('"Bearer realm=x"', []),
        ("My Registry", [("my", {})]),
        ("", []),
    ],
)  # fmt: skip
def test_challenges(line: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    assert parsed(line) == challenges


def test_several_lines() -> None:
    assert parsed('Basic realm="a"', 'Bearer realm="b"') == [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]


def test_too_long_ones_are_none() -> None:
    line = 'Bearer realm="x"'
    assert parsed(line + " " * (CHALLENGES_MAX - len(line))) == [("bearer", {"realm": "x"})]
    assert parsed(line + " " * (CHALLENGES_MAX - len(line) + 1)) == []
    assert parsed(line, " " * CHALLENGES_MAX) == []


@given(st.lists(st.text(st.sampled_from('Beararlm ="\\,/\t\xff'), max_size=200), max_size=4))
def test_any_lines_give_challenges(lines: list[str]) -> None:
    for challenge in parse_challenges(tuple(("www-authenticate", line) for line in lines)):
        assert isinstance(challenge, Challenge)
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize(
    "realm",
    ["https://[x", "https://evil.test\\@reg.test/", "https://reg.test@evil.test/", "https://evil.test/\thttps://reg.test/",
     "http://reg.test/token", "https://reg.test:444/", "https://auth.test.evil.test/", "https://auth.test:8443/", "x", ""],
)  # fmt: skip
def test_realms_that_do_not_belong(realm: str) -> None:
    assert not realm_belongs(realm, "https://reg.test", ("https://auth.test",))


@pytest.mark.parametrize(
    "realm", ["https://reg.test/token", "https://REG.test:443/x", "https://auth.test/token?x", "https://auth.test"]
)
def test_realms_that_belong(realm: str) -> None:
    assert realm_belongs(realm, "https://reg.test", ("https://auth.test",))


@pytest.mark.parametrize(
    "path",
    ["token/../other/app", "token/..", "token/./../x", "token/%2e%2e/other", "token/%2E%2e/other", "token/.%2e/other",
     "token/%252e%252e/other", "token/%25252e./other", "token/..%2fother", "token/x%2f..%2f..%2fother", "token/..%5cother",
     "token/..\\other", "token/..;x=y/other", "token/%2e%2e%3bx/other", "token//other", "token/x//../y", "token/%2f/other",
     "token/.", "token/a/..?x=y", "tokens", "other", "../token/../other"],
)  # fmt: skip
def test_no_realm_leaves_what_is_allowed(path: str) -> None:
    assert not realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token",))
    assert not realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token/",))


@pytest.mark.parametrize(
    "path",
    ["token", "token/", "token?a=/../b", "token/x", "token/x/", "token/a.b", "token/..a/...", "token/a%20b", "token/x?y//z"],
)
def test_realms_below_what_is_allowed(path: str) -> None:
    assert realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token",))


def test_a_token_service_at_the_port_of_https_may_be_of_a_registry_at_another_one() -> None:
    assert realm_belongs("https://reg.test/token", "https://reg.test:5000", ())
    assert not realm_belongs("https://reg.test:5000/token", "https://reg.test", ())
    assert not realm_belongs("http://reg.test/token", "https://reg.test:5000", ())


# Token answers


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


def test_tokens_are_kept_within_their_room() -> None:
    tokens = KeptTokens()

    def key(number: object) -> Key:
        return Key("reg.test", "https://reg.test", str(number), "")

    for number in range(2000):
        tokens.keep(key(number), Token("x" * TOKEN_MAX, 0.0))
        tokens.keep(key("same"), Token("x" * TOKEN_MAX, 0.0))
    assert 200 < len(tokens) <= TOKEN_ROOM // TOKEN_MAX
    assert tokens.get(key(1999))
    for number in (*range(2000), "same"):
        tokens.drop(key(number))
    assert len(tokens) == 0
    assert tokens._room == TOKEN_ROOM

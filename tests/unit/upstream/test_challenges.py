"""Challenges, right ones and others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.upstream.challenges import CHALLENGES_MAX, Challenge, parse_challenges

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

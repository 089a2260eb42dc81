"""Patterns that can match are taken, and others refused with the reason."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheyd.protocol.reference import NAME, TAG
from cacheyd.settings.patterns import parse_pattern
from cacheyd.settings.rules import parse_rules

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    "pattern",
    [
        "docker.io/Library/*", "docker.io/library/nginx latest", "ghcr.io/", "ghcr.io//app", "ghcr.io/app/", "ghcr.io/*//x",
        "/app", "ghcr.io/-app", "ghcr.io/app-", "ghcr.io/a..b", "ghcr.io/a___b*", "ghcr.io/*_/x", "ghcr.io/app@" + DIGEST,
        "ghcr.io/app:", "ghcr.io/app:1:2", "ghcr.io/app:-x", "ghcr.io/app:v+1", "ghcr.io/app:" + "a" * 129, "ghcr.io/[A-Z]*",
        "ghcr.io/[", "ghcr.io/" + "a" * 256, "https://ghcr.io", "https://ghcr.io/app", "ghcr..io", "-ghcr.io", "*.Corp.test",
        "*.corp.test:443", "ghcr.io:99999", "ghcr io", "*.corp/App", "ghcr.io/app:[!0-9a-zA-Z_.-]", "ghcr.io/ä",
        "ghcr.io/*-", "user@ghcr.io", "*@ghcr.io",
        '["reg.test"]', '["*"]', "'ghcr.io'", 'ghcr.io/["a"]', "docker.io/Nginx", "docker.io/library/nginx:lat est",
    ],
)  # fmt: skip
def test_what_can_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="can never match: ") as caught:
        parse_rules([pattern])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "pattern",
    [
        "*/*:*", "*:5000", "10.*", "*.0.0.1:5000", "a", "localhost", "ghcr.io/*_*", "ghcr.io/a_*_b", "ghcr.io/a.*",
        "ghcr.io/?", "ghcr.io/*?*", "ghcr.io/[a-z]*/[!b]x", "ghcr.io/a[/]b", "*/*:v[0-9]*", "*/*:[A-Z]*", "*/*:*-rc*",
        "bücher.example/app", "[::1]", "ghcr.io/" + "a" * 255 + "*", "*/*:" + "a" * 128 + "*", "ghcr.io/[]a]x", "*/*:_",
    ],
)  # fmt: skip
def test_what_can_match_is_taken(pattern: str) -> None:
    assert parse_rules([pattern]) == (pattern,)


WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)


# What `NAME` describes, made piece by piece: st.from_regex takes twenty times as long for it.
NAMES = st.lists(
    st.builds(
        lambda first, more: first + "".join(map("".join, more)),
        WORDS,
        st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "--", "---"]), WORDS), max_size=3),
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@given(
    name=NAMES,
    tag=st.from_regex(TAG, fullmatch=True),
    cuts=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 8), st.sampled_from(["*", "?", "[a-z]", "[!a]", ""])), max_size=4
    ),
)
def test_no_pattern_that_matches_is_refused(name: str, tag: str, cuts: list[tuple[int, int, str]]) -> None:
    """Patterns made of a name, by putting wildcards for what is in it."""
    assert NAME.fullmatch(name)
    assume(len(name) <= 255)
    for what, prefix in ((name, "ghcr.io/"), (tag, "ghcr.io/app:")):
        pattern = what
        for start, size, wildcard in cuts:
            pattern = pattern[:start] + wildcard + pattern[start + size :]
        if pattern and fnmatchcase(what, pattern):
            parse_pattern(prefix + pattern)

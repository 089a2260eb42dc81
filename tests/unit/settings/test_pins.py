"""Pins: what they keep, and what can never match."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.settings.pins import meant_image, parse_pins

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:*", "docker.io/library/nginx:*"),
        ("redis:7", "docker.io/library/redis:7"),
        ("acme/app:v*", "docker.io/acme/app:v*"),
        ("library/nginx", "docker.io/library/nginx"),
    ],
)
def test_a_registry_of_one_part_is_an_image(pattern: str, image: str) -> None:
    assert meant_image(pattern, ["ghcr.io", ""]) == image
    assert meant_image(pattern, [pattern.partition("/")[0]]) == ""


@pytest.mark.parametrize(
    "pattern",
    [
        "localhost",
        "ghcr.io",
        "reg:5000",
        "reg:80",
        "reg:5000/app",
        "*",
        "reg*",
        "[::1]",
        "[a-c]x",
        "*/app",
        "localhost:*",
        "mine",
    ],
)
def test_a_registry_that_may_be_meant_is_none(pattern: str) -> None:
    assert meant_image(pattern, ["mine:5000"]) == ""


@pytest.mark.parametrize(
    ("pin", "kept"),
    [
        ("docker.io/library/*:*", "docker.io/library/*:*"),
        ("docker.io/nginx:*", "docker.io/library/nginx:*"),
        ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        ("GHCR.io/acme/app:V1", "ghcr.io/acme/app:V1"),
        ("*", "*"),
        ("*:latest", "*:latest"),
        ("*@sha256:*", "*@sha256:*"),
        (f"ghcr.io/acme/app@{DIGEST}", f"ghcr.io/acme/app@{DIGEST}"),
        ("ghcr.io/acme/*V1", "ghcr.io/acme/*V1"),
        ("docker.io*:[0-9].?", "docker.io*:[0-9].?"),
        ("reg.test:5000/a:1", "reg.test:5000/a:1"),
        ("localhost:*", "localhost:*"),
        ("nginx*:*", "nginx*:*"),
        ("reg:5000/*", "reg:5000/*"),
    ],
)
def test_pins_that_can_match(pin: str, kept: str) -> None:
    assert parse_pins([pin]) == parse_pins(pin) == (kept,)


@pytest.mark.parametrize(
    ("pin", "hint"),
    [
        ("docker.io", '"docker.io/*"'),
        ("alpine", '"docker.io/library/alpine:*"'),
        ("alpine:3.22", '"docker.io/library/alpine:3.22"'),
        ("nginx:*", '"docker.io/library/nginx:*"'),
        ("nginx:1.*", '"docker.io/library/nginx:1.*"'),
        ("nginx:?", '"docker.io/library/nginx:?"'),
        ("ghcr.io/acme/app", '"ghcr.io/acme/app:*"'),
        ("*/app", '"*/app:*"'),
        ("ghcr.io/Acme/app:1", "lower case"),
        ("ghcr.io/acme/[A-Z]*:1", "lower case"),
        ("ghcr.io/acme/app:", "no tag"),
        ("ghcr.io/acme/app:1:2", "no tag"),
        ("ghcr.io/acme/app@1", "no repository"),
        ("https://ghcr.io/acme/app:1", "never match"),
        ("a b/c:1", "no registry"),
    ],
)
def test_pins_that_can_never_match_are_refused_with_what_is_meant(pin: str, hint: str) -> None:
    with pytest.raises(ValueError, match="can never match") as caught:
        parse_pins([pin])
    assert hint in str(caught.value)


@given(st.from_regex(r"[ab]{1,3}/[ab]{1,3}(:[abA][abA.]{0,2}|@sha256:[ab]{64})", fullmatch=True), st.data())
def test_no_pin_that_matches_an_image_is_refused(name: str, data: st.DataObject) -> None:
    pattern = "".join(data.draw(st.sampled_from((char, "?", "*", f"{char}*"))) for char in name)
    assert fnmatchcase(name, pattern)
    assert parse_pins([pattern])

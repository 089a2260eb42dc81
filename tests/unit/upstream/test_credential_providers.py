"""Credential providers, as real programs."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.upstream.credential_providers import Provided, image_matches, parse_provided, provided_login
from cacheyd.upstream.programs import HelperError
from tests.support.programs import PROVIDER, provides, write_program


def answer(**fields: Any) -> bytes:
    whole = {"apiVersion": PROVIDER, "kind": "CredentialProviderResponse", "cacheKeyType": "Image", "auth": {}}
    return json.dumps({name: value for name, value in (whole | fields).items() if value != "-"}).encode()


async def test_a_provider_is_asked_by_the_protocol(tmp_path: Path) -> None:
    body = f"cat > {tmp_path}/asked\n" + provides({"reg.test": ("robot", "word")})
    program = write_program(tmp_path / "tool", body)
    provided = await provided_login([str(program), "get"], "reg.test/acme/app")
    assert (provided.login("reg.test/acme/app"), provided.life, provided.of_image) == ("robot:word", 3600.0, False)
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked == {"apiVersion": PROVIDER, "kind": "CredentialProviderRequest", "image": "reg.test/acme/app"}
    assert "word" not in repr(provided)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("-", None), (None, None), ("12h0m0s", 43200.0), ("90s", 90.0), ("1.5h", 5400.0), ("500ms", 0.5), ("0", 0.0),
        ("0s", 0.0), ("1h1us", 3600.000001), (".5m", 30.0),
    ],
)  # fmt: skip
def test_durations_are_go_s(duration: Any, seconds: float | None) -> None:
    assert parse_provided("x", answer(cacheDuration=duration)).life == seconds


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"apiVersion": "credentialprovider.kubelet.k8s.io/v1alpha1"}, "no CredentialProviderResponse"),
        ({"kind": "CredentialProviderRequest"}, "no CredentialProviderResponse"),
        ({"cacheKeyType": "image"}, "cacheKeyType"),
        ({"cacheKeyType": "-"}, "cacheKeyType"),
        ({"cacheKeyType": ["Image"]}, "cacheKeyType"),
        ({"auth": []}, "no object"),
        ({"auth": {"a": {"username": 1, "password": "sesame"}}}, "no name and password"),
        ({"auth": {"a": {"username": "a:b", "password": "sesame"}}}, "cannot be sent"),
        ({"cacheDuration": 3600}, "cacheDuration"),
        ({"cacheDuration": {}}, "cacheDuration"),
        *(({"cacheDuration": text}, "cacheDuration") for text in ("1 hour", "-1h", "1h x", "", "9" * 99 + "h ")),
    ],
)
def test_answers_that_are_none(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(HelperError, match=why) as caught:
        parse_provided("x", answer(**fields))
    assert "sesame" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["username", "password", "reg.test", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.binary(max_size=100) | st.builds(lambda a, d: answer(auth=a, cacheDuration=d), JSON, JSON))
def test_any_bytes_are_an_answer_or_none(output: bytes) -> None:
    with contextlib.suppress(HelperError):
        assert isinstance(parse_provided("x", output).login("reg.test/a"), str)


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        ("reg.test", "reg.test/a/b", True),
        ("REG.test", "reg.test/a/b", True),
        ("https://reg.test/", "reg.test/a/b", True),
        ("*.test", "reg.test/a", True),
        ("*.test", "a.reg.test/a", False),
        ("*.*.test", "a.reg.test/a", True),
        ("app*.test", "app1.test/a", True),
        ("reg.*", "reg.test/a", True),
        ("reg.test:5000", "reg.test:5000/a", True),
        ("reg.test:5000", "reg.test/a", False),
        ("reg.test", "reg.test:5000/a", True),
        ("reg.test:*", "reg.test:5000/a", False),
        ("reg.test/a", "reg.test/a", True),
        ("reg.test/a", "reg.test/a/b", True),
        ("reg.test/a", "reg.test/ab", False),
        ("reg.test/*", "reg.test/a", False),
        ("[::1]:5000", "[::1]:5000/a", True),
        ("reg.test.evil", "reg.test/a", False),
        ("", "reg.test/a", False),
    ],
)
def test_keys_match_images(pattern: str, image: str, matches: bool) -> None:
    assert image_matches(pattern, image) is matches


def test_the_longest_key_wins() -> None:
    provided = Provided({"reg.test": "1", "reg.test/a/b": "3", "reg.test/a": "2", "*.test": "0"}, None, of_image=False)
    images = ("x.test/a", "reg.test/b", "reg.test/a/c", "reg.test/a/b/c", "reg.other/a")
    assert [provided.login(image) for image in images] == ["0", "1", "2", "3", ""]

"""The logins that were typed, and those of auth files."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cacheyd.terminal.images import UsageError, image_names
from cacheyd.terminal.logins import file_logins, one_login

HUB, GHCR = image_names(["alpine", "ghcr.io/acme/app:1.0"])


def auth_file(directory: Path, content: Any) -> Path:
    path = directory / "auth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def auth(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


def test_a_login_is_for_one_registry() -> None:
    assert one_login([GHCR], "ann", "secret") == {"ghcr.io/acme/app:1.0": "ann:secret"}
    with pytest.raises(UsageError, match=r"docker\.io, ghcr\.io"):
        one_login([HUB, GHCR], "ann", "secret")


@pytest.mark.parametrize(("username", "password"), [("", "x"), ("a:b", "x"), ("ann", "")])
def test_half_a_login_is_none(username: str, password: str) -> None:
    with pytest.raises(UsageError):
        one_login([GHCR], username, password)


@pytest.mark.parametrize(
    ("auths", "logins"),
    [
        ({}, {}),
        ({"ghcr.io": auth("ann:secret")}, {str(GHCR): "ann:secret"}),
        ({"https://ghcr.io": auth("ann:sec:ret")}, {str(GHCR): "ann:sec:ret"}),
        ({"https://index.docker.io/v1/": auth("hub:x")}, {str(HUB): "hub:x"}),
        ({"docker.io": auth("hub:x"), "quay.io": auth("q:x")}, {str(HUB): "hub:x"}),
        ({"ghcr.io": auth("ann:1"), "ghcr.io/acme": auth("acme:2")}, {str(GHCR): "acme:2"}),
        ({"ghcr.io": auth("ann:1"), "ghcr.io/acm": auth("acm:2")}, {str(GHCR): "ann:1"}),
        ({"ghcr.io": {}}, {}),
    ],
)
def test_an_auth_file_is_docker_s_or_podman_s(tmp_path: Path, auths: Any, logins: dict[str, str]) -> None:
    assert file_logins([HUB, GHCR], auth_file(tmp_path, {"auths": auths})) == logins


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"credHelpers": {"ghcr.io": "gcloud"}}, "credential helper"),
        ({"auths": {"ghcr.io": {}}, "credsStore": "desktop"}, "credential helper"),
        ({"auths": {"ghcr.io": {"identitytoken": "x"}}}, "identity token"),
        ({"auths": {"ghcr.io": {"auth": "%%"}}}, "base64"),
        ({"auths": {"ghcr.io": {"auth": base64.b64encode(b"sesame").decode()}}}, "base64"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_an_auth_file_that_cannot_be_used_says_why(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        file_logins([GHCR], auth_file(tmp_path, content))
    assert "sesame" not in str(caught.value)


def test_an_auth_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        file_logins([GHCR], tmp_path / "none.json")


def test_a_helper_of_another_registry_does_not_matter(tmp_path: Path) -> None:
    content = {"auths": {"ghcr.io": auth("ann:secret")}, "credHelpers": {"gcr.io": "gcloud"}}
    assert file_logins([HUB, GHCR], auth_file(tmp_path, content)) == {str(GHCR): "ann:secret"}

"""Auth files: docker's config.json and podman's auth.json."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cacheyd.upstream.auth_files import FILE_MAX, AuthFile
from cacheyd.upstream.docker_helpers import DOCKER_SERVER
from cacheyd.upstream.programs import HelperError
from tests.support.programs import says, write_program


def auth(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


def auth_file(directory: Path, content: object) -> AuthFile:
    file = directory / "config.json"
    file.write_text(json.dumps(content))
    return AuthFile.read(file)


@pytest.mark.parametrize(
    ("content", "name", "login", "asked"),
    [
        ({"auths": {"ghcr.io": auth("a:1")}}, "ghcr.io/acme/app", "a:1", ""),
        ({"auths": {"ghcr.io": {"username": "a", "password": "1"}}}, "ghcr.io/acme/app", "a:1", ""),
        ({"auths": {"ghcr.io": auth("a:1")}}, "quay.io/acme/app", "", ""),
        ({"auths": {"https://index.docker.io/v1/": auth("a:1")}}, "docker.io/library/x", "a:1", ""),
        ({"credHelpers": {"ghcr.io": "own"}, "credsStore": "store"}, "ghcr.io/acme/app", "own:1", "ghcr.io"),
        ({"auths": {"ghcr.io": auth("a:1")}, "credHelpers": {"ghcr.io": "own"}}, "ghcr.io/acme/app", "own:1", "ghcr.io"),
        ({"credHelpers": {"docker.io": "own"}}, "docker.io/library/x", "own:1", DOCKER_SERVER),
        ({"auths": {"https://ghcr.io": {}}, "credsStore": "store"}, "ghcr.io/acme/app", "store:1", "https://ghcr.io"),
        ({"auths": {DOCKER_SERVER: {}}, "credsStore": "store"}, "docker.io/library/x", "store:1", DOCKER_SERVER),
        ({"credsStore": "store"}, "docker.io/library/x", "store:1", DOCKER_SERVER),
        ({"credsStore": "store"}, "ghcr.io/acme/app", "store:1", "ghcr.io"),
        ({"auths": {"ghcr.io": auth("a:1")}, "credsStore": "store"}, "ghcr.io/acme/app", "a:1", ""),
        ({"credsStore": "none"}, "ghcr.io/acme/app", "", ""),
        ({"auths": [], "credHelpers": 1, "credsStore": {}}, "ghcr.io/acme/app", "", ""),
    ],
)
async def test_whose_login_it_is(path: Path, content: Any, name: str, login: str, asked: str) -> None:
    for helper in ("own", "store"):
        write_program(path / f"docker-credential-{helper}", f"cat > {path}/asked\n{says(helper, '1')}")
    assert await auth_file(path, content).login(name) == login
    assert ((path / "asked").read_text() if (path / "asked").exists() else "") == asked


@pytest.mark.parametrize("name", ["../evil", "a/b", "a b", "", "x" * 200, "$(id)"])
async def test_helpers_are_names_and_no_paths(tmp_path: Path, name: str) -> None:
    file = auth_file(tmp_path, {"auths": {"ghcr.io": {}}, "credHelpers": {"ghcr.io": name or "/"}})
    with pytest.raises(HelperError, match="an invalid name"):
        await file.login("ghcr.io/acme/app")


async def test_a_store_that_is_not_there_for_a_registry_that_is(tmp_path: Path) -> None:
    with pytest.raises(HelperError, match="docker-credential-none cannot be found"):
        await auth_file(tmp_path, {"auths": {"ghcr.io": {}}, "credsStore": "none"}).login("ghcr.io/acme/app")


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b" " * (FILE_MAX + 1))
    for broken in (tmp_path / "none", tmp_path, file):
        with pytest.raises(HelperError, match=r"cannot be read|more than 1 MiB"):
            AuthFile.read(broken)

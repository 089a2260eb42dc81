"""docker's credential helpers, as real programs."""

from pathlib import Path

import pytest

from cacheyd.upstream.docker_helpers import DOCKER_SERVER, docker_login
from cacheyd.upstream.programs import LOGIN_MAX, HelperError
from tests.support.programs import says, write_program


async def test_a_helper_is_asked_by_the_protocol(path: Path) -> None:
    write_program(path / "docker-credential-x", f'echo "$@" > {path}/args; cat > {path}/asked\n{says("robot", "pass:word")}')
    assert await docker_login("x", DOCKER_SERVER) == "robot:pass:word"
    assert (path / "args").read_text() == "get\n"
    assert (path / "asked").read_text() == DOCKER_SERVER


async def test_a_helper_that_has_no_login(path: Path) -> None:
    write_program(path / "docker-credential-x", "echo credentials not found in native keychain; exit 1")
    assert await docker_login("x", "reg.test") == ""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (says("<token>", "an-identity-token"), "identity token"),
        ("echo no", "not JSON"),
        ("echo '[1]'", "not a JSON object"),
        ("echo '{}'", "no name and password"),
        ("true", "not JSON"),
        ("""printf '{"Username": "robot", "Secret": 1}'""", "no name and password"),
        (says("ro:bot", "sesame"), "cannot be sent"),
        (says("robot", "ses\\name"), "cannot be sent"),
        (says("robot", "\\ud800"), "cannot be sent"),
        (
            f'printf \'{{"Username": "robot", "Secret": "%s"}}\' $(head -c {LOGIN_MAX} /dev/zero | tr "\\0" x)',
            "cannot be sent",
        ),
        ("exit 2", "status 2"),
        ("kill -9 $$", "signal 9"),
        ("echo the daemon is not there; exit 1", "status 1: the daemon is not there"),
    ],
)
async def test_a_helper_that_gives_no_login(path: Path, body: str, why: str) -> None:
    write_program(path / "docker-credential-x", body.replace("\\\\", "\\"))
    with pytest.raises(HelperError, match=why) as caught:
        await docker_login("x", "reg.test")
    assert "sesame" not in str(caught.value)
    assert "an-identity" not in str(caught.value)

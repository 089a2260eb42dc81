"""Credential helpers and providers as real programs, and the files that name them."""

import asyncio
import base64
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.upstream.auth_files import FILE_MAX, AuthFile
from cacheyd.upstream.credential_providers import Provided, image_matches, parse_provided, provided_login
from cacheyd.upstream.docker_helpers import DOCKER_SERVER, docker_login
from cacheyd.upstream.programs import ERRORS_MAX, LOGIN_MAX, OUTPUT_MAX, HelperError, clean, run
from tests.support.programs import PROVIDER, left_alive, provides, says, write_program


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


# Running


async def test_a_program_gets_input_arguments_and_environment_but_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_DAEMON", "value")
    program = write_program(tmp_path / "echo it", 'printf "%s|" "$@"; printf "%s|" "$OF_THE_DAEMON"; cat')
    assert await run([str(program), "$(id)", "a b"], b"input") == b"$(id)|a b|value|input"


async def test_a_program_need_not_read_its_input(tmp_path: Path) -> None:
    program = write_program(tmp_path / "deaf", "exec <&-; echo x")
    assert await run([str(program)], b"y" * 100_000) == b"x\n"


async def test_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    program = write_program(tmp_path / "slow", "sleep 0.5; echo x")
    running = asyncio.create_task(run([str(program)], b""))
    worst = 0.0
    while not running.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        worst = max(worst, time.monotonic() - before)
    assert await running == b"x\n"
    assert worst < 0.3


async def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = write_program(tmp_path / "hang", f"sleep 60 & echo $! > {pids}; echo $$ >> {pids}; wait")
    started = time.monotonic()
    with pytest.raises(HelperError, match=r"hang did not end within 0\.5 s"):
        await run([str(program)], b"", 0.5)
    assert time.monotonic() - started < 3
    await asyncio.sleep(0.1)
    assert left_alive(pids) == []


async def test_one_that_is_not_waited_for_any_more_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = write_program(tmp_path / "hang", f"sleep 60 & echo $! > {pids}; echo $$ >> {pids}; wait")
    running = asyncio.create_task(run([str(program)], b""))
    while not pids.exists() or len(pids.read_text().split()) < 2:
        await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    assert left_alive(pids) == []


async def test_an_agent_that_is_left_running_holds_nobody_up(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = write_program(tmp_path / "agent", f"sleep 5 & echo $! > {pids}; echo x")
    started = time.monotonic()
    assert await run([str(program)], b"") == b"x\n"
    assert time.monotonic() - started < 3
    os.kill(int(pids.read_text()), 9)


async def test_too_much_output_is_cut_off(tmp_path: Path) -> None:
    program = write_program(tmp_path / "loud", "yes")
    with pytest.raises(HelperError, match="loud wrote more than 64 KiB"):
        await run([str(program)], b"")
    program = write_program(tmp_path / "full", f"head -c {OUTPUT_MAX} /dev/zero")
    assert len(await run([str(program)], b"")) == OUTPUT_MAX


async def test_many_errors_are_read_and_not_kept(tmp_path: Path) -> None:
    program = write_program(tmp_path / "loud", f"head -c {100 * ERRORS_MAX} /dev/zero | tr '\\0' 'x ' >&2; exit 3")
    with pytest.raises(HelperError, match="loud failed: status 3") as caught:
        await run([str(program)], b"")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["/none/tool", "no-such-tool", "plain"])
async def test_what_is_not_there_or_cannot_be_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(HelperError, match="cannot be found, or is not executable"):
        await run([str(tmp_path / name) if name == "plain" else name], b"")


async def test_what_is_no_program(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\x7fELF nothing")
    file.chmod(0o755)
    with pytest.raises(HelperError, match="text cannot be run"):
        await run([str(file)], b"")


SECRET = "hunter2"


@pytest.mark.parametrize(
    "said",
    [
        f"password={SECRET}", f"login with password {SECRET} failed", f'"token": "{SECRET}"', f"Authorization: Basic {SECRET}",
        f"https://user:{SECRET}@reg.test/", f"Bearer {SECRET}", f"secret_key: {SECRET}", f"PASSWORD={SECRET}",
        "eyJhbGciOiJSUzI1NiJ9." + SECRET, f"API_TOKEN={SECRET}", f"the secret key is {SECRET}", f"it is {SECRET}",
    ],
)  # fmt: skip
async def test_errors_are_said_without_secrets(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_PASSWORD", SECRET if said.startswith("it is") else "other")
    errors = tmp_path / "errors"
    errors.write_text(f"no network: {said}\nsecond line\x1b[31m")
    program = write_program(tmp_path / "tool", f"cat {errors} >&2; exit 1")
    with pytest.raises(HelperError, match="tool failed: status 1: no network: ") as caught:
        await run([str(program)], b"")
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_was_answered_is_not_said() -> None:
    answer = b'{"Username": "robot", "Secret": "sesame"}'
    assert clean(b"gave robot sesame", answer) == "gave … …"
    assert clean(b"connection to reg.test refused") == "connection to reg.test refused"
    assert len(clean(b"word " * 1000)) == 300


# docker's credential helpers


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


# kubelet's credential providers


async def test_a_provider_is_asked_by_the_protocol(tmp_path: Path) -> None:
    body = f"cat > {tmp_path}/asked\n" + provides({"reg.test": ("robot", "word")})
    program = write_program(tmp_path / "tool", body)
    provided = await provided_login([str(program), "get"], "reg.test/acme/app")
    assert (provided.login("reg.test/acme/app"), provided.life, provided.of_image) == ("robot:word", 3600.0, False)
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked == {"apiVersion": PROVIDER, "kind": "CredentialProviderRequest", "image": "reg.test/acme/app"}
    assert "word" not in repr(provided)


def answer(**fields: Any) -> bytes:
    whole = {"apiVersion": PROVIDER, "kind": "CredentialProviderResponse", "cacheKeyType": "Image", "auth": {}}
    return json.dumps({name: value for name, value in (whole | fields).items() if value != "-"}).encode()


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


# Auth files


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
    with pytest.raises(HelperError, match="a name that is none"):
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

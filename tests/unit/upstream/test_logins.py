"""How long logins are kept, when their programs run, and what a registry's refusal changes."""

import asyncio
import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.registries import DOCKER_HUB
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream import programs
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.bases import image_of
from cacheyd.upstream.login_sources import missing
from cacheyd.upstream.logins import LIFE, LIFE_MIN, MAX_IMAGES, PAUSE, REFUSED_EVERY, RENEW_AT, Logins
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.programs import counted, left_alive, provides, runs_of, says, write_program
from tests.support.stores import Clock

REGISTRY = "reg.test"


def ref_of(repository: str = "acme/app", registry: str = REGISTRY) -> Reference:
    return Reference(registry, repository, Kind.MANIFEST, "1.0", None, registry)


REF = ref_of()


class Scene:
    """Logins of one registry that come from one program, which the test writes; `runs` is how often it ran."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self.program = directory / "tool"
        self.clock = clock
        self.logins = Logins(clock)
        self.set(RegistrySettings(credential_command=(str(self.program),)))

    def set(self, registry: RegistrySettings) -> None:
        self.settings = Settings(registries={REGISTRY: replace(registry, auth="credentials", configured=True)})

    def write(self, body: str) -> None:
        write_program(self.program, counted(body, self.directory / "runs"))

    @property
    def runs(self) -> int:
        return runs_of(self.directory / "runs")

    async def get(self, repository: str = "acme/app") -> str:
        return await self.logins.get(self.settings, ref_of(repository))

    async def other(self, refused: str) -> str:
        return await self.logins.other(self.settings, REF, refused)

    async def ran(self, count: int) -> None:
        """Until it ran so often, and what it gave is known."""
        async with asyncio.timeout(5):
            while self.runs < count or self.logins._running:
                await asyncio.sleep(0.01)


@pytest.fixture
def scene(tmp_path: Path, monotonic: Clock, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Scene(tmp_path, monotonic)


def given(login: str, *, key: str = "Registry", duration: str | None = "100s", of: str = REGISTRY) -> str:
    name, _, password = login.partition(":")
    return provides({of: (name, password)}, key=key, duration=duration)


# Keeping


async def test_an_answer_is_kept_as_long_as_it_holds(scene: Scene) -> None:
    scene.write(given("a:1"))
    assert [await scene.get(), await scene.get("other/repo")] == ["a:1", "a:1"]
    scene.clock.now += 100 * RENEW_AT - 1
    assert await scene.get() == "a:1"
    assert scene.runs == 1


async def test_it_is_renewed_before_it_expires_and_nobody_waits(scene: Scene) -> None:
    scene.write(given("a:1"))
    await scene.get()
    scene.write(f"sleep 0.3\n{given('a:2')}")
    scene.clock.now += 100 * RENEW_AT
    for _ in range(10):
        async with asyncio.timeout(0.2):
            assert await scene.get() == "a:1"
    await scene.ran(2)
    assert await scene.get() == "a:2"
    scene.clock.now += 50
    assert await scene.get() == "a:2"
    assert scene.runs == 2


async def test_a_renewal_that_fails_leaves_what_holds(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.write(given("a:1"))
    await scene.get()
    scene.write("exit 1")
    scene.clock.now += 80
    assert await scene.get() == "a:1"
    await scene.ran(2)
    assert await scene.get() == "a:1"
    assert scene.runs == 2
    assert len(caplog.messages) == 1
    scene.clock.now += 30
    with pytest.raises(UpstreamBroken) as caught:
        await scene.get()
    assert caught.value.refused


async def test_an_expired_one_is_not_used(scene: Scene) -> None:
    scene.write(given("a:1"))
    await scene.get()
    scene.write(given("a:2"))
    scene.clock.now += 100
    assert await scene.get() == "a:2"


@pytest.mark.parametrize(("duration", "seconds"), [(None, LIFE), ("0s", LIFE_MIN), ("10000h", 86400.0)])
async def test_how_long_it_holds_that_does_not_say_or_says_what_is_not_meant(
    scene: Scene, duration: str | None, seconds: float
) -> None:
    scene.write(given("a:1", duration=duration))
    await scene.get()
    scene.clock.now += seconds * RENEW_AT - 0.1
    await scene.get()
    assert scene.runs == 1
    scene.clock.now += seconds * (1 - RENEW_AT) + 0.2
    await scene.get()
    assert scene.runs == 2


async def test_many_at_once_need_one_run(scene: Scene) -> None:
    scene.write(f"sleep 0.2\n{given('a:1')}")
    assert set(await asyncio.gather(*(scene.get(f"repo{n}") for n in range(100)))) == {"a:1"}
    assert scene.runs == 1


async def test_who_started_it_may_leave(scene: Scene) -> None:
    scene.write(f"sleep 0.3\n{given('a:1')}")
    first = asyncio.create_task(scene.get())
    await asyncio.sleep(0.1)
    second = asyncio.create_task(scene.get())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "a:1"
    assert scene.runs == 1


async def test_answers_for_one_image_are_for_no_other(scene: Scene) -> None:
    body = """image=$(cat | tr -d '{} "' | tr , '\\n' | grep ^image: | cut -d: -f2-)
printf '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Image",'
printf '"cacheDuration":"100s","auth":{"%s":{"username":"u","password":"%s"}}}' "$image" "$image\""""
    scene.write(body)
    names = ["a/b", "a/c", "a/b", "d"]
    wanted = [f"u:{REGISTRY}/{name}" for name in names]
    assert list(await asyncio.gather(*map(scene.get, names))) == wanted
    assert [await scene.get(name) for name in names] == wanted
    assert scene.runs == 3
    assert len(scene.logins._places[REGISTRY].kept) == 3 <= MAX_IMAGES


async def test_an_answer_without_a_login_is_kept_too(scene: Scene) -> None:
    scene.write(provides(None))
    for _ in range(3):
        with pytest.raises(UpstreamBroken, match="no login"):
            await scene.get()
    assert scene.runs == 1


# Failing


async def test_one_that_hangs_costs_its_deadline_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(programs, "DEADLINE", 0.4)
    pids = scene.directory / "pids"
    scene.write(f"sleep 60 & echo $! > {pids}; echo $$ >> {pids}; wait")
    results = await asyncio.gather(*(scene.get() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, UpstreamBroken) and result.refused for result in results)
    with pytest.raises(UpstreamBroken):
        async with asyncio.timeout(0.1):
            await scene.get()
    assert scene.runs == 1
    assert caplog.messages == [
        "the login of reg.test cannot be had: tool did not end within 0.4 s; not tried again for 5 s",
    ]
    assert left_alive(pids) == []


async def test_the_pause_grows_and_ends(scene: Scene) -> None:
    scene.write("exit 1")
    for runs, pause in enumerate((PAUSE, 2 * PAUSE, 4 * PAUSE), 1):
        with pytest.raises(UpstreamBroken):
            await scene.get()
        scene.clock.now += pause - 0.1
        with pytest.raises(UpstreamBroken):
            await scene.get()
        assert scene.runs == runs
        scene.clock.now += 0.2
    scene.write(given("a:1"))
    assert await scene.get() == "a:1"


async def test_nothing_of_a_login_is_in_the_log(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.write("cat > /dev/null; echo sesame; echo password: sesame >&2; exit 1")
    with pytest.raises(UpstreamBroken) as caught:
        await scene.get()
    assert "password: …" in caplog.text
    assert "sesame" not in caplog.text + str(caught.value)
    scene.clock.now += 60
    scene.write(given("robot:sesame"))
    await scene.get()
    assert "sesame" not in repr(scene.logins._places) + repr(scene.settings)


# Reloads


async def test_a_reload_forgets(scene: Scene) -> None:
    scene.write(given("a:1"))
    await scene.get()
    scene.write(given("a:2"))
    scene.logins.forget()
    assert await scene.get() == "a:2"


async def test_what_a_run_of_before_a_reload_brings_is_not_kept(scene: Scene) -> None:
    scene.write(f"sleep 0.4\n{given('a:1')}")
    before = asyncio.create_task(scene.get())
    await asyncio.sleep(0.2)
    scene.logins.forget()
    scene.write(given("a:2"))
    assert await scene.get() == "a:2"
    assert await before == "a:1"
    assert await scene.get() == "a:2"


async def test_a_failure_of_before_a_reload_pauses_nobody(scene: Scene) -> None:
    scene.write("sleep 0.4; exit 1")
    before = asyncio.create_task(scene.get())
    await asyncio.sleep(0.2)
    scene.logins.forget()
    scene.write(given("a:2"))
    with pytest.raises(UpstreamBroken):
        await before
    assert await scene.get() == "a:2"


async def test_programs_end_with_the_daemon(scene: Scene) -> None:
    pids = scene.directory / "pids"
    scene.write(f"sleep 60 & echo $! > {pids}; echo $$ >> {pids}; wait")
    asking = asyncio.create_task(scene.get())
    while not pids.exists() or len(pids.read_text().split()) < 2:
        await asyncio.sleep(0.02)
    await scene.logins.close()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert left_alive(pids) == []


# Refusals


async def test_a_refused_login_is_asked_for_again_once_in_a_while(scene: Scene) -> None:
    scene.write(given("a:1"))
    assert await scene.get() == "a:1"
    scene.write(given("a:2"))
    assert await scene.other("a:1") == "a:2"
    assert await scene.other("a:1") == "a:2"
    assert scene.runs == 2
    scene.write(given("a:3"))
    assert await scene.other("a:2") == ""
    scene.clock.now += REFUSED_EVERY
    assert await scene.other("a:2") == "a:3"
    assert scene.runs == 3


async def test_many_whose_login_is_refused_get_the_same_other_one(scene: Scene) -> None:
    scene.write(given("a:1"))
    await scene.get()
    scene.write(f"sleep 0.2\n{given('a:2')}")
    assert set(await asyncio.gather(*(scene.other("a:1") for _ in range(20)))) == {"a:2"}
    assert scene.runs == 2


async def test_a_refused_login_that_is_the_only_one(scene: Scene) -> None:
    scene.write(given("a:1"))
    await scene.get()
    assert await scene.other("a:1") == ""
    scene.clock.now += REFUSED_EVERY
    scene.write("exit 1")
    assert await scene.other("a:1") == ""
    assert await scene.get() == "a:1"


async def test_a_login_of_the_settings_has_no_other(scene: Scene) -> None:
    scene.set(RegistrySettings(username="u", password="p"))
    assert await scene.get() == "u:p"
    assert await scene.other("u:p") == ""


# docker's helpers and files


async def test_a_helper_of_docker_s(scene: Scene) -> None:
    scene.set(RegistrySettings(credential_helper="x"))
    write_program(scene.directory / "docker-credential-x", counted(says("a", "1"), scene.directory / "runs"))
    assert [await scene.get(), await scene.get("b/c")] == ["a:1", "a:1"]
    scene.clock.now += LIFE
    assert await scene.get() == "a:1"
    assert scene.runs == 2


def write_auths(file: Path, **auths: str) -> None:
    entries = {key: {"auth": base64.b64encode(login.encode()).decode()} for key, login in auths.items()}
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"auths": entries}))
    new.rename(file)


async def test_a_file_is_read_anew_when_it_changes(scene: Scene) -> None:
    file = scene.directory / "config.json"
    scene.set(RegistrySettings(auth_file=file))
    write_auths(file, **{REGISTRY: "a:1"})
    assert await scene.get() == "a:1"
    write_auths(file, **{REGISTRY: "a:22"})
    assert await scene.get() == "a:22"
    write_auths(file, **{REGISTRY: "a:2", f"{REGISTRY}/acme": "b:3"})
    assert [await scene.get(), await scene.get("other")] == ["b:3", "a:2"]
    file.write_text("{")
    with pytest.raises(UpstreamBroken):
        await scene.get()
    write_auths(file, **{REGISTRY: "a:4"})
    assert await scene.get() == "a:4"


async def test_a_file_may_name_the_registry_by_either_name(scene: Scene) -> None:
    file = scene.directory / "config.json"
    scene.set(RegistrySettings(auth_file=file, upstream=("https://origin.test:5000",)))
    write_auths(file, **{REGISTRY: "a:1"})
    assert await scene.get() == "a:1"
    write_auths(file, **{REGISTRY: "a:1", "origin.test:5000": "b:2"})
    assert await scene.get() == "b:2"


async def test_a_helper_of_a_file_runs_once(scene: Scene) -> None:
    file = scene.directory / "config.json"
    scene.set(RegistrySettings(auth_file=file))
    write_program(scene.directory / "docker-credential-x", counted(says("a", "1"), scene.directory / "runs"))
    file.write_text(json.dumps({"credHelpers": {REGISTRY: "x"}}))
    assert [await scene.get(name) for name in ("a", "b", "c/d")] == ["a:1"] * 3
    assert scene.runs == 1


@pytest.mark.parametrize(
    ("registry", "upstream", "image"),
    [
        (REGISTRY, (), "reg.test/acme/app"),
        (DOCKER_HUB, (), "docker.io/acme/app"),
        (DOCKER_HUB, ("https://registry-1.docker.io",), "docker.io/acme/app"),
        (DOCKER_HUB, ("https://1.dkr.ecr.eu-west-1.amazonaws.com/v2/hub",), "1.dkr.ecr.eu-west-1.amazonaws.com/hub/acme/app"),
        (REGISTRY, ("https://a.test:5000/mirror", "https://b.test"), "a.test:5000/acme/app"),
        (REGISTRY, ("http://[::1]:5000",), "[::1]:5000/acme/app"),
    ],
)
def test_the_image_is_named_as_its_own_registry_names_it(registry: str, upstream: tuple[str, ...], image: str) -> None:
    settings = Settings(registries={registry: RegistrySettings(upstream=upstream)})
    assert image_of(settings, ref_of(registry=registry)) == image


def test_what_cannot_be_found_is_said(scene: Scene) -> None:
    file = scene.directory / "config.json"
    file.write_text(json.dumps({"credHelpers": {"d.test": "none3"}, "credsStore": "none4"}))
    write_program(scene.directory / "docker-credential-x", "")
    sources = {
        "a.test": RegistrySettings(auth="credentials", credential_helper="none1"),
        "b.test": RegistrySettings(auth="credentials", credential_command=("/none2", "secret")),
        "c.test": RegistrySettings(auth="credentials", credential_helper="x"),
        "d.test": RegistrySettings(auth="credentials", auth_file=file),
        "e.test": RegistrySettings(auth="credentials", auth_file=file),
        "f.test": RegistrySettings(credential_helper="none1"),
    }
    assert missing(Settings(registries=sources)) == [
        'registries."a.test": docker-credential-none1 cannot be found',
        'registries."b.test": /none2 cannot be found',
        'registries."d.test": docker-credential-none3 cannot be found',
        'registries."e.test": docker-credential-none4 cannot be found',
    ]


# What the registry says to it


class Reply:
    elsewhere = False

    def __init__(self, status: int, headers: HeaderList = (), body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self._body = [body] if body else []

    async def read(self) -> list[bytes]:
        chunks, self._body = self._body, []
        return chunks

    def close(self) -> None:
        pass


CHALLENGE = (("WWW-Authenticate", 'Bearer realm="https://reg.test/token",service="x"'),)


class Registry:
    """Gives tokens `t0`, `t1`, … to logins in `logins`; `says` is the status for a token."""

    def __init__(self, says: Callable[[str], int]) -> None:
        self.says = says
        self.logins: set[str] = {"a:1"}
        self.tokens = 0
        self.asked: list[str] = []

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> Reply:
        sent = dict(headers).get("Authorization", "")
        if "/token" in url:
            login = base64.b64decode(sent.removeprefix("Basic ")).decode()
            self.asked.append(f"token for {login}")
            if login not in self.logins:
                return Reply(401)
            self.tokens += 1
            return Reply(200, (), json.dumps({"token": f"t{self.tokens - 1}"}).encode())
        token = sent.removeprefix("Bearer ")
        self.asked.append(token)
        return Reply(self.says(token)) if token else Reply(401, CHALLENGE)

    def told(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


REQUEST = UpstreamRequest(REF, "GET", ())


def authorizer_of(scene: Scene) -> Authorizer:
    return Authorizer(scene.settings, scene.clock)


async def test_a_token_that_is_refused_with_403_is_replaced_once(scene: Scene) -> None:
    scene.set(RegistrySettings(username="a", password="1"))
    bad: set[str] = set()
    registry, authorizer = Registry(lambda token: 403 if token in bad else 200), authorizer_of(scene)

    async def ask() -> int:
        return (await authorizer.fetch(registry, REQUEST, "https://reg.test")).status

    assert await ask() == 200
    assert registry.told() == ["", "token for a:1", "t0"]
    bad.add("t0")
    assert await ask() == 200
    assert registry.told() == ["t0", "", "token for a:1", "t1"]
    assert await ask() == 200
    assert registry.told() == ["t1"]
    bad.update({"t1", "t2"})
    assert await ask() == 403
    assert registry.told() == ["t1", "", "token for a:1", "t2"]
    # It was not about the token.
    assert await ask() == 403
    assert registry.told() == ["t2"]


async def test_many_with_a_refused_token_get_one(scene: Scene) -> None:
    scene.set(RegistrySettings(username="a", password="1"))
    bad: set[str] = set()
    registry, authorizer = Registry(lambda token: 403 if token in bad else 200), authorizer_of(scene)
    await authorizer.fetch(registry, REQUEST, "https://reg.test")
    bad.add("t0")
    replies = await asyncio.gather(*(authorizer.fetch(registry, REQUEST, "https://reg.test") for _ in range(10)))
    assert {reply.status for reply in replies} == {200}
    assert registry.tokens == 2


async def test_a_login_that_the_token_service_refuses_is_asked_for_again(scene: Scene) -> None:
    scene.write(given("a:1"))
    registry, authorizer = Registry(lambda token: 200), authorizer_of(scene)
    assert (await authorizer.fetch(registry, REQUEST, "https://reg.test")).status == 200
    registry.logins = {"a:2"}
    scene.write(given("a:2"))
    registry.told()
    other = UpstreamRequest(ref_of("acme/other"), "GET", ())
    assert (await authorizer.fetch(registry, other, "https://reg.test")).status == 200
    assert registry.told() == ["", "token for a:1", "", "token for a:2", "t1"]
    registry.logins = set()
    third = UpstreamRequest(ref_of("acme/third"), "GET", ())
    for _ in range(5):
        with pytest.raises(UpstreamBroken, match="token service answered 401"):
            await authorizer.fetch(registry, third, "https://reg.test")
    assert scene.runs == 2

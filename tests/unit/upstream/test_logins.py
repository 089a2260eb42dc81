"""How long logins are kept, when their programs run, and what a registry's refusal changes."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from cacheyd.settings.settings import RegistrySettings
from cacheyd.upstream import programs
from cacheyd.upstream.logins import LIFE, LIFE_MIN, MAX_IMAGES, PAUSE, REFUSED_EVERY, RENEW_AT
from cacheyd.upstream.port import UpstreamBroken
from tests.support.logins import REGISTRY, Scene, given
from tests.support.programs import counted, left_alive, provides, says, write_program

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

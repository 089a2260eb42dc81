"""Programs that give logins, as real programs: what they get, what is read, and when they are killed."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from cacheyd.upstream.programs import ERRORS_MAX, OUTPUT_MAX, HelperError, clean, run
from tests.support.programs import left_alive, write_program


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

"""The control socket: real sockets in real directories."""

import asyncio
import json
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin import control
from cacheyd.admin.client import NoServer, NotAnswering, request
from cacheyd.admin.control import CommandError, Reply
from cacheyd.admin.server import REQUEST_MAX, ControlServer


async def run(command: str, args: dict[str, Any]) -> AsyncIterator[Reply]:
    """Commands for tests."""
    match command:
        case "echo":
            yield {"progress": {"half": True}}
            yield {"result": args}
        case "rows":
            for n in range(200):
                yield {"rows": [f"{n}" * 2000]}
            yield {"result": {"count": 200}}
        case "refuse":
            raise CommandError("not today")
        case "fail":
            raise RuntimeError("secret")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(tmp_path, run)
    await server.start()
    yield server
    await server.close()


async def ask(directory: Path, command: str, **args: object) -> list[Reply]:
    """All replies."""
    return await asyncio.to_thread(lambda: list(request(directory, command, args)))


async def raw(directory: Path, line: bytes) -> list[Reply]:
    """What is answered to a line that no client would send."""
    reader, writer = await asyncio.open_unix_connection(directory / control.NAME)
    try:
        writer.write(line)
        return [json.loads(reply) for reply in (await reader.read()).splitlines()]
    finally:
        writer.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_command_is_answered(server: ControlServer, tmp_path: Path) -> None:
    assert await ask(tmp_path, "echo", a=1) == [{"progress": {}}, {"progress": {"half": True}}, {"result": {"a": 1}}]


async def test_answers_may_be_large(server: ControlServer, tmp_path: Path) -> None:
    assert len(await ask(tmp_path, "rows")) == 202


async def test_only_its_owner_may_use_it(server: ControlServer, tmp_path: Path) -> None:
    assert (tmp_path / control.NAME).stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [control.NAME]


async def test_a_command_that_cannot_be_carried_out(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="not today"):
        await ask(tmp_path, "refuse")


async def test_a_command_that_fails_is_logged(server: ControlServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CommandError, match="log") as error:
        await ask(tmp_path, "fail")
    assert "secret" not in str(error.value)
    assert "the command 'fail' failed" in caplog.text
    assert (await ask(tmp_path, "echo"))[-1] == {"result": {}}


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"command": 1}\n', b'{"command": "ls", "args": []}\n', b"[" * 10**5 + b"\n",
        b"\xff\n", b"x" * (REQUEST_MAX + 10),
    ],
    ids=["empty", "no json", "a list", "no command", "a number", "args", "deep", "bytes", "too long"],
)  # fmt: skip
async def test_wrong_requests(server: ControlServer, tmp_path: Path, line: bytes) -> None:
    assert "not a request" in (await raw(tmp_path, line))[-1]["error"]


async def test_who_says_nothing_is_hung_up_on(server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.server.REQUEST_WAIT", 0.05)
    assert await raw(tmp_path, b"") == [{"progress": {}}]


async def test_a_client_that_leaves_ends_its_command(tmp_path: Path) -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def forever(command: str, args: dict[str, Any]) -> AsyncIterator[Reply]:
        try:
            running.set()
            while True:
                yield {"progress": {}}
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    server = ControlServer(tmp_path, forever)
    await server.start()
    _, writer = await asyncio.open_unix_connection(tmp_path / control.NAME)
    writer.write(b'{"command": "x"}\n')
    async with asyncio.timeout(5):
        await running.wait()
        writer.close()
        await ended.wait()
    await server.close()


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    running = asyncio.Event()

    async def forever(command: str, args: dict[str, Any]) -> AsyncIterator[Reply]:
        running.set()
        await asyncio.Event().wait()
        yield {}

    server = ControlServer(tmp_path, forever)
    await server.start()
    asking = asyncio.create_task(ask(tmp_path, "x"))
    await running.wait()
    await server.close()
    with pytest.raises(NotAnswering):
        await asking
    assert os.listdir(tmp_path) == []


async def test_the_socket_comes_back_after_a_wipe(
    server: ControlServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / control.NAME).unlink()
    await server.ensure()
    assert (await ask(tmp_path, "echo"))[-1] == {"result": {}}
    shutil.rmtree(tmp_path)
    for _ in range(2):
        await server.ensure()
    assert caplog.text.count("no tools") == 1
    tmp_path.mkdir()
    await server.ensure()
    assert (await ask(tmp_path, "echo"))[-1] == {"result": {}}


async def test_it_comes_back_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.server.LOOK_EVERY", 0.02)
    server = ControlServer(tmp_path, run)
    await server.start()
    (tmp_path / control.NAME).unlink()
    await until((tmp_path / control.NAME).exists)
    await server.close()


async def test_the_directory_of_another_process_is_left_alone(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, run, lambda: False)
    await server.start()
    assert os.listdir(tmp_path) == []
    (tmp_path / control.NAME).write_text("another's")
    await server.close()
    assert os.listdir(tmp_path) == [control.NAME]


async def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / control.NAME))
    with pytest.raises(NoServer):
        await ask(tmp_path, "echo")
    server = ControlServer(tmp_path, run)
    await server.start()
    assert (await ask(tmp_path, "echo"))[-1] == {"result": {}}
    await server.close()


async def test_the_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200) / ("e" * 200)
    directory.mkdir(parents=True)
    server = ControlServer(directory, run)
    await server.start()
    assert (await ask(directory, "echo"))[-1] == {"result": {}}
    await server.close()
    assert os.listdir(directory) == []


async def test_where_no_socket_can_be_the_server_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / control.NAME).mkdir()
    server = ControlServer(tmp_path, run)
    await server.start()
    await server.ensure()
    assert caplog.text.count("no tools can be used beside this process") == 1
    await server.close()


# The client


def test_nobody_is_there(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoServer):
            list(request(directory, "echo", {}))


def test_who_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / control.NAME))
        deaf.listen(1)
        with pytest.raises(NotAnswering):
            list(request(tmp_path, "echo", {}, wait=0.1))

"""The breaker is for origins that do not answer. What is wrong about one object counts against that object."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.faults.client import Client, Reply, Stopwatch
from tests.faults.daemon import Daemon
from tests.faults.scene import closed_port, manifest_target, registry_table
from tests.hostile.peers import PATIENCE, RawOrigin, head
from tests.hostile.raw_answers import Row
from tests.hostile.written import Script, Thing, Written, manifest, written
from tests.policy.conftest import Starter

# Three failures open the breaker.
MANY = 4


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[Written]:
    with written(shared, settings={"retries": "0", "head_timeout": "400ms"}) as world:
        yield world


def assert_open_for_others(world: Written, ns: str = "raw.test") -> None:
    """Another object of the same registry comes at once."""
    thing = Thing("digest", next(world.numbers), ns)
    watch = Stopwatch()
    reply = world.ask(thing)
    assert (reply.status, reply.body) == (200, thing.data), reply
    assert watch.seconds < 1.5


def body_of(status: int, *fields: str, body: bytes = b"", said: int | None = None) -> bytes:
    return head(status, f"Content-Length: {len(body) if said is None else said}", *fields) + body


WRONG: dict[str, tuple[bytes, bool]] = {
    "garbage": (b"Go away\r\n\r\n", True),
    "garbage that is kept": (b"Go away\r\n\r\n", False),
    "one byte": (b"H", True),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", True),
    "half a head, and then nothing": (b"HTTP/1.1 200 OK\r\nContent-Le", False),
    "an interim response, and then nothing": (b"HTTP/1.1 103 Early Hints\r\n\r\n", True),
    "no status": (body_of(99), False),
    "two lengths": (body_of(200, "Content-Length: 9"), True),
    "a NUL": (body_of(200, "X: a\0b"), True),
    "a head without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (200 << 10), True),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", False),
    "a body that breaks": (body_of(200, body=b"{", said=100), True),
    "wrong bytes": (body_of(200, body=b"{}"), False),
    "a redirect to nowhere": (body_of(302, "Location: gopher://x/"), False),
    "500": (body_of(500), False),
}
TOKENS: dict[str, tuple[bytes, bool]] = {
    **WRONG,
    "no JSON": (body_of(200, body=b'{"token": '), False),
    "HTML": (body_of(200, "Content-Type: text/html", body=b"<html>Please log in</html>"), False),
    "no token": (body_of(200, body=b"{}"), False),
    "a token that is a number": (body_of(200, body=b'{"token": 5}'), False),
    "404": (body_of(404), False),
    "nothing at all": (b"", True),
}


@pytest.mark.parametrize("kind", ["tag", "blob", "HEAD digest", "tags"])
def test_answers_that_are_wrong_count_against_the_object(world: Written, kind: str) -> None:
    for name, (data, closes) in WRONG.items():
        times = MANY if data and "nothing" not in name else 1  # Those that take their time open it at once.
        for _ in range(times):
            thing = world.thing(kind)
            world.script(thing, lambda method: (data, closes))  # noqa: B023
            reply = world.ask(thing)
            assert reply.status >= 500 or reply.end == "fin" or not thing.verified or kind == "HEAD blob", name
            assert "did not answer just now" not in str(reply.body), name
        assert_open_for_others(world)


def test_tokens_that_are_wrong_count_against_the_object(world: Written) -> None:
    for name, (data, closes) in TOKENS.items():
        for _ in range(MANY if data and "nothing" not in name else 1):
            thing = world.thing("token")
            world.script(thing, lambda method: (data, closes))  # noqa: B023
            reply = world.ask(thing)
            assert reply.status >= 500, name
            assert b"did not answer just now" not in reply.body, name
        assert_open_for_others(world, "token.test")


def test_a_token_service_that_says_nothing_is_left_alone(own: Starter) -> None:
    """It alone: what needs no token is served."""
    with RawOrigin(silent) as service:

        def serve(connection: socket.socket, request: bytes) -> None:
            realm = f'WWW-Authenticate: Bearer realm="{service.url}/token"'
            public = b"/public/" in request
            connection.sendall(body_of(200, "Connection: close", body=manifest(1)) if public else body_of(401, realm))

        with RawOrigin(serve) as origin:
            table = registry_table("raw.test", origin.url) + 'auth = "anonymous"\n'
            daemon = own.daemon(table, {"retries": "0", "head_timeout": "400ms"})
            assert daemon.get(manifest_target("private/a", "1.0", "raw.test")).status == 504
            for number in range(MANY):
                watch = Stopwatch()
                reply = daemon.get(manifest_target("private/a", f"1.{number}", "raw.test"))
                assert (reply.status, watch.seconds < 0.5) == (503, True)
                assert b"token service" in reply.body
                assert daemon.get(manifest_target("public/a", f"1.{number}", "raw.test")).status == 200
            assert len(service.heads) == 1


def silent(connection: socket.socket, request: bytes) -> None:
    """Reads and says nothing."""
    time.sleep(5)


def closing(connection: socket.socket, request: bytes) -> None:
    """Closes."""


def resetting(connection: socket.socket, request: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_an_origin_that_says_nothing_is_left_alone(own: Starter) -> None:
    with ExitStack() as running:
        origins = {how.__name__: running.enter_context(RawOrigin(how)) for how in (silent, closing, resetting)}
        urls = {**{name: origin.url for name, origin in origins.items()}, "refusing": f"http://127.0.0.1:{closed_port()}"}
        tables = [registry_table(f"{name}.test", url) for name, url in urls.items()]
        daemon = own.daemon("".join(tables), {"retries": "0", "head_timeout": "400ms"})
        for name in urls:
            replies = [ask(daemon, Thing("digest", number, f"{name}.test")) for number in range(MANY)]
            assert all(reply.status >= 500 for reply in replies)
            watch = Stopwatch()
            last = ask(daemon, Thing("tag", 99, f"{name}.test"))
            assert (last.status, watch.seconds < 0.5) == (503, True), name
            assert b"did not answer just now" in last.body
        assert all(len(origin.heads) <= 3 for origin in origins.values())


def ask(daemon: Daemon, thing: Thing) -> Reply:
    with Client(daemon.port, patience=PATIENCE) as client:
        return client.exchange(thing.target, method=thing.method)


@pytest.mark.parametrize("name", ["garbage", "half a head", "half a head, and then nothing", "a body that breaks"])
def test_with_several_upstreams_each_is_asked_for_the_next_object(own: Starter, name: str) -> None:
    """One has the wrong bytes for some objects; it, and the other one, go on being asked for others."""
    data, closes = WRONG[name]
    asked: list[tuple[int, str]] = []

    def serving(number: int) -> Callable[[socket.socket, bytes], None]:
        def serve(connection: socket.socket, request: bytes) -> None:
            reference = request.split(b" ")[1].rpartition(b"/")[2].decode()
            asked.append((number, reference))
            if reference.startswith("bad"):
                connection.sendall(data)
                if not closes:
                    time.sleep(3)
            else:
                connection.sendall(body_of(200, "Connection: close", body=manifest(number)))

        return serve

    with RawOrigin(serving(1)) as first, RawOrigin(serving(2)) as second:
        table = f'[registries."raw.test"]\nupstream = ["{first.url}", "{second.url}"]\n'
        daemon = own.daemon(table, {"retries": "0", "head_timeout": "600ms"})
        for number in range(2 if "nothing" in name else MANY):
            reply = daemon.get(manifest_target("a/b", f"bad{number}", "raw.test"))
            assert reply.status >= 500
        good = daemon.get(manifest_target("a/b", "good", "raw.test"))
        assert (good.status, good.body) == (200, manifest(1))
        assert asked[-1] == (1, "good")


# Connections that were kept


def script(first: tuple[bytes, bool], then: Script) -> Script:
    """One answer, and then others."""
    left = [first]
    return lambda method: left.pop(0) if left else then(method)


TIMED_OUT = (body_of(408, "Connection: close"), True)


@pytest.mark.parametrize("kind", ["HEAD tag", "blob", "tags", "token"])
@pytest.mark.parametrize("first", [TIMED_OUT, (body_of(408), False), (b"", True), (b"HTTP/1.1 2", True)], ids=repr)
def test_a_kept_connection_that_just_closed_is_no_answer(world: Written, kind: str, first: tuple[bytes, bool]) -> None:
    """Once more, on a new one."""
    world.assert_in_order()  # Leaves a connection.
    thing = world.thing(kind)
    row = Row("good")

    def good(method: str) -> tuple[bytes, bool]:
        return row.answer(thing.data, thing.media_type, method), False

    world.script(thing, script(first, good))
    before = len(world.came_on)
    reply = world.ask(thing)
    assert reply.status == 200
    on = [
        number
        for number, request in zip(world.came_on[before:], world.requests[before:], strict=True)
        if thing.repo in request
    ]
    assert len(set(on)) == 2
    world.assert_in_order()


@pytest.mark.parametrize("closes", [True, False])
def test_a_408_on_a_new_connection_is_upstreams_answer(world: Written, closes: bool) -> None:
    thing = world.thing("digest")
    world.script(thing, lambda method: (body_of(408, body=b"{}"), closes))
    reply = world.ask(thing)
    assert (reply.status, reply.body) == (408, b"{}")
    on = [number for number, request in zip(world.came_on, world.requests, strict=True) if thing.repo in request]
    assert world.came_on.count(on[-1]) == 1
    assert len(on) <= 2


@pytest.mark.parametrize("first", [TIMED_OUT, (b"", True), (b"x\r\n\r\n", True)], ids=repr)
def test_it_is_tried_once_more_and_not_for_ever(world: Written, first: tuple[bytes, bool]) -> None:
    """However many connections are kept."""
    things = [world.thing("blob") for _ in range(4)]
    slow = threading.Barrier(len(things), timeout=5)

    def together(thing: Thing) -> Script:
        def answer(method: str) -> tuple[bytes, bool]:
            slow.wait()
            return Row("good").answer(thing.data, thing.media_type, method), False

        return answer

    for thing in things:
        world.script(thing, together(thing))
    with ThreadPoolExecutor(len(things)) as pool:
        assert [reply.status for reply in pool.map(world.ask, things)] == [200] * len(things)
    world.assert_in_order()
    thing = world.thing("digest")
    world.script(thing, lambda method: first)
    reply = world.ask(thing)
    assert reply.status in (408, 502)
    assert sum(thing.repo in request for request in world.requests) == 2


def test_a_slow_list_says_nothing_of_the_registry(own: Starter) -> None:
    """Where nobody else asks anything meanwhile, and however often; what is quick is left alone only when it fails, too."""

    def serve(connection: socket.socket, request: bytes) -> None:
        if b"tags/list" in request or b"down" in request:
            silent(connection, request)
        else:
            connection.sendall(body_of(200, "Connection: close", body=manifest(1)))

    with RawOrigin(serve) as origin:
        daemon = own.daemon(registry_table("raw.test", origin.url), {"retries": "0", "head_timeout": "400ms"})
        for number in range(4):
            assert daemon.get(f"/v2/a/b{number}/tags/list?ns=raw.test").status == 504
        assert daemon.get(manifest_target("a/b", "1.0", "raw.test")).status == 200
        assert daemon.get(manifest_target("a/b", "down", "raw.test")).status == 504
        assert daemon.get(manifest_target("a/b", "1.1", "raw.test")).status == 503

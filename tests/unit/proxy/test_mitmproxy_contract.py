"""Each seam of mitmproxy that cacheyd/proxy relies on and that its documentation does not promise.

One of these that fails after an update says which part of proxy/ to look at. `make lowest` runs them with the lowest
mitmproxy of the range in pyproject.toml, `make check` with the locked one.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import tomllib
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from h11._readers import Http10Reader
from mitmproxy import connection, http, version
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import ConnectionState
from mitmproxy.master import Master
from mitmproxy.net.http import http1
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, layers, server, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import (
    ErrorCode,
    Http1Server,
    HttpConnection,
    HttpErrorHook,
    HttpLayer,
    HTTPMode,
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
    HttpStream,
    ReceiveHttp,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import make_body_reader
from mitmproxy.proxy.layers.tls import ClientTLSLayer, TLSLayer, TlsStartServerHook
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.test import taddons
from OpenSSL import SSL
from packaging.requirements import Requirement

from cacheyd.proxy.outbound.intake import StrictHttp1Client

GET = b"GET /v2/ HTTP/1.1\r\nHost: cache\r\n\r\n"
HOST = ((b"Host", b"up.example"),)


@dataclasses.dataclass
class ContractPumpHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """A blocking hook of our own."""

    data: list[str]


# Driving layers by hand


@pytest.fixture
async def proxyserver() -> AsyncIterator[tuple[Any, Any]]:
    """The addon and its test context; mitmproxy does not annotate either."""
    addon = Proxyserver()  # type: ignore[no-untyped-call]
    with taddons.context(addon) as tctx:  # type: ignore[no-untyped-call]
        tctx.options.update(connection_strategy="lazy", keep_host_header=True, http2=False)
        yield addon, tctx


@pytest.fixture
def context(proxyserver: tuple[Any, Any]) -> Context:
    client = connection.Client(
        peername=("10.0.0.1", 5000),
        sockname=("10.0.0.2", 3000),
        timestamp_start=0.0,
        state=ConnectionState.OPEN,
        proxy_mode=ProxyMode.parse("reverse:http://up.example"),
    )
    context = Context(client, proxyserver[1].options)
    context.server.address = ("up.example", 80)
    return context


class Drive:
    """Feeds events to a layer, collects its commands, and completes blocking ones as the proxy does."""

    def __init__(self, top: layer.Layer, on_hook: Callable[[commands.StartHook], None] = lambda hook: None) -> None:
        self.top = top
        self.on_hook = on_hook
        self.seen: list[commands.Command] = []
        self.held: list[commands.StartHook] = []
        self.dialled: list[connection.Server] = []
        self.hold = False

    def feed(self, event: events.Event) -> list[commands.Command]:
        """The commands that came of the event."""
        start = len(self.seen)
        for command in list(self.top.handle_event(event)):
            self.seen.append(command)
            if isinstance(command, commands.StartHook):
                if self.hold:
                    self.held.append(command)
                    continue
                self.on_hook(command)
                if command.blocking:
                    self.feed(events.HookCompleted(command))
            elif isinstance(command, commands.OpenConnection):
                self.dialled.append(command.connection)
                command.connection.state = ConnectionState.OPEN
                self.feed(events.OpenConnectionCompleted(command, None))
        return self.seen[start:]

    def release(self) -> list[commands.Command]:
        """Completes the hooks that were held."""
        self.hold = False
        start = len(self.seen)
        while self.held:
            hook = self.held.pop(0)
            self.on_hook(hook)
            self.feed(events.HookCompleted(hook))
        return self.seen[start:]

    def sent(self, conn: connection.Connection) -> bytes:
        """What went out on a connection."""
        return b"".join(c.data for c in self.seen if isinstance(c, commands.SendData) and c.connection is conn)

    def data(self, conn: connection.Connection, data: bytes) -> list[commands.Command]:
        return self.feed(events.DataReceived(conn, data))


def kinds(found: list[commands.Command]) -> list[type[commands.Command]]:
    return [type(command) for command in found]


class Recorder(HttpConnection):
    """Stands where a client's HTTP connection would, and remembers what it is told."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.client)
        self.told: list[events.Event] = []

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        self.told.append(event)
        yield from self.react(event)

    def react(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()


class Submit(events.ConnectionEvent):
    """An event of our own, addressed to a connection."""

    def __init__(self, conn: connection.Connection, flow: http.HTTPFlow) -> None:
        super().__init__(conn)
        self.flow = flow


class Requests(Recorder):
    """Makes a request of each `Submit`, as proxy/upstream does."""

    stream_id = -1

    def react(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Submit):
            self.stream_id += 2
            headers = RequestHeaders(self.stream_id, event.flow.request, end_stream=True, replay_flow=event.flow)
            yield ReceiveHttp(headers)
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))


def test_the_version_is_the_one_that_was_tested() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    (requirement,) = (text for text in project["dependencies"] if text.startswith("mitmproxy"))
    assert version.VERSION in Requirement(requirement).specifier


# HttpLayer


async def test_a_preset_connection_stays(context: Context) -> None:
    top = HttpLayer(context, HTTPMode.transparent)
    preset = top.connections[context.client] = Recorder(context.fork())

    Drive(top).feed(events.Start())

    assert top.connections[context.client] is preset
    assert [type(event) for event in preset.told] == [events.Start]


async def test_make_stream_is_where_a_stream_of_ours_enters(context: Context) -> None:
    class Stream(HttpStream):
        pass

    class Layer(HttpLayer):
        def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
            self.streams[stream_id] = Stream(self.context.fork(), stream_id)
            yield from self.event_to_child(self.streams[stream_id], events.Start())

    top = Layer(context, HTTPMode.transparent)
    drive = Drive(top)
    drive.hold = True
    drive.feed(events.Start())
    drive.data(context.client, GET)

    assert isinstance(top.streams[1], Stream)
    assert kinds(drive.seen) == [HttpRequestHeadersHook]


def answered(text: bytes = b"ok") -> Callable[[commands.StartHook], None]:
    def on_hook(hook: commands.StartHook) -> None:
        if isinstance(hook, HttpRequestHook):
            hook.flow.response = http.Response.make(200, text)

    return on_hook


async def test_a_response_set_in_the_request_hook_is_sent_by_send_response(context: Context) -> None:
    class Stream(HttpStream):
        def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
            told.append(already_streamed)
            yield from super().send_response(already_streamed)

    class Layer(HttpLayer):
        def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
            self.streams[stream_id] = Stream(self.context.fork(), stream_id)
            yield from self.event_to_child(self.streams[stream_id], events.Start())

    told: list[bool] = []
    drive = Drive(Layer(context, HTTPMode.transparent), answered())
    drive.feed(events.Start())
    drive.data(context.client, GET)

    assert told == [False]
    assert drive.sent(context.client).startswith(b"HTTP/1.1 200 OK\r\n")
    assert drive.sent(context.client).endswith(b"\r\n\r\nok")
    hooks = [type(c) for c in drive.seen if isinstance(c, commands.StartHook)]
    assert hooks == [HttpRequestHeadersHook, HttpRequestHook, HttpResponseHeadersHook, HttpResponseHook]


async def test_after_a_body_of_ours_already_streamed_ends_the_response(context: Context) -> None:
    """Head and pieces go out by hand; then mitmproxy does the rest: the hook, the end, the next request."""

    class Stream(HttpStream):
        def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
            assert self.flow.response
            yield layers.http.SendHttp(
                ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client
            )
            yield layers.http.SendHttp(ResponseData(self.stream_id, b"piece"), self.context.client)
            yield from super().send_response(already_streamed=True)

    class Layer(HttpLayer):
        def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
            self.streams[stream_id] = Stream(self.context.fork(), stream_id)
            yield from self.event_to_child(self.streams[stream_id], events.Start())

    def on_hook(hook: commands.StartHook) -> None:
        if isinstance(hook, HttpRequestHook):
            hook.flow.response = http.Response.make(200, b"", {"Content-Length": "5"})

    top = Layer(context, HTTPMode.transparent)
    drive = Drive(top, on_hook)
    drive.feed(events.Start())
    for _ in range(2):
        drive.data(context.client, GET)

    assert drive.sent(context.client).count(b"\r\n\r\npiece") == 2
    assert len([c for c in drive.seen if isinstance(c, HttpResponseHook)]) == 2
    assert top.streams == {}


async def test_connection_events_go_to_the_handler_of_their_connection(context: Context) -> None:
    top = HttpLayer(context, HTTPMode.transparent)
    preset = top.connections[context.client] = Recorder(context.fork())
    drive = Drive(top)
    drive.feed(events.Start())

    submit = Submit(context.client, http.HTTPFlow(context.client, context.server))
    drive.feed(submit)

    assert preset.told[-1] is submit


async def test_a_wakeup_goes_to_whom_asked_for_it(context: Context) -> None:
    class Sleeper(Recorder):
        def react(self, event: events.Event) -> layer.CommandGenerator[None]:
            if isinstance(event, events.Start):
                yield commands.RequestWakeup(5)

    top = HttpLayer(context, HTTPMode.transparent)
    preset = top.connections[context.client] = Sleeper(context.fork())
    drive = Drive(top)
    (command,) = drive.feed(events.Start())
    assert isinstance(command, commands.RequestWakeup)
    assert command.delay == 5

    drive.feed(events.Wakeup(command))
    assert isinstance(preset.told[-1], events.Wakeup)


# Http1Server


class Server(Http1Server):
    """Counts when it is asked to read a head."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.heads: list[bytes] = []

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        self.heads.append(bytes(self.buf))
        yield from super().read_headers(event)


def with_server(context: Context, on_hook: Callable[[commands.StartHook], None]) -> tuple[Drive, Server]:
    top = HttpLayer(context, HTTPMode.transparent)
    http_server = Server(context.fork())
    top.connections[context.client] = http_server
    drive = Drive(top, on_hook)
    drive.feed(events.Start())
    return drive, http_server


async def test_read_headers_is_called_only_between_requests(context: Context) -> None:
    drive, http_server = with_server(context, answered())
    drive.hold = True

    drive.data(context.client, GET)
    drive.data(context.client, GET)
    drive.data(context.client, b"GET /partial")
    assert http_server.heads == [GET], "nothing is read while a flow is under way"

    drive.release()
    assert http_server.heads == [GET, GET + b"GET /partial", b"GET /partial"], "then what has come meanwhile"
    assert drive.sent(context.client).count(b"HTTP/1.1 200 OK") == 2


async def test_read_headers_is_not_called_within_a_body(context: Context) -> None:
    drive, http_server = with_server(context, answered())
    drive.data(context.client, b"POST /v2/ HTTP/1.1\r\nHost: cache\r\nContent-Length: 6\r\n\r\nabc")
    drive.data(context.client, b"def")
    assert len(http_server.heads) == 1
    drive.data(context.client, GET)
    assert len(http_server.heads) == 2


async def test_the_states_that_our_server_sets_exist(context: Context) -> None:
    drive, http_server = with_server(context, answered())

    assert http_server.state == http_server.read_headers
    assert http_server.stream_id == 1
    drive.data(context.client, GET)
    assert http_server.state == http_server.read_headers
    assert http_server.stream_id == 3
    http_server.state = http_server.done
    assert drive.data(context.client, GET) == []


async def test_the_buffer_gives_out_what_it_is_asked_for(context: Context) -> None:
    _, http_server = with_server(context, answered())
    http_server.buf += b"abcdef"

    assert len(http_server.buf) == 6
    assert bytes(http_server.buf) == b"abcdef"
    assert bytes(http_server.buf.maybe_extract_at_most(4) or b"") == b"abcd"
    assert bytes(http_server.buf) == b"ef"


async def test_the_server_may_answer_by_itself_without_a_flow(context: Context) -> None:
    class Answering(Server):
        def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
            self.buf.maybe_extract_at_most(len(self.buf))
            yield commands.SendData(self.conn, b"HTTP/1.1 204 No Content\r\n\r\n")

    top = HttpLayer(context, HTTPMode.transparent)
    top.connections[context.client] = Answering(context.fork())
    drive = Drive(top)
    drive.feed(events.Start())

    for _ in range(3):
        assert kinds(drive.data(context.client, GET)) == [commands.SendData]
    assert top.streams == {}


async def test_the_server_may_yield_a_blocking_hook_in_the_middle_of_a_response(context: Context) -> None:
    class Pumping(Server):
        def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
            self.buf.maybe_extract_at_most(len(self.buf))
            yield commands.SendData(self.conn, b"one ")
            yield ContractPumpHook(["two"])
            yield commands.SendData(self.conn, b"two ")

    top = HttpLayer(context, HTTPMode.transparent)
    top.connections[context.client] = Pumping(context.fork())
    drive = Drive(top)
    drive.feed(events.Start())
    drive.hold = True
    drive.data(context.client, GET)
    drive.data(context.client, GET)
    assert drive.sent(context.client) == b"one "

    drive.release()
    assert drive.sent(context.client) == b"one two one two "


async def test_views_go_through_the_server_as_they_are(context: Context) -> None:
    view = memoryview(b"a view of a mapping")

    class Stream(HttpStream):
        def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
            assert self.flow.response
            yield layers.http.SendHttp(ResponseHeaders(self.stream_id, self.flow.response, False), self.context.client)
            yield layers.http.SendHttp(ResponseData(self.stream_id, view), self.context.client)  # type: ignore[arg-type]

    class Layer(HttpLayer):
        def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
            self.streams[stream_id] = Stream(self.context.fork(), stream_id)
            yield from self.event_to_child(self.streams[stream_id], events.Start())

    def on_hook(hook: commands.StartHook) -> None:
        if isinstance(hook, HttpRequestHook):
            hook.flow.response = http.Response.make(200, b"", {"Content-Length": str(len(view))})

    drive = Drive(Layer(context, HTTPMode.transparent), on_hook)
    drive.feed(events.Start())
    drive.data(context.client, GET)

    assert any(isinstance(command, commands.SendData) and command.data is view for command in drive.seen)


async def test_a_protocol_error_after_the_head_closes_the_connection(context: Context) -> None:
    """The only way to say that a body is short: FIN, and nothing more."""
    drive, http_server = with_server(context, answered())
    drive.hold = True
    drive.data(context.client, GET)
    response = http.Response.make(200, b"", {"Content-Length": "5"})
    list(http_server.handle_event(ResponseHeaders(1, response)))

    error = ResponseProtocolError(1, "broken", ErrorCode.GENERIC_SERVER_ERROR)
    assert kinds(list(http_server.handle_event(error))) == [commands.CloseConnection]


def test_error_codes_have_a_status() -> None:
    assert ErrorCode.GENERIC_SERVER_ERROR.http_status_code() == 502
    assert ErrorCode.CLIENT_DISCONNECTED.http_status_code() is None


def test_heads_are_read_from_lines() -> None:
    request = http1.read_request_head([b"GET /v2/ HTTP/1.1", b"Host: cache", b"Accept: a/b", b"Accept: c/d"])

    assert (request.method, request.path, request.headers.get_all("accept")) == ("GET", "/v2/", ["a/b", "c/d"])
    request.data.path = b"/other"
    request.data.authority = b""
    assert request.path == "/other"


def test_body_readers_are_made_by_length() -> None:
    for size in (None, 0, 5):
        assert callable(make_body_reader(size))


# Fetch flows: requests without a client


async def test_a_connection_takes_one_request_after_another(context: Context) -> None:
    """`replay_flow` is the flow; bodies stream; the second request goes out on the connection of the first."""
    top = HttpLayer(context, HTTPMode.transparent)
    requests = Requests(context.fork())
    top.connections[context.client] = requests

    def on_hook(hook: commands.StartHook) -> None:
        if isinstance(hook, HttpResponseHeadersHook):
            assert hook.flow.response
            hook.flow.response.stream = True

    drive = Drive(top, on_hook)
    drive.feed(events.Start())
    flows = []
    for n in range(2):
        flow = http.HTTPFlow(context.client, context.server)
        flow.request = http.Request.make("GET", "http://up.example/v2/", headers=http.Headers(HOST))
        flow.metadata["cacheyd_fetch"] = True
        flows.append(flow)
        drive.feed(Submit(context.client, flow))
        (upstream,) = drive.dialled
        assert upstream.address == ("up.example", 80)
        assert drive.sent(upstream).count(b"GET /v2/ HTTP/1.1\r\nHost: up.example\r\n") == n + 1

        told = len(requests.told)
        drive.data(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        assert [type(event) for event in requests.told[told:]] == [ResponseHeaders, ResponseData]
        drive.data(upstream, b"def")
        assert [type(event) for event in requests.told[told + 2 :]] == [ResponseData, ResponseEndOfMessage]

    hooked = [c.flow for c in drive.seen if isinstance(c, HttpResponseHook)]
    assert hooked[0] is flows[0]
    assert hooked[1] is flows[1]
    assert requests.stream_id == 3


async def test_a_body_that_ends_early_is_told(context: Context) -> None:
    top = HttpLayer(context, HTTPMode.transparent)
    requests = Requests(context.fork())
    top.connections[context.client] = requests

    def on_hook(hook: commands.StartHook) -> None:
        if isinstance(hook, HttpResponseHeadersHook):
            assert hook.flow.response
            hook.flow.response.stream = True

    drive = Drive(top, on_hook)
    drive.feed(events.Start())
    flow = http.HTTPFlow(context.client, context.server)
    flow.request = http.Request.make("GET", "http://up.example/v2/", headers=http.Headers(HOST))
    drive.feed(Submit(context.client, flow))
    (upstream,) = drive.dialled
    drive.data(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    upstream.state = ConnectionState.CLOSED
    drive.feed(events.ConnectionClosed(upstream))

    assert isinstance(requests.told[-1], ResponseProtocolError)
    assert any(isinstance(command, HttpErrorHook) for command in drive.seen)


def test_a_request_that_is_made_has_no_host_header() -> None:
    assert "host" not in http.Request.make("GET", "http://up.example/").headers


# Layers, hooks, next_layer


async def test_a_blocking_hook_pauses_its_layer_and_keeps_what_comes_meanwhile(context: Context) -> None:
    class Pump(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            if isinstance(event, events.Start):
                for piece in (b"1", b"2"):
                    yield ContractPumpHook([])
                    yield commands.SendData(self.context.client, piece)
            else:
                yield commands.SendData(self.context.client, b"late")

    drive = Drive(Pump(context))
    drive.hold = True
    assert kinds(drive.feed(events.Start())) == [ContractPumpHook]
    assert drive.data(context.client, b"x") == []

    drive.release()
    assert drive.sent(context.client) == b"12late"


async def test_a_hook_is_named_for_its_class_and_awaits_the_addons_method(
    proxyserver: tuple[Any, Any],
) -> None:
    class Addon:
        async def contract_pump(self, data: list[str]) -> None:
            await asyncio.sleep(0)
            data.append("pumped")

    proxyserver[1].master.addons.add(Addon())
    hook = ContractPumpHook([])
    assert (hook.name, hook.blocking) == ("contract_pump", True)

    await proxyserver[1].master.addons.handle_lifecycle(hook)
    assert hook.data == ["pumped"]


async def test_next_layer_takes_the_layer_that_is_set_and_replays_what_came(context: Context) -> None:
    class Child(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            told.append(event)
            yield from ()

    told: list[events.Event] = []

    def on_hook(hook: commands.StartHook) -> None:
        assert isinstance(hook, layer.NextLayerHook)
        assert hook.data.data_client() == b"GET /"  # type: ignore[no-untyped-call]
        assert hook.data.context.client is context.client
        hook.data.layer = Child(context)

    drive = Drive(layer.NextLayer(context), on_hook)
    drive.feed(events.Start())
    drive.data(context.client, b"GET /")
    drive.data(context.client, b"more")

    assert [type(event) for event in told] == [events.Start, events.DataReceived, events.DataReceived]


async def test_a_lazy_reverse_proxy_dials_nobody(context: Context) -> None:
    context.server.address = None
    top = modes.ReverseProxy(context)
    assert context.layers[0] is top
    drive = Drive(top)
    drive.hold = True
    drive.feed(events.Start())
    drive.data(context.client, GET)

    assert kinds(drive.seen) == [layer.NextLayerHook]


def test_client_tls_is_a_layer_that_can_be_told_apart() -> None:
    assert issubclass(ClientTLSLayer, layer.Layer)
    assert TlsStartServerHook.name == "tls_start_server"


def test_pyopenssl_has_what_checks_a_name_in_a_certificate() -> None:
    for name in (
        "SSL_get0_param",
        "X509_VERIFY_PARAM_set_hostflags",
        "X509_VERIFY_PARAM_set1_host",
        "X509_VERIFY_PARAM_set1_ip",
        "X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS",
    ):
        assert hasattr(SSL._lib, name)  # type: ignore[attr-defined]
    assert SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))._ssl is not None


# ConnectionHandler


class Sink(layer.Layer):
    """Sends back whatever object comes to hand."""

    reply: bytes | memoryview = b""

    def _handle_event(self, event: events.Event) -> Generator[commands.Command, Any, None]:
        if isinstance(event, events.DataReceived):
            yield commands.SendData(event.connection, self.reply)  # type: ignore[arg-type]


class Writer:
    """As much of a StreamWriter as the handler uses."""

    def __init__(self) -> None:
        self.written: list[bytes | memoryview] = []
        self.closed = False

    def write(self, data: bytes | memoryview) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    async def drain(self) -> None:
        pass


class Handler(server.ConnectionHandler):
    """A handler that waits where ours waits for the disk."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.layer = Sink(context)
        self.steps: list[str] = []
        self.room = asyncio.Event()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        self.steps.append(hook.name)

    async def drain_writers(self) -> None:
        self.steps.append("drain")
        await self.room.wait()

    def log(self, message: str, level: int = 20, exc_info: Any = None) -> None:
        self.steps.append(f"log {level}")


@pytest.fixture
def handler(context: Context) -> Handler:
    return Handler(context)


async def test_nothing_is_read_while_drain_writers_waits(handler: Handler) -> None:
    reader, writer = asyncio.StreamReader(), Writer()
    handler.transports[handler.client] = server.ConnectionIO(reader=reader, writer=writer)  # type: ignore[arg-type]
    handling = asyncio.create_task(handler.handle_connection(handler.client))
    reader.feed_data(b"a" * 70_000)
    await asyncio.sleep(0.01)
    assert handler.steps == ["drain"]
    assert len(writer.written) == 1

    handler.room.set()
    reader.feed_eof()
    await asyncio.sleep(0.01)
    assert len(writer.written) == 2, "pieces of 64 KiB"
    handling.cancel()
    await asyncio.wait([handling])


async def test_views_reach_the_writer_as_they_are(handler: Handler) -> None:
    writer = Writer()
    handler.transports[handler.client] = server.ConnectionIO(writer=writer)  # type: ignore[arg-type]
    view = memoryview(b"a view")
    assert isinstance(handler.layer, Sink)
    handler.layer.reply = view

    await handler.server_event(events.DataReceived(handler.client, b"x"))

    assert writer.written[0] is view


async def test_an_exception_in_a_layer_is_logged_and_nothing_else(handler: Handler) -> None:
    """So what goes wrong at a seam has to be caught there: the client would hang."""

    class Broken(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            raise ValueError("broken")
            yield

    handler.layer = Broken(handler.layer.context)
    await handler.server_event(events.Start())

    assert handler.steps == ["log 40"]


def test_the_tasks_of_a_connection_are_three() -> None:
    """What one of them raises is lost: ours catch it."""
    source = inspect.getsource(server.ConnectionHandler.server_event)
    tasks = [part.split("(")[0] for part in "".join(source.split()).split("create_task(self.")[1:]]
    assert tasks == ["open_connection", "wakeup", "hook_task"]
    assert source.count("create_task(") == len(tasks)


async def test_commands_for_a_connection_that_is_gone_are_dropped(handler: Handler) -> None:
    await handler.server_event(events.DataReceived(handler.client, b"x"))
    assert handler.steps == []


def test_hooks_about_connections_are_made_of_client_and_server(context: Context) -> None:
    data = server_hooks.ServerConnectionHookData(client=context.client, server=context.server)
    for hook in (
        server_hooks.ServerConnectHook(data),
        server_hooks.ServerConnectedHook(data),
        server_hooks.ServerConnectErrorHook(data),
        server_hooks.ServerDisconnectedHook(data),
    ):
        assert hook.args() == [data]


# Proxyserver and master


async def test_the_writer_of_a_client_is_found_by_its_id(proxyserver: tuple[Any, Any]) -> None:
    addon, tctx = proxyserver
    tctx.configure(addon, listen_host="127.0.0.1", listen_port=0, mode=["reverse:http://cacheyd.invalid"])
    assert await addon.setup_servers()
    (host, port, *_), *_ = addon.listen_addrs()
    _, mine = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(5):
            while not addon.connections:
                await asyncio.sleep(0.001)
        ((key, found),) = addon.connections.items()
        assert key == found.client.id
        writer = found.transports[found.client].writer
        assert isinstance(writer, asyncio.StreamWriter)
        assert not writer.is_closing()
        await writer.drain()
        assert writer.transport.get_write_buffer_size() == 0
        assert callable(writer.transport.abort)
        assert tctx.master.addons.get("proxyserver") is addon
    finally:
        mine.close()
        await mine.wait_closed()
        assert await addon.servers.update([])
        async with asyncio.timeout(5):
            while addon.connections:
                await asyncio.sleep(0.001)


async def test_a_handler_waits_and_watches_with_what_it_is_given_when_its_client_connects(
    proxyserver: tuple[Any, Any],
) -> None:
    addon, tctx = proxyserver
    tctx.configure(addon, listen_host="127.0.0.1", listen_port=0, mode=["reverse:http://cacheyd.invalid"])
    steps: list[str] = []

    class Watchdog:
        def register_activity(self) -> None:
            steps.append("activity")

        def disarm(self) -> Any:
            return contextlib.nullcontext()

    class Ours:
        def client_connected(self, client: connection.Client) -> None:
            found = addon.connections[client.id]
            old, found.timeout_watchdog = found.timeout_watchdog, Watchdog()
            assert old.timeout == tctx.options.tcp_timeout
            assert callable(old.callback)
            assert inspect.iscoroutinefunction(found.drain_writers)
            found.drain_writers = self.drain
            io = found.transports[client]
            assert io.handler is None
            assert io.reader._limit
            assert io.writer.transport.max_size
            assert isinstance(client.proxy_mode, ReverseMode)
            assert client.transport_protocol == "tcp"

        async def drain(self) -> None:
            steps.append("drain")

        def client_disconnected(self, client: connection.Client) -> None:
            steps.append("gone")

        def next_layer(self, nextlayer: layer.NextLayer) -> None:
            nextlayer.layer = Sink(nextlayer.context)

    tctx.master.addons.add(Ours())
    assert await addon.setup_servers()
    (host, port, *_), *_ = addon.listen_addrs()
    _, mine = await asyncio.open_connection(host, port)
    mine.write(b"x")
    async with asyncio.timeout(5):
        while "drain" not in steps:
            await asyncio.sleep(0.001)
    (found,) = addon.connections.values()
    found.transports[found.client].handler.cancel("closed")
    mine.close()
    await mine.wait_closed()
    assert await addon.servers.update([])
    async with asyncio.timeout(5):
        while addon.connections:
            await asyncio.sleep(0.001)
    assert steps[-1] == "gone"
    assert "activity" in steps


async def test_a_port_that_is_taken_is_told_by_its_instance(proxyserver: tuple[Any, Any]) -> None:
    addon, tctx = proxyserver
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    tctx.configure(addon, listen_host="127.0.0.1", listen_port=port, mode=["reverse:http://cacheyd.invalid"])

    assert not await addon.setup_servers()

    (instance,) = addon.servers
    assert isinstance(instance.last_exception, OSError)
    taken.close()
    await taken.wait_closed()
    await addon.servers.update([])


async def test_the_second_formatting_of_each_log_record_can_be_switched_off() -> None:
    master = Master(Options())
    master._legacy_log_events.uninstall()
    assert isinstance(master.should_exit, asyncio.Event)


def test_connections_to_upstreams_are_made_by_a_name_that_can_be_replaced() -> None:
    """`intake` puts its own class there, which sees a head before it is parsed."""
    assert "self.child_layer = Http1Client(self.context)" in inspect.getsource(layers.http.HttpClient)
    assert layers.http.Http1Client is StrictHttp1Client


def test_what_speaks_http_is_found_from_the_connection() -> None:
    """`connection` goes down the layers of an upstream connection, and asks TLS how it ended."""
    source = inspect.getsource(layers.http.HttpLayer)
    assert "self.connections[context.server] = stack[0]" in source
    assert "self.connections.pop" not in source
    assert "child_layer: layer.Layer" in inspect.getsource(layers.http.HttpClient)
    assert issubclass(layers.ServerTLSLayer, TLSLayer)
    assert "self.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN" in inspect.getsource(TLSLayer.receive_close)


def test_a_body_that_ends_with_the_connection_has_a_reader_of_its_own() -> None:
    assert isinstance(make_body_reader(-1), Http10Reader)
    assert not isinstance(make_body_reader(None), Http10Reader)

"""Composition root: options, hooks and lifecycle of the mitmproxy addon."""

import asyncio
import contextlib
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mitmproxy import addonmanager, connection, ctx, exceptions, http, tls
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.mode_specs import ReverseMode

from cacheyd import __version__
from cacheyd.admin import status
from cacheyd.admin.commands import Commands
from cacheyd.admin.server import ControlServer
from cacheyd.admin.transfer import Importer, export_command
from cacheyd.admin.warm import warm_command
from cacheyd.cache.answer import API_VERSION, Answer, error_answer, text_answer
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request, parse_request
from cacheyd.observe.logs import AccessLine, AccessLog
from cacheyd.observe.metrics import CONTENT_TYPE, Metrics
from cacheyd.protocol.errors import Code, RequestError, cache_error, client_error, reason
from cacheyd.protocol.reference import Kind
from cacheyd.protocol.targets import Page, parse_target
from cacheyd.proxy.inbound.head import Head
from cacheyd.proxy.inbound.layers import Layers
from cacheyd.proxy.inbound.link import HEADS, ClientLink, Link
from cacheyd.proxy.inbound.listener import ListenerTls, ListenerTlsLayer
from cacheyd.proxy.inbound.stream import ANSWER, SENT, CacheHttpLayer, Gone, PlainRefused, Pump
from cacheyd.proxy.outbound.connection import FETCH
from cacheyd.proxy.outbound.exchange import without_end
from cacheyd.proxy.outbound.transport import MitmTransport
from cacheyd.proxy.outbound.trust import check_files
from cacheyd.resources import open_files as descriptors
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.load import load
from cacheyd.settings.settings import ConfigError, Settings, not_live
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.store import Store, free_space
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.login_sources import missing
from cacheyd.upstream.origins import Origins

log = logging.getLogger(__name__)

STARTED = "cacheyd_started"
# A connection on which nothing happens is closed after so long (seconds).
IDLE_TIMEOUT = 120
# Requests that come before the store is open wait for it so long (seconds): a rolling start refuses nobody.
START_PATIENCE = 5.0
# The first byte of a TLS connection (RFC 8446 section 5.1: handshake).
TLS_RECORD = b"\x16"
# A process that is ending has `grace` and so much more to let go of the directory (seconds).
LOCK_PATIENCE = 10.0
# How often the file behind a reply is looked for (seconds): the directory may be wiped.
LOOK_EVERY = 0.05
# What the replies take that are kept for `quick`, each with its request, and the largest one (bytes). Python's own part of
# an entry is counted, too.
QUICK_TOTAL = 16 << 20
QUICK_BYTES = 16 << 10
QUICK_ENTRY = 2 << 10


class RegistryCache:
    """The addon. `load` reads the settings, at the start and on SIGHUP; `access_log` is where `cacheyd serve` logs to."""

    name = "registrycache"

    def __init__(
        self,
        load: Callable[[], Settings] = load,
        access_log: AccessLog | None = None,
        *,
        daemon: bool = False,
        patience: float | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_settings = load
        self._access_log = access_log
        self._daemon = daemon
        self._patience = patience
        self.settings = Settings()
        self._tls: ListenerTls | None = None
        self._ready = False
        # Why it is not ready.
        self._unready = "cacheyd is starting"
        # The start ended with an error.
        self.failed = False
        self._stopping = False
        self._listening = True
        self._hurry = False
        self._active = 0
        # The clock is what clients and people are shown; how long things hold is counted by one that nobody can set.
        self._clock = clock
        self._monotonic = monotonic
        self._started = monotonic()
        self._layers = Layers(monotonic)
        self._quick: dict[bytes, _Quick] = {}
        self._quick_size = 0
        # When the answer that is offered for `quick` was made.
        self._hit_at = 0.0
        # Clients by their id, until their sockets are closed: later than mitmproxy forgets them.
        self._links: dict[str, ClientLink] = {}
        self._heads = Budget(HEADS)
        # Set when the store is open, or it is known that it will not be soon.
        self._opened = asyncio.Event()
        self._early = 0
        self._inspect = False
        self._descriptors = connections_for(descriptors.raise_limit())

    # Lifecycle

    def load(self, loader: addonmanager.Loader) -> None:
        """Registers the addon's own option and sets those of mitmproxy that it depends on."""
        loader.add_option("cacheyd_inspect", bool, False, "Run hits as flows, too, so that other addons see them (slower).")
        try:
            self.settings = self._read_settings()
            if self.settings.tls_cert is not None:
                self._tls = ListenerTls(self.settings)
        except ConfigError as error:
            if self._daemon:
                raise
            # mitmproxy passes over what a script raises here, but ends its start after an error in the log.
            log.error("%s", error)
            raise exceptions.OptionsError(str(error)) from None
        # lazy: nothing is to be dialled when a client connects; the reverse mode's own target is never used.
        ctx.options.update(
            connection_strategy="lazy", keep_host_header=True, showhost=True, http2=False, tcp_timeout=IDLE_TIMEOUT
        )

    def _read_settings(self) -> Settings:
        settings = self._load_settings()
        check_files(settings)
        for line in missing(settings):
            log.warning("%s", line)
        return settings

    async def running(self) -> None:
        """Builds what needs the event loop, and opens the store."""
        settings = self.settings
        for warning in settings.warnings:
            log.warning("%s", warning)
        self.metrics = Metrics(settings.registries)
        self.live = Live(settings)
        self.store = Store(settings.cache_dir, self.live, events=self.metrics)
        self.transport = MitmTransport(ctx.options, settings)
        self.authorizer = Authorizer(self.live)
        self.origins = Origins(self.transport, self.authorizer, self.live, self.metrics)
        self.fetcher = Fetcher(
            self.store,
            self.origins,
            settings,
            budget=self.transport.budget,
            events=self.metrics,
        )
        self.cache = Cache(
            self.store,
            self.fetcher,
            self.live,
            events=self.metrics,
            policy=self.origins,
        )
        self._watch()
        self._inspect = ctx.options.cacheyd_inspect or ctx.master.addons.get("view") is not None
        if self._access_log is None:
            self._access_log = AccessLog(None, as_json=False)
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        try:
            patience = settings.grace + LOCK_PATIENCE if self._patience is None else self._patience
            await self.store.start(wait=patience, give_up=ctx.master.should_exit.is_set, on_busy=self._wait_for_other)
        except DirectoryInUse as error:
            self._opened.set()
            if not ctx.master.should_exit.is_set():
                log.error("%s", error)
                self.failed = True
            ctx.master.shutdown()
            return
        commands = Commands(
            self.store,
            [warm_command(self.cache, self.transport), export_command(self.store), *Importer(self.store).commands()],
            running=self._counters,
        )
        self.control = ControlServer(settings.cache_dir, commands.run, self.store.lock.is_held)
        await self.control.start()
        self._ready = True
        self._opened.set()
        if self._descriptors < settings.max_connections:
            log.warning("no more than %d connections: this process may not open more files", self._descriptors)
        trouble = self.store.trouble
        scheme = "https" if self._tls is not None else "http"
        log.info(
            "cacheyd %s is listening on %s (%s); cache in %s (%s)",
            __version__,
            self._address(),
            scheme,
            settings.cache_dir,
            f"not writable: {status.kept_nothing(trouble)}" if trouble else f"{free_space(settings.cache_dir)} free",
        )

    def _wait_for_other(self) -> None:
        """Another process has the directory, and is waited for: clients are told so."""
        self._unready = "another process uses the cache directory; cacheyd waits for it to end"
        self._opened.set()

    def reload(self) -> None:
        """SIGHUP: takes new settings over where that can be done while running; a wrong file changes nothing."""
        try:
            settings = self._read_settings()
        except ConfigError as error:
            log.error("settings not reloaded: %s", error)
            return
        if fixed := not_live(self.settings, settings):
            log.warning("these settings take a restart: %s", ", ".join(fixed))
            settings = replace(settings, **{name: getattr(self.settings, name) for name in fixed})
        for warning in settings.warnings:
            if warning not in self.settings.warnings:
                log.warning("%s", warning)
        self.settings = settings
        self.fetcher.settings = settings
        self.transport.reload(settings)
        # What was decided by the old settings, or learned from whom they named, counts no more.
        self.live.change(settings)
        self.fetcher.forget()
        self.metrics.configure(settings.registries)
        self._quick.clear()
        self._quick_size = 0
        if self._daemon:
            logging.getLogger("cacheyd").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        log.info("settings reloaded")

    def _address(self) -> str:
        addresses = ctx.master.addons.get("proxyserver").listen_addrs()
        names = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in addresses]
        return " and ".join(dict.fromkeys(names))

    def _watch(self) -> None:
        store, metrics = self.store, self.metrics
        metrics.watch("cacheyd_flights", "Objects being fetched", lambda: float(len(self.fetcher.flights)))
        metrics.watch("cacheyd_waiting", "Clients that wait for upstreams", lambda: float(self.cache.waiting))
        metrics.watch(
            "cacheyd_upstreams_dead", "Origins that are left alone now", lambda: float(len(self.origins.breaker.dead()))
        )
        metrics.watch("cacheyd_tags_held", "Tags that are held now", lambda: float(self.cache.cooldown.count()))
        metrics.watch("cacheyd_store_bytes", "Bytes stored", lambda: float(store.size))
        metrics.watch("cacheyd_store_free_bytes", "Bytes free below CACHE_DIR", lambda: float(store.blobs.free() or 0))
        metrics.watch("cacheyd_store_writable", "0 while the disk refuses writes", lambda: float(store.health.takes_writes))
        metrics.watch("cacheyd_store_full", "1 while there is no room and nothing may go", lambda: float(store.room.full))
        metrics.watch("cacheyd_store_partial_bytes", "Bytes in files being fetched", lambda: float(store.partial_bytes))
        metrics.watch_total("cacheyd_scrub_bytes", "Bytes checked in the background", lambda: store.upkeep.scrubbed)
        metrics.watch_total(
            "cacheyd_scrub_dropped", "Stored objects that did not have their digest any more", lambda: store.upkeep.dropped
        )
        metrics.watch_total("cacheyd_store_write_errors", "Writes that the disk refused", lambda: store.write_errors)
        metrics.watch_kinds("cacheyd_store_objects", "Objects stored", lambda: {str(k): n for k, n in store.counts.items()})

    def _counters(self) -> dict[str, object]:
        """What happened since the start, for `cacheyd stats`."""
        hits, misses = self.metrics.totals()
        return {
            "version": __version__, "uptime": self._monotonic() - self._started, "hits": hits, "misses": misses,
            "hit_ratio": hits / (hits + misses) if hits + misses else None, "bytes": self.metrics.sent(),
            "evictions": self.metrics.evictions(), "flights": len(self.fetcher.flights), "waiting": self.cache.waiting,
        }  # fmt: skip

    async def done(self) -> None:
        """Stops gracefully: no new connections but for layers that are read in pieces, running transfers get `grace`
        seconds, partials stay for resume.
        """
        if not self._ready:
            return
        self._stopping = True
        deadline = time.monotonic() + self.settings.grace
        if layers := self._layers.stop():
            log.info(
                "stopping: still listening for %d layers that are read in pieces, %g s at most", layers, self.settings.grace
            )
        while self._layers.wanted and time.monotonic() < deadline and not self._hurry:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._listening = False
        await ctx.master.addons.get("proxyserver").servers.update([])
        if self._active:
            log.info("stopping: %d transfers have %g s to end", self._active, self.settings.grace)
        while self._active and time.monotonic() < deadline and not self._hurry:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # A counter on the hot path is cheaper than an event.
        self._ready = False
        await self.fetcher.stop()
        await self.authorizer.close()
        self.transport.close()
        await self.control.close()
        await self.store.stop()
        if self._access_log is not None:
            self._access_log.close()
        log.info("stopped%s", f"; {self._active} transfers were cut off" if self._active else "")

    def hurry(self) -> None:
        """Called while stopping: running transfers get no more time."""
        self._hurry = self._stopping

    # Seams

    def client_connected(self, client: connection.Client) -> None:
        """Closes a connection that is one too many: its client goes on elsewhere at once."""
        # Only listeners of the reverse mode, and TCP: other modes of the same mitmdump are none of ours.
        if not isinstance(client.proxy_mode, ReverseMode) or client.transport_protocol != "tcp":
            return
        handler = ctx.master.addons.get("proxyserver").connections[client.id]
        if handler.transports[client].writer.is_closing():
            return
        if len(self._links) >= min(self.settings.max_connections, self._descriptors):
            client.error = "too many connections"
            return
        link = ClientLink(handler, lambda: self.settings, lambda: self._links.pop(client.id, None), self._heads)
        self._links[client.id] = link
        if self._tls is not None:
            link.expect_handshake()

    def client_disconnected(self, client: connection.Client) -> None:
        """The connection is over for mitmproxy; its socket is closed once the client has taken the rest."""
        if (link := self._links.get(client.id)) is not None:
            link.close()

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Puts our HTTP layer where mitmproxy would put its own: on plain connections, and inside client TLS."""
        context = nextlayer.context
        top = context.layers[-1]
        if not isinstance(context.layers[0], modes.ReverseProxy):
            return
        link = self._links.get(context.client.id)
        if link is None:
            # It has left already.
            nextlayer.layer = Gone(context)
            return
        data = nextlayer.data_client()
        if isinstance(top, ClientTLSLayer):
            nextlayer.layer = CacheHttpLayer(context, self, link)
        elif not isinstance(top, modes.ReverseProxy) or not data:
            return
        elif self._tls is not None and data[:1] != TLS_RECORD:
            nextlayer.layer = PlainRefused(context)
        elif self._tls is not None:
            outer = nextlayer.layer = ListenerTlsLayer(context)
            outer.child_layer = CacheHttpLayer(context, self, link)
        elif self._daemon or data[:1] != TLS_RECORD:
            # TLS where none is configured gets a plain refusal; mitmdump and mitmweb have certificates of their own.
            nextlayer.layer = CacheHttpLayer(context, self, link)

    def tls_start_client(self, data: tls.TlsData) -> None:
        """The listener's certificate."""
        if self._tls is not None:
            data.ssl_conn = self._tls.connection()

    def tls_established_client(self, data: tls.TlsData) -> None:
        """The handshake was in time."""
        if (link := self._links.get(data.context.client.id)) is not None:
            link.established()

    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Said here in one line; mitmproxy's own speak of its options."""
        peer = data.conn.peername
        log.info("TLS with %s failed: %s", peer[0] if peer else "a client", data.conn.error)

    async def cacheyd_pump(self, pump: Pump) -> None:
        """Each piece of each body that cacheyd produces."""
        await pump.advance(self._links.get(pump.client.id), self.transport.budget)

    async def cacheyd_turn(self, link: Link) -> None:
        """Between pipelined hits."""
        await link.turn()

    # Hits, before there is a flow

    def closing(self, answer: Answer) -> bool:
        """Whether a connection ends with this response."""
        return self._stopping and not (self._listening and self._layers.keeps(answer))

    def quick(self, raw: bytes, client: connection.Client) -> bytes | None:
        """The response to the same head within the same second, if the object is still there: Age and Date are right."""
        known = self._quick.get(raw)
        if known is None:
            return None
        now = self._monotonic()
        if now >= known.until or not 0 <= self._clock() - known.second < 1 or self._stopping:
            self.store.touch(known.digest, known.uses)
            self._forget(raw)
            return None
        known.uses += 1
        if now >= known.look_again:
            if self.store.find(known.digest) is None:
                self._forget(raw)
                return None
            self.store.touch(known.digest, known.uses)
            known.look_again, known.uses = now + LOOK_EVERY, 0
        self._account(known.method, known.answer, len(known.answer.body), now, client)
        return known.reply

    def _forget(self, raw: bytes) -> None:
        if (known := self._quick.pop(raw, None)) is not None:
            self._quick_size -= len(raw) + len(known.reply) + QUICK_ENTRY

    def hit(self, head: Head) -> Answer | None:
        """The answer from disk, None if the request has to become a flow."""
        if self._inspect or not self._ready:
            return None
        try:
            ref = parse_target(head.target, self.settings.default_registry)
        except RequestError:
            return None
        if isinstance(ref, Page):
            return None
        self._hit_at = self._clock()
        request = parse_request(head.method, ref, head.headers)
        if self._stopping and self._is_new_piece(request):
            return None
        answer = self.cache.hit(request)
        if answer is not None and answer.source is not None:
            self._active += 1
            self._layers.begin(answer)
        return answer

    def _is_new_piece(self, request: Request) -> bool:
        """Whether the first piece of a layer is asked for, while stopping: its client goes elsewhere with that one only."""
        return request.range is not None and request.ref.kind is Kind.BLOB and not self._layers.goes_on(request.ref.digest)

    def sent(
        self, client: connection.Client, head: Head, answer: Answer, sent: int, started: float, error: str | None
    ) -> None:
        """A hit was answered, or broke off after `sent` bytes of its body."""
        if answer.source is not None:
            self._active -= 1
            self._layers.end(answer)
        self._account(head.method, answer, sent, started, client, error or "")

    def remember(self, raw: bytes, head: Head, answer: Answer, reply: bytes) -> None:
        """Keeps a small whole response for `quick`; never one to a head with credentials."""
        if answer.stored is None or answer.status != 200 or len(raw) + len(reply) > QUICK_BYTES or head.get("authorization"):
            return
        if answer.ref is None or self.settings.registry(answer.ref.registry).access != "open":
            return
        now, clock = self._monotonic(), self._clock()
        if int(clock) != int(self._hit_at):
            return
        self._forget(raw)
        self._quick_size += len(raw) + len(reply) + QUICK_ENTRY
        while self._quick_size > QUICK_TOTAL:
            self._forget(next(iter(self._quick)))
        # To the end of the second of the clock, however the clock is set meanwhile.
        until, second = now + 1.0 - clock % 1.0, int(clock)
        self._quick[raw] = _Quick(until, second, now + LOOK_EVERY, reply, answer.stored.digest, head.method, answer)

    # Flows

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answers a client's flow. The answer's body, if it has one to come, is pumped by the stream."""
        if flow.metadata.get(FETCH):
            return
        flow.metadata[STARTED] = time.monotonic()
        # For the inspector: where the request really came to, and not the reverse mode's target.
        flow.request.data.port = flow.client_conn.sockname[1]
        flow.request.data.scheme = b"https" if flow.client_conn.tls else b"http"
        self._active += 1
        answer = await self._answer(flow.request, lambda: not flow.client_conn.connected)
        self._layers.begin(answer)
        flow.metadata[ANSWER] = answer
        flow.response = self._response(flow.request, answer)

    async def _answer(self, request: http.Request, gone: Callable[[], bool]) -> Answer:
        try:
            if not self._ready and not request.path.startswith("/healthz"):
                await self._open(request.path)
            if request.method not in ("GET", "HEAD"):
                allow = (("Allow", "GET, HEAD"),)
                message = "cacheyd takes no uploads: push to the registry itself"
                raise client_error(405, Code.UNSUPPORTED, message, headers=allow)
            target = parse_target(request.path, self.settings.default_registry)
            if isinstance(target, Page):
                return self._page(target, request)
            # A character for each byte, as in a Head.
            fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.fields)
            asked = parse_request(request.method, target, fields)
            if self._stopping and self._is_new_piece(asked):
                raise cache_error("cacheyd is stopping", 503)
            return await self.cache.answer(asked, gone)
        except RequestError as error:
            return error_answer(error)
        except Exception:
            log.exception("a request failed")
            return error_answer(cache_error("cacheyd failed to answer"))

    async def _open(self, path: str) -> None:
        """Waits until the store is open, unless that takes longer than a start; probes are told at once."""
        probe = path.startswith("/readyz")
        if not (self._opened.is_set() or self._stopping or probe) and self._early < self.settings.max_waiting:
            self._early += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_PATIENCE):
                    await self._opened.wait()
            self._early -= 1
        if not self._ready:
            raise cache_error(self._unready, 503)

    def _page(self, page: Page, request: http.Request) -> Answer:
        match page.path:
            case "/v2/":
                return text_answer(200, b"{}", "application/json").with_headers(API_VERSION)
            case "/metrics":
                return text_answer(200, self.metrics.render(), CONTENT_TYPE)
            case "/healthz":
                return text_answer(200, b"ok\n")
            case "/readyz":
                return self._readiness()
            case _:
                if "text/html" in request.headers.get("accept", ""):
                    return text_answer(200, status.render(self._status()), "text/html; charset=utf-8")
                return text_answer(200, b"cacheyd\n")

    def _readiness(self) -> Answer:
        """Also while nothing can be kept: requests pass through, and without any replica they would not."""
        if not self._ready or self._stopping:
            return text_answer(503, b"not ready\n")
        trouble = self.store.trouble
        if not trouble:
            return text_answer(200, b"ready\n")
        shown = status.kept_nothing(trouble)
        return text_answer(200, f"ready; {shown}\n".encode()).with_headers(("Warning", f'199 cacheyd "{shown}"'))

    def _status(self) -> status.Status:
        store = self.store
        hits, misses = self.metrics.totals()
        started = self._clock() - (self._monotonic() - self._started)
        return status.Status(
            started, hits, misses, store.counts[Kind.MANIFEST], store.counts[Kind.BLOB], store.size,
            len(self.fetcher.flights), str(self.settings.cache_dir), store.blobs.free(),
            tuple(sorted(self.settings.registries)), store.trouble,
        )  # fmt: skip

    def _response(self, request: http.Request, answer: Answer) -> http.Response:
        fields = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in answer.headers]
        if answer.length is not None:
            fields.append((b"Content-Length", b"%d" % answer.length))
        elif answer.source is not None and request.http_version == "HTTP/1.1":
            fields.append((b"Transfer-Encoding", b"chunked"))
        tokens = {token.strip().lower() for token in request.headers.get("connection", "").split(",")}
        http10 = request.http_version == "HTTP/1.0"
        unframed = answer.source is not None and answer.length is None and http10
        if self.closing(answer) or unframed or "close" in tokens or (http10 and "keep-alive" not in tokens):
            fields.append((b"Connection", b"close"))
        elif http10:
            fields.append((b"Connection", b"keep-alive"))
        head_only = request.method == "HEAD" or answer.source is not None
        now = time.time()
        response = http.Response(
            b"HTTP/1.1", answer.status, reason(answer.status).encode(), http.Headers(fields),
            b"" if head_only else bytes(answer.body), http.Headers(), now, now,
        )  # fmt: skip
        return without_end(response)

    def response(self, flow: http.HTTPFlow) -> None:
        """The response is complete."""
        self._finish(flow, "")

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left, or the body could not go on."""
        self._finish(flow, flow.error.msg if flow.error else "error")

    def _finish(self, flow: http.HTTPFlow, note: str) -> None:
        started = flow.metadata.pop(STARTED, None)
        if started is None:
            return
        self._active -= 1
        answer: Answer | None = flow.metadata.get(ANSWER)
        if answer is None:
            return
        sent = flow.metadata.get(SENT, 0)
        if answer.source is not None:
            self._layers.end(answer)
            answer.source.close()
        elif flow.request.method != "HEAD":
            sent = len(answer.body)
        self._account(flow.request.method, answer, sent, started, flow.client_conn, note)
        # The flow may be kept for inspection; what it holds of the store is not.
        flow.metadata[ANSWER] = answer.without_source()

    def _account(
        self, method: str, answer: Answer, sent: int, started: float, client: connection.Client, note: str = ""
    ) -> None:
        """Counts and logs one answered request about a registry; pages and probes are neither."""
        ref = answer.ref
        if answer.page:
            return
        kind, registry = (ref.kind, ref.registry) if ref is not None else ("", "")
        self.metrics.request(registry, kind, answer.result, sent)
        assert self._access_log is not None
        peer = client.peername
        self._access_log.write(
            AccessLine(
                self._clock(),
                method,
                registry,
                ref.repository if ref else "",
                (ref.reference or str(ref.kind)) if ref else "",
                answer.status,
                sent,
                answer.result,
                (self._monotonic() - started) * 1000,
                f"{peer[0]}:{peer[1]}" if peer else "",
                note or answer.note,
            )
        )


@dataclass(slots=True)
class _Quick:
    """A whole response that holds to the end of a second of the clock, while the object's file is there."""

    until: float
    second: int
    look_again: float
    reply: bytes
    digest: str
    method: str
    answer: Answer
    uses: int = 0


def connections_for(limit: int) -> int:
    """How many clients that many descriptors are enough for.

    The other half is for files and upstreams, and for bursts: asyncio accepts its whole backlog before the first of them
    can be closed again. Without a descriptor a client cannot even be refused, and a mirror that hangs is worse than none.
    """
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(4, limit // 2 - 32)

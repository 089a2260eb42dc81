"""The mitmproxy addon: its option and its hooks. The hooks call the service and the parts of `inbound`."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import addonmanager, connection, ctx, exceptions, http, tls
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.mode_specs import ReverseMode

from cacheyd import __version__
from cacheyd.admin import status
from cacheyd.observe.logs import AccessLog
from cacheyd.proxy.inbound.clients import Clients
from cacheyd.proxy.inbound.flows import Flows
from cacheyd.proxy.inbound.listener import ListenerTls, why_failed
from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.proxy.inbound.replies import Replies
from cacheyd.proxy.inbound.stream import Pump
from cacheyd.proxy.outbound.connection import FETCH
from cacheyd.proxy.outbound.transport import MitmTransport
from cacheyd.proxy.outbound.trust import check_files
from cacheyd.service.service import Service
from cacheyd.settings.live import Live
from cacheyd.settings.load import load
from cacheyd.settings.settings import ConfigError, Settings
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.store import free_space
from cacheyd.upstream.login_sources import missing

log = logging.getLogger(__name__)

# An idle connection is closed after this time (seconds).
IDLE_TIMEOUT = 120


@dataclass(frozen=True, slots=True)
class Loaded:
    """The parts that exist after the settings were read."""

    service: Service
    replies: Replies
    flows: Flows
    clients: Clients


class RegistryCache:
    """The addon. `load` reads the settings, at the start and on SIGHUP. `cacheyd serve` gives its `access_log`."""

    name = "registrycache"

    def __init__(
        self,
        load: Callable[[], Settings] = load,
        access_log: AccessLog | None = None,
        *,
        daemon: bool = False,
        patience: float | None = None,
    ) -> None:
        self._load_settings = load
        self._access_log = access_log
        self._daemon = daemon
        self._patience = patience
        # True if the start ended with an error.
        self.failed = False
        # The hook `load` makes this: mitmproxy has no options before. None if the settings cannot be used.
        self._loaded: Loaded | None = None

    @property
    def _all(self) -> Loaded:
        """The parts, for the hooks that mitmproxy calls only after `load`."""
        assert self._loaded is not None
        return self._loaded

    # Lifecycle

    def load(self, loader: addonmanager.Loader) -> None:
        """Registers the addon's own option, and sets the options of mitmproxy that the addon needs."""
        loader.add_option("cacheyd_inspect", bool, False, "Run hits as flows, too, so that other addons see them (slower).")
        try:
            self._loaded = self._make(self._read_settings())
        except ConfigError as error:
            if self._daemon:
                raise
            # mitmproxy ignores an exception that a script raises here, but an error in the log ends its start.
            log.error("%s", error)
            raise exceptions.OptionsError(str(error)) from None
        # lazy: mitmproxy must not connect to a server when a client connects. The target of the reverse mode is never used.
        ctx.options.update(
            connection_strategy="lazy", keep_host_header=True, showhost=True, http2=False, tcp_timeout=IDLE_TIMEOUT
        )

    def _read_settings(self) -> Settings:
        settings = self._load_settings()
        check_files(settings)
        for line in missing(settings):
            log.warning("%s", line)
        return settings

    def _make(self, settings: Settings) -> Loaded:
        """Makes all parts. Raises ConfigError if the listener's certificate cannot be used."""
        live = Live(settings)
        certificate = ListenerTls(settings) if settings.tls_cert is not None else None
        access_log = self._access_log or AccessLog(None, as_json=False)
        service = Service(live, MitmTransport(ctx.options, live), access_log)
        replies = Replies(service)
        clients = Clients(live, replies, certificate, own_tls=not self._daemon)
        return Loaded(service, replies, Flows(service), clients)

    async def running(self) -> None:
        """Starts the service: opens the store, and logs where cacheyd listens. Ends mitmproxy if the directory is in use."""
        service, settings = self._all.service, self._all.service.live.settings
        for warning in settings.warnings:
            log.warning("%s", warning)
        if ctx.options.cacheyd_inspect or ctx.master.addons.get("view") is not None:
            self._all.replies.inspect()
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        give_up = ctx.master.should_exit.is_set
        try:
            await service.start(patience=self._patience, give_up=give_up)
        except DirectoryInUse as error:
            if not give_up():
                log.error("%s", error)
                self.failed = True
            ctx.master.shutdown()
            return
        self._all.clients.warn()
        trouble = service.components.store.trouble
        scheme = "https" if self._all.clients.tls is not None else "http"
        log.info(
            "cacheyd %s is listening on %s (%s); cache in %s (%s)",
            __version__,
            _address(),
            scheme,
            settings.cache_dir,
            f"not writable: {status.kept_nothing(trouble)}" if trouble else f"{free_space(settings.cache_dir)} free",
        )

    def reload(self) -> None:
        """On SIGHUP, reads the settings anew and puts them in force. A wrong file changes nothing."""
        try:
            settings = self._read_settings()
        except ConfigError as error:
            log.error("settings not reloaded: %s", error)
            return
        self._all.service.reload(settings)
        if self._daemon:
            logging.getLogger("cacheyd").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        log.info("settings reloaded")

    async def done(self) -> None:
        """Stops the service gracefully, see `Service.stop`."""
        if self._loaded is not None:
            await self._loaded.service.stop(lambda: ctx.master.addons.get("proxyserver").servers.update([]))

    def cut_short(self) -> None:
        """Gives running transfers no more time, if the service is stopping."""
        if self._loaded is not None:
            self._loaded.service.transfers.cut_short()

    # Clients

    def client_connected(self, client: connection.Client) -> None:
        """Takes a new client of the reverse mode over TCP. cacheyd ignores clients of other modes of the same mitmdump."""
        if not isinstance(client.proxy_mode, ReverseMode) or client.transport_protocol != "tcp":
            return
        handler = ctx.master.addons.get("proxyserver").connections[client.id]
        if not handler.transports[client].writer.is_closing():
            self._all.clients.connected(client, handler)

    def client_disconnected(self, client: connection.Client) -> None:
        """Closes a client's link after mitmproxy ended the connection. The socket closes when the client has read the rest."""
        if (link := self._all.clients.get(client.id)) is not None:
            link.close()

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Puts cacheyd's HTTP layer where mitmproxy would put its own."""
        if isinstance(nextlayer.context.layers[0], modes.ReverseProxy):
            ours = self._all.clients.layer_for(nextlayer)
            if ours is not None:
                nextlayer.layer = ours  # The hook exists for this assignment.

    def tls_start_client(self, data: tls.TlsData) -> None:
        """Gives mitmproxy a TLS connection with the listener's certificate."""
        if (ours := self._all.clients.tls_connection(data.context.client.id)) is not None:
            data.ssl_conn = ours  # The hook exists for this assignment.

    def tls_established_client(self, data: tls.TlsData) -> None:
        """Ends the deadline of the client's TLS handshake."""
        if (link := self._all.clients.get(data.context.client.id)) is not None:
            link.established()

    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Logs the failed handshake in one line. mitmproxy's own log lines about it give advice on mitmproxy's options."""
        peer = data.conn.peername
        log.info("TLS with %s failed: %s", peer[0] if peer else "a client", why_failed(data.conn.error or ""))

    async def cacheyd_pump(self, pump: Pump) -> None:
        """Waits for the next piece of a body that cacheyd produces."""
        link = self._all.clients.get(pump.client.id)
        await pump.advance(link.outgoing if link is not None else None, self._all.service.transport.budget)

    async def cacheyd_turn(self, outgoing: Outgoing) -> None:
        """Waits between pipelined hits of one connection."""
        await outgoing.turn()

    # Flows

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answers a client's flow. Leaves flows of fetches alone."""
        if not flow.metadata.get(FETCH):
            await self._all.flows.answer(flow)

    def response(self, flow: http.HTTPFlow) -> None:
        """Finishes a flow whose response is complete."""
        self._all.flows.finish(flow, "")

    def error(self, flow: http.HTTPFlow) -> None:
        """Finishes a flow whose client left, or whose body broke off."""
        self._all.flows.finish(flow, flow.error.msg if flow.error else "error")


def _address() -> str:
    addresses = ctx.master.addons.get("proxyserver").listen_addrs()
    names = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in addresses]
    return " and ".join(dict.fromkeys(names))

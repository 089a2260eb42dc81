"""`cacheyd serve`: mitmproxy with only the addons that a cache needs."""

import logging
from collections.abc import Callable

from mitmproxy import ctx, master, options
from mitmproxy.addons import next_layer, proxyserver

from cacheyd.observe.logs import AccessLog
from cacheyd.proxy.addon import RegistryCache
from cacheyd.settings.settings import Settings

log = logging.getLogger(__name__)

# mitmproxy's reverse mode needs a target. No request goes there: each request goes to the registry that the request names.
MODE = "reverse:http://cacheyd.invalid"


class _Listener(proxyserver.Proxyserver):
    """Ends the start with one line in the log if the process cannot listen."""

    name = "proxyserver"
    listening = False

    async def setup_servers(self) -> bool:
        """Binds the port; if this fails, logs why and asks the master to exit."""
        self.listening = await super().setup_servers()
        if not self.listening:
            for instance in self.servers:
                error = instance.last_exception
                why = error.strerror.partition("\n")[0] if isinstance(error, OSError) and error.strerror else error
                log.error("cannot listen on %s:%s: %s", ctx.options.listen_host or "*", ctx.options.listen_port, why)
            ctx.master.should_exit.set()
        return self.listening


class Daemon:
    """One master with one listener."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        access_log: AccessLog | None,
        *,
        patience: float | None = None,
    ) -> None:
        opts = options.Options(listen_host=settings.host, listen_port=settings.port, mode=[MODE])
        self._master = master.Master(opts)
        # This handler would format each log record a second time, for addons that do not exist here.
        self._master._legacy_log_events.uninstall()
        # This logger repeats the error that `_Listener` logs, with advice on mitmproxy's flags.
        logging.getLogger("mitmproxy.addons.proxyserver").setLevel(logging.CRITICAL)
        # This logger writes bytes of the client into its lines about failed handshakes; the addon's lines have no such bytes.
        logging.getLogger("mitmproxy.proxy.server").setLevel(logging.ERROR)
        self._listener = _Listener()
        self._addon = RegistryCache(load, access_log, daemon=True, patience=patience)
        self._master.addons.add(self._listener, self._addon, next_layer.NextLayer())

    def stop(self) -> None:
        """Begins the graceful stop. A second call gives running transfers no more time."""
        self._addon.cut_short()
        self._master.shutdown()

    async def run(self) -> int:
        """Serves until `stop` is called. Returns the exit code."""
        await self._master.run()
        return 0 if self._listener.listening and not self._addon.failed else 1

"""The cache as a whole: builds it from settings and a transport, starts, reloads and stops it. Does not use mitmproxy."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from cacheyd.admin.command import Command
from cacheyd.admin.commands import Commands
from cacheyd.admin.server import ControlServer
from cacheyd.admin.status import Reporter
from cacheyd.admin.transfer import Importer, export_command
from cacheyd.admin.warm import warm_command
from cacheyd.observe.logs import AccessLog
from cacheyd.service.accounting import Accounting
from cacheyd.service.answering import Answering
from cacheyd.service.components import Components, ServiceTransport, assemble
from cacheyd.service.pages import Pages
from cacheyd.service.readiness import Readiness
from cacheyd.service.transfers import Transfers
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings, not_live
from cacheyd.store.lock import DirectoryInUse

log = logging.getLogger(__name__)

# How long a start waits, beyond `grace`, until the process before it lets go of the cache directory (seconds).
LOCK_PATIENCE = 10.0


class Service:
    """One cache. `answering` answers requests. The code that sends an answer reports it to `transfers` and `accounting`."""

    def __init__(
        self,
        settings: Settings | Live,
        transport: ServiceTransport,
        access_log: AccessLog,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.live = live = Live.of(settings)
        self.transport = transport
        self.components = parts = assemble(live, transport, clock=clock, monotonic=monotonic)
        self.accounting = Accounting(parts.metrics, access_log, clock=clock, monotonic=monotonic)
        self.transfers = Transfers(monotonic)
        self.readiness = Readiness()
        self.reporter = Reporter(
            live, parts.metrics, parts.store, parts.origins, parts.fetcher, parts.cache, monotonic=monotonic
        )
        parts.metrics.watch(self.reporter.report)
        pages = Pages(parts.store, parts.metrics, self.reporter, self.readiness, self.transfers)
        self.answering = Answering(live, parts.cache, pages, self.readiness, self.transfers)
        run = _commands(parts, transport, self.reporter).run
        self._control = ControlServer(live.settings.cache_dir, run, parts.store.upkeep.watch.lock.is_held)

    async def start(self, *, patience: float | None = None, give_up: Callable[[], bool] = lambda: False) -> None:
        """Opens the store and the control socket, then answers the requests that already wait.

        If another process has the cache directory, this waits for it: `patience` seconds (None: `grace` and LOCK_PATIENCE),
        or until `give_up` returns true. Raises DirectoryInUse.
        """
        store, settings = self.components.store, self.live.settings
        wait = settings.grace + LOCK_PATIENCE if patience is None else patience
        try:
            await store.start(wait=wait, give_up=give_up, on_busy=self.readiness.blocked)
        except DirectoryInUse:
            self.readiness.failed()
            raise
        await self._control.start()
        self.readiness.open()

    def reload(self, settings: Settings) -> None:
        """Puts new settings in force. Keeps the old values of settings that take a restart, and logs a warning about them."""
        old = self.live.settings
        if fixed := not_live(old, settings):
            log.warning("these settings take a restart: %s", ", ".join(fixed))
            settings = replace(settings, **{name: getattr(old, name) for name in fixed})
        for warning in settings.warnings:
            if warning not in old.warnings:
                log.warning("%s", warning)
        self.live.change(settings)

    async def stop(self, stop_listening: Callable[[], Awaitable[object]]) -> None:
        """Stops gracefully: accepts new connections only for layers that clients read in pieces, gives running transfers
        `grace` seconds, keeps partials for a resume. Calls `stop_listening` when no new connection is needed.
        """
        if not self.readiness.ready:
            return
        parts = self.components
        await self.transfers.wind_down(self.live.settings.grace, stop_listening)
        self.readiness.close()
        await parts.fetcher.stop()
        await parts.authorizer.close()
        self.transport.close()
        await self._control.close()
        await parts.store.stop()
        self.accounting.close()
        active = self.transfers.active
        log.info("stopped%s", f"; {active} transfers were cut off" if active else "")


def _commands(parts: Components, transport: ServiceTransport, reporter: Reporter) -> Commands:
    """The commands that the tools can send to the control socket."""
    further: list[Command[Any]] = [
        warm_command(parts.cache, transport),
        export_command(parts.store),
        *Importer(parts.store).commands(),
    ]
    return Commands(parts.store, further, running=reporter.counters)

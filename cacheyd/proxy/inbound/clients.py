"""The clients that are connected now, how many there may be, and what speaks with them."""

import logging
import resource
import sys

from mitmproxy import connection
from mitmproxy.proxy import layer, server
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.tls import ClientTLSLayer

from cacheyd.proxy.inbound.incoming import HEADS
from cacheyd.proxy.inbound.link import ClientLink
from cacheyd.proxy.inbound.listener import ListenerTls, ListenerTlsLayer
from cacheyd.proxy.inbound.replies import Replies
from cacheyd.proxy.inbound.stream import CacheHttpLayer, Gone, PlainRefused
from cacheyd.resources import open_files
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live

log = logging.getLogger(__name__)

# The first byte of a TLS connection (RFC 8446 section 5.1: handshake).
TLS_RECORD = b"\x16"


class Clients:
    """Links by the id of their client, until their sockets are closed: later than mitmproxy forgets them.

    `tls` is the certificate of the listener, None for one without. Where TLS comes all the same, it is refused, or left to
    mitmproxy's own certificates (`own_tls`: mitmdump, mitmweb).
    """

    def __init__(self, live: Live, replies: Replies, tls: ListenerTls | None, *, own_tls: bool) -> None:
        self._live = live
        self._replies = replies
        self.tls = tls
        self._own_tls = own_tls
        self._links: dict[str, ClientLink] = {}
        self._heads = Budget(HEADS)
        self._most = connections_for(open_files.raise_limit())

    def warn(self) -> None:
        """Says where this process may not open as many files as `max_connections` takes."""
        if self._most < self._live.settings.max_connections:
            log.warning("no more than %d connections: this process may not open more files", self._most)

    def get(self, client_id: str) -> ClientLink | None:
        """The link of a client, None once it has left."""
        return self._links.get(client_id)

    def connected(self, client: connection.Client, handler: server.ConnectionHandler) -> None:
        """Closes a connection that is one too many: its client goes on elsewhere at once."""
        if len(self._links) >= min(self._live.settings.max_connections, self._most):
            client.error = "too many connections"  # The hook's way to refuse one.
            return
        link = ClientLink(handler, lambda: self._live.settings, lambda: self._links.pop(client.id, None), self._heads)
        self._links[client.id] = link
        if self.tls is not None:
            link.expect_handshake()

    def layer_for(self, nextlayer: layer.NextLayer) -> layer.Layer | None:
        """Our HTTP layer where mitmproxy would put its own: on plain connections, and inside client TLS; None elsewhere."""
        context = nextlayer.context
        top = context.layers[-1]
        link = self._links.get(context.client.id)
        if link is None:
            # It has left already.
            return Gone(context)
        data = nextlayer.data_client()
        if isinstance(top, ClientTLSLayer):
            return CacheHttpLayer(context, self._replies, link)
        if not isinstance(top, modes.ReverseProxy) or not data:
            return None
        if self.tls is not None:
            if data[:1] != TLS_RECORD:
                return PlainRefused(context)
            outer = ListenerTlsLayer(context)
            outer.child_layer = CacheHttpLayer(context, self._replies, link)  # As mitmproxy's own modes do it.
            return outer
        if self._own_tls and data[:1] == TLS_RECORD:
            return None
        return CacheHttpLayer(context, self._replies, link)


def connections_for(limit: int) -> int:
    """How many clients that many descriptors are enough for.

    The other half is for files and upstreams, and for bursts: asyncio accepts its whole backlog before the first of them
    can be closed again. Without a descriptor a client cannot even be refused, and a mirror that hangs is worse than none.
    """
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(4, limit // 2 - 32)

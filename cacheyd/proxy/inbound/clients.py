"""The clients that are connected now, the most connections that are allowed, and the layer that serves each connection."""

import logging
import resource
import sys

from mitmproxy import connection
from mitmproxy.proxy import layer, server
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from OpenSSL import SSL

from cacheyd.proxy.inbound.incoming import HEADS
from cacheyd.proxy.inbound.link import ClientLink
from cacheyd.proxy.inbound.listener import ListenerTls, ListenerTlsLayer
from cacheyd.proxy.inbound.replies import Replies
from cacheyd.proxy.inbound.sent_memory import TlsBuffers
from cacheyd.proxy.inbound.stream import CacheHttpLayer, Gone, PlainRefused
from cacheyd.resources import open_files
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live

log = logging.getLogger(__name__)

# The first byte of a TLS connection (RFC 8446 section 5.1: handshake).
TLS_RECORD = b"\x16"


class Clients:
    """The links of clients, by the client's id, until their sockets are closed. mitmproxy forgets a client earlier.

    `tls` is the certificate of the listener, None for a listener without TLS. If a client begins TLS on such a listener,
    cacheyd refuses the client, or mitmproxy uses its own certificates (`own_tls`: mitmdump, mitmweb).
    """

    def __init__(self, live: Live, replies: Replies, tls: ListenerTls | None, *, own_tls: bool) -> None:
        self._live = live
        self._replies = replies
        self.tls = tls
        self._own_tls = own_tls
        self._links: dict[str, ClientLink] = {}
        self._heads = Budget(HEADS)
        self._tls_buffers = TlsBuffers()
        self._most = connections_for(open_files.raise_limit())

    def warn(self) -> None:
        """Logs a warning if this process cannot open the number of files that `max_connections` needs."""
        if self._most < self._live.settings.max_connections:
            log.warning("no more than %d connections: this process cannot open more files", self._most)

    def get(self, client_id: str) -> ClientLink | None:
        """The link of a client; None after the client has left."""
        return self._links.get(client_id)

    def tls_connection(self, client_id: str) -> SSL.Connection | None:
        """A new TLS connection for a client, with the listener's certificate; None without one."""
        if self.tls is None:
            return None
        made = self.tls.connection()
        if (link := self._links.get(client_id)) is not None:
            link.outgoing.memory.encrypts_with(made)
        return made

    def connected(self, client: connection.Client, handler: server.ConnectionHandler) -> None:
        """Takes a new connection. Closes it if there are too many: so its client goes to another server at once."""
        if len(self._links) >= min(self._live.settings.max_connections, self._most):
            client.error = "too many connections"  # mitmproxy's way to refuse a connection in this hook.
            return
        link = ClientLink(
            handler, lambda: self._live.settings, lambda: self._links.pop(client.id, None), self._heads, self._tls_buffers
        )
        self._links[client.id] = link
        if self.tls is not None:
            link.expect_handshake()

    def layer_for(self, nextlayer: layer.NextLayer) -> layer.Layer | None:
        """cacheyd's HTTP layer, on plain connections and inside client TLS; None if mitmproxy must choose the layer."""
        context = nextlayer.context
        top = context.layers[-1]
        link = self._links.get(context.client.id)
        if link is None:
            # The client has left already.
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
            outer.child_layer = CacheHttpLayer(context, self._replies, link)  # mitmproxy's own modes set it in the same way.
            return outer
        if self._own_tls and data[:1] == TLS_RECORD:
            return None
        return CacheHttpLayer(context, self._replies, link)


def connections_for(limit: int) -> int:
    """The most clients that a process with `limit` descriptors can serve: half of the descriptors, less 32, and 4 at least.

    The other half is for files, for upstreams and for bursts: asyncio accepts its whole backlog before cacheyd can close the
    first of these connections. Without a descriptor cacheyd cannot even refuse a client, and a mirror that hangs is worse for
    a client than no mirror.
    """
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(4, limit // 2 - 32)

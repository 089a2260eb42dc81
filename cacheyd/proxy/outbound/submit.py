"""Puts requests into mitmproxy's layers, and takes responses out of them, without a client."""

import time

from mitmproxy import connection, http
from mitmproxy.proxy import events, layer, layers
from mitmproxy.proxy.context import Context

from cacheyd.proxy.outbound.exchange import Exchange


class Submit(events.ConnectionEvent):
    """A new request for the connection. The event is addressed to the client connection, so `Requests` gets it."""

    def __init__(self, client: connection.Client, flow: http.HTTPFlow, exchange: Exchange) -> None:
        super().__init__(client)
        self.flow = flow
        self.exchange = exchange


class Requests(layers.http.HttpConnection):
    """Takes the place of a client's HTTP connection: requests come from `Submit`, responses go to the exchange."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.client)
        self._stream_id = -1
        self._exchange = Exchange()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Submit):
            self._stream_id += 2
            self._exchange = event.exchange
            request = event.flow.request
            # mitmproxy's own reader of requests sets these times.
            request.timestamp_start = request.timestamp_end = time.time()
            headers = layers.http.RequestHeaders(self._stream_id, request, end_stream=True, replay_flow=event.flow)
            yield layers.http.ReceiveHttp(headers)
            yield layers.http.ReceiveHttp(layers.http.RequestEndOfMessage(self._stream_id))
        elif isinstance(event, layers.http.ResponseHeaders):
            self._exchange.head(event.response)
        elif isinstance(event, layers.http.ResponseData):
            if event.data:
                self._exchange.piece(event.data)
        elif isinstance(event, layers.http.ResponseEndOfMessage):
            self._exchange.end()
        elif isinstance(event, layers.http.ResponseProtocolError):
            self._exchange.fail(event.message)

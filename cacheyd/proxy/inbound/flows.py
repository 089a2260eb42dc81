"""Requests that are not hits, as flows of mitmproxy: answers them, and accounts for their end."""

import time

from mitmproxy import http

from cacheyd.cache.answer import Answer
from cacheyd.protocol.errors import reason
from cacheyd.proxy.inbound.stream import ANSWER, SENT
from cacheyd.proxy.outbound.exchange import without_end
from cacheyd.service.service import Service

STARTED = "cacheyd_started"


class Flows:
    """Answers clients' flows. If the answer has a source, the stream pumps its body."""

    def __init__(self, service: Service) -> None:
        self._answering = service.answering
        self._transfers = service.transfers
        self._accounting = service.accounting

    async def answer(self, flow: http.HTTPFlow) -> None:
        """Gives a flow its response. The caller must call `finish` after the response is sent."""
        request = flow.request
        flow.metadata[STARTED] = time.monotonic()
        # For the inspector: the port that the request really came to, instead of the reverse mode's target.
        request.data.port = flow.client_conn.sockname[1]
        # For the same reason: the scheme of the client's connection.
        request.data.scheme = b"https" if flow.client_conn.tls else b"http"
        self._transfers.begin()
        # One character for each byte, as in a Head.
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.fields)
        answer = await self._answering.answer(request.method, request.path, fields, lambda: not flow.client_conn.connected)
        self._transfers.sending(answer)
        flow.metadata[ANSWER] = answer
        flow.response = make_response(request, answer, closing=self._transfers.closing(answer))  # The hook's purpose.

    def finish(self, flow: http.HTTPFlow, note: str) -> None:
        """Accounts for a response that was sent, or that broke off: then `note` says why."""
        started = flow.metadata.pop(STARTED, None)
        if started is None:
            return
        self._transfers.end()
        answer: Answer | None = flow.metadata.get(ANSWER)
        if answer is None:
            return
        sent = flow.metadata.get(SENT, 0)
        if answer.source is not None:
            self._transfers.sent(answer)
            answer.source.close()
        elif flow.request.method != "HEAD":
            sent = len(answer.body)
        self._accounting.answered(flow.request.method, answer, sent, started, flow.client_conn.peername, note)
        # mitmproxy can keep the flow for inspection. The flow must not keep the source, which holds a file of the store.
        flow.metadata[ANSWER] = answer.without_source()


def make_response(request: http.Request, answer: Answer, *, closing: bool) -> http.Response:
    """The flow's response for an answer. `closing` says that the connection ends with this response."""
    fields = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in answer.headers]
    if answer.length is not None:
        fields.append((b"Content-Length", b"%d" % answer.length))
    elif answer.source is not None and request.http_version == "HTTP/1.1":
        fields.append((b"Transfer-Encoding", b"chunked"))
    tokens = {token.strip().lower() for token in request.headers.get("connection", "").split(",")}
    http10 = request.http_version == "HTTP/1.0"
    unframed = answer.source is not None and answer.length is None and http10
    if closing or unframed or "close" in tokens or (http10 and "keep-alive" not in tokens):
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

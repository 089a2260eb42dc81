"""A small HTTP proxy: CONNECT for https, absolute-form for http, with or without a login."""

import socket
import socketserver
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PATIENCE = 10.0


class HttpProxy:
    """A forward proxy on 127.0.0.1. `hosts` says at which loopback port a host is that only the proxy knows.

    With `login` (the value of Proxy-Authorization) everybody else gets 407. `heads` are the heads that it read.
    """

    def __init__(self, hosts: Mapping[str, int], login: str | None = None) -> None:
        self.hosts = hosts
        self.login = login
        self.heads: list[bytes] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy.serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def lines(self) -> list[str]:
        """The request lines that it read."""
        return [head.partition(b"\r\n")[0].decode() for head in self.heads]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, client: socket.socket) -> None:
        """One connection."""
        client.settimeout(PATIENCE)
        head = bytearray()
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return
            head += data
        self.heads.append(bytes(head))
        if self.login is not None and f"proxy-authorization: {self.login}".encode().lower() not in bytes(head).lower():
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        method, target, _ = bytes(head).partition(b"\r\n")[0].decode().split(" ")
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        port = self.hosts.get(url.hostname or "")
        if port is None:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as upstream:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream.sendall(_origin_form(bytes(head), method, url.path, url.query))
            _join(client, upstream)


def _origin_form(head: bytes, method: str, path: str, query: str) -> bytes:
    """What goes on to the origin: one request to a connection, and nothing that was for the proxy."""
    target = f"{path}?{query}" if query else path
    lines = [line for line in head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:] if not line.lower().startswith(b"proxy-")]
    return b"\r\n".join((f"{method} {target} HTTP/1.1".encode(), *lines, b"Connection: close", b"", b""))


def _join(one: socket.socket, other: socket.socket) -> None:
    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 18):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join(PATIENCE)

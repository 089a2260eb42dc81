"""TLS on the listener: offers HTTP/1.1 only, bounds the ClientHello, reads certificates anew when their files change."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from OpenSSL import SSL

from cacheyd.settings.settings import ConfigError, Settings

log = logging.getLogger(__name__)

CHECK_EVERY = 1.0
# The longest ClientHello that the listener takes, with the heads of its records (bytes). A browser's has about 2,000.
MAX_HELLO = 16 << 10
# The longest reason for a failed handshake in the log (characters). mitmproxy puts bytes into it that it could not parse, and
# these bytes would fill the log.
MAX_REASON = 120


def _select_alpn(_: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def make_server_context(settings: Settings) -> SSL.Context:
    """A TLS server context with the certificate of the settings. Raises ConfigError if the files cannot be used."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_alpn_select_callback(_select_alpn)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Idle connections keep no buffers: there can be thousands of them.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    try:
        context.use_certificate_chain_file(str(settings.tls_cert))
        context.use_privatekey_file(str(settings.tls_key or settings.tls_cert))
        context.check_privatekey()
    except SSL.Error:
        raise ConfigError(f"tls_cert = {str(settings.tls_cert)!r}: expected a PEM certificate chain and its key") from None
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(str(settings.client_ca))
        except SSL.Error:
            raise ConfigError(f"client_ca = {str(settings.client_ca)!r}: expected PEM certificates") from None
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        context.set_session_id(b"cacheyd")
    return context


class HelloMeter:
    """Finds out when a ClientHello (RFC 8446 section 4) is complete. Looks at each byte once."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._begun = bytearray()
        self._length = 0
        self._seen = 0

    def feed(self, data: bytes) -> bool:
        """Whether the ClientHello is complete with these bytes. Raises ValueError if it is too long or is no handshake."""
        self._seen += len(data)
        self._pending += data
        while len(self._pending) >= 5:
            size = int.from_bytes(self._pending[3:5])
            if self._pending[0] != 22 or self._pending[1] != 3 or size == 0:
                raise ValueError("no TLS handshake")
            if len(self._pending) < 5 + size:
                break
            self._begun += self._pending[5 : min(5 + size, 9)]
            self._length += size
            del self._pending[: 5 + size]
            if len(self._begun) >= 4 and self._length >= 4 + int.from_bytes(self._begun[1:4]):
                return True
        if self._seen > MAX_HELLO:
            raise ValueError("the ClientHello is too long")
        return False


class ListenerTlsLayer(ClientTLSLayer):
    """mitmproxy's TLS layer for clients, with a bounded ClientHello that mitmproxy parses only once, when it is complete."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._meter: HelloMeter | None = HelloMeter()
        self._hello = bytearray()

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """Collects the ClientHello, and gives it to the base class when it is complete."""
        if self._meter is not None:
            try:
                complete = self._meter.feed(data)
            except ValueError as error:
                return False, str(error)
            self._hello += data
            if not complete:
                return False, None
            data, self._meter = bytes(self._hello), None
            self._hello.clear()
        done, failed = yield from super().receive_handshake_data(data)
        return done, failed[:MAX_REASON] if failed is not None else None


class ListenerTls:
    """Gives each new connection the newest certificate that can be used."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._checked = clock()
        self._stamps = self._stamp()
        self._context = make_server_context(settings)

    def _files(self) -> list[Path]:
        found = (self._settings.tls_cert, self._settings.tls_key, self._settings.client_ca)
        return [path for path in found if path is not None]

    def _stamp(self) -> list[tuple[int, int, int]]:
        try:
            return [(s.st_mtime_ns, s.st_size, s.st_ino) for s in (path.stat() for path in self._files())]
        except OSError:
            return []

    def connection(self) -> SSL.Connection:
        """The server's side of a new TLS connection. Looks first whether the files of the certificate have changed."""
        if self._clock() - self._checked >= CHECK_EVERY:
            self._checked = self._clock()
            stamps = self._stamp()
            if stamps and stamps != self._stamps:
                self._reload(stamps)
        conn = SSL.Connection(self._context)
        conn.set_accept_state()
        return conn

    def _reload(self, stamps: list[tuple[int, int, int]]) -> None:
        try:
            self._context = make_server_context(self._settings)
        except ConfigError as error:
            # Often the new key is not written yet. The next change of a file starts another try.
            log.error("%s; the certificate of before stays", error)
        else:
            log.info("the listener's certificate was read anew")
        self._stamps = stamps


def why_failed(error: str) -> str:
    """Why a client's handshake failed, from mitmproxy's text, which gives advice on mitmproxy's options and certificate."""
    if "cannot agree on a TLS version" in error:
        return "the client offers no TLS version that cacheyd speaks (1.2 and 1.3)"
    if "did not return a certificate" in error:
        return "the client sent no certificate, and client_ca asks for one"
    if error.startswith("The client may not trust"):
        return f"the client ended the handshake; it may not trust the certificate {error[error.find('(') :]}"
    return error

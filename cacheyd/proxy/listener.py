"""TLS on the listener: HTTP/1.1 only, certificates read anew when their files change."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from cacheyd.config import ConfigError, Settings

log = logging.getLogger(__name__)

CHECK_EVERY = 1.0


def _select_alpn(_: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def make_server_context(settings: Settings) -> SSL.Context:
    """The context for the certificate in force; raises ConfigError if the files do not make one."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_alpn_select_callback(_select_alpn)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
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


class ListenerTls:
    """Gives each connection the newest certificate that works."""

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
        """The server's side of a new connection."""
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
            # Often a key that is not written yet: looked at again with the next change.
            log.error("%s; the certificate of before stays", error)
        else:
            log.info("the listener's certificate was read anew")
        self._stamps = stamps

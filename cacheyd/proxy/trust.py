"""Which hosts are trusted with what: TLS contexts, addresses, proxies."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import certifi
from mitmproxy.proxy.mode_specs import UpstreamMode
from OpenSSL import SSL

from cacheyd.auth import basic
from cacheyd.config import ConfigError, Settings
from cacheyd.proxy.listener import make_server_context


@dataclass(frozen=True, slots=True)
class Trust:
    """How TLS to an origin is made: files as in the settings."""

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes to: scheme, host and port, how it is trusted, and the proxy on the way there.

    `trusted_address` says that it may be at any address; `kin` are hosts where, if one of them is at a forbidden kind of
    address, this one may be at the same kind.
    """

    scheme: str
    host: str
    port: int
    trust: Trust = Trust()
    trusted_address: bool = False
    proxy: str = ""
    kin: tuple[str, ...] = ()

    @property
    def authority(self) -> str:
        """The Host header (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"

    def same_site(self, other: "Origin") -> bool:
        """The same origin in the sense of RFC 9110 section 4.3.1: credentials for one are for the other."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


def default_port(scheme: str) -> int:
    """The port of http and https."""
    return 443 if scheme == "https" else 80


def make_ssl_context(trust: Trust) -> SSL.Context:
    """A TLS client context: the system's authorities, certifi's, and those of `ca_file`. HTTP/1.1 only. Raises SSL.Error."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_NONE if trust.insecure else SSL.VERIFY_PEER)
    context.set_default_verify_paths()
    context.load_verify_locations(certifi.where())
    if trust.ca_file is not None:
        context.load_verify_locations(str(trust.ca_file))
    if trust.client_cert is not None:
        context.use_certificate_chain_file(str(trust.client_cert))
        context.use_privatekey_file(str(trust.client_key or trust.client_cert))
    return context


def check_files(settings: Settings) -> None:
    """Reads every certificate of the settings; raises ConfigError for one that cannot be used."""
    for name, row in (("", settings.defaults), *settings.registries.items()):
        if row.ca_file is None and row.client_cert is None:
            continue
        try:
            make_ssl_context(Trust(row.ca_file, row.client_cert, row.client_key))
        except SSL.Error:
            where = f'registries."{name}"' if name else "defaults"
            files = ", ".join(str(path) for path in (row.ca_file, row.client_cert, row.client_key) if path)
            raise ConfigError(f"{where}: {files}: expected PEM files with certificates, and the key of client_cert") from None
    if settings.tls_cert is not None:
        make_server_context(settings)


def make_connection(context: SSL.Context, host: str, *, verify: bool) -> SSL.Connection:
    """A TLS client connection that takes only a certificate for `host`, a name or an address."""
    conn = SSL.Connection(context)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        conn.set_tlsext_host_name(host.encode())
        if verify:
            _require_host(conn, host.encode())
    else:
        if verify:
            _require_ip(conn, address.packed)
    conn.set_connect_state()
    return conn


def _require_host(conn: SSL.Connection, host: bytes) -> None:
    # pyOpenSSL has no public call for this; mitmproxy's own TlsConfig does the same.
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._lib.X509_VERIFY_PARAM_set_hostflags(param, SSL._lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_host(param, host, len(host)) == 1)  # type: ignore[attr-defined]


def _require_ip(conn: SSL.Connection, packed: bytes) -> None:
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed)) == 1)  # type: ignore[attr-defined]


def forbidden_kind(address: str) -> str:
    """What is wrong with an address that only a configured registry may have: this host, its link, cloud metadata, groups.

    Empty for all others.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    kinds = {
        "loopback": ip.is_loopback, "unspecified": ip.is_unspecified, "link-local": ip.is_link_local,
        "multicast": ip.is_multicast,
    }  # fmt: skip
    return next((kind for kind, found in kinds.items() if found), "")


def is_forbidden_name(host: str) -> bool:
    """Whether a host is a forbidden address by its name alone: behind a proxy nobody here looks it up."""
    try:
        return bool(forbidden_kind(host))
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def proxy_mode(proxy: str) -> UpstreamMode:
    """mitmproxy's notation of a proxy URL."""
    url = urlsplit(proxy)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    mode = UpstreamMode.parse(f"upstream:{url.scheme}://{host}:{url.port or default_port(url.scheme)}")
    assert isinstance(mode, UpstreamMode)
    return mode


def proxy_login(proxy: str) -> str:
    """Proxy-Authorization for a proxy URL with user and password, empty for one without."""
    url = urlsplit(proxy)
    if url.username is None:
        return ""
    return basic(f"{unquote(url.username)}:{unquote(url.password or '')}")

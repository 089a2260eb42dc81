"""Which hosts cacheyd trusts, and how: TLS contexts, origins, proxies."""

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import certifi
from mitmproxy.proxy.mode_specs import UpstreamMode
from OpenSSL import SSL, crypto

from cacheyd.protocol.hosts import canonical_host
from cacheyd.protocol.urls import Url, default_port
from cacheyd.proxy.inbound.listener import make_server_context
from cacheyd.settings.settings import ConfigError, Settings
from cacheyd.upstream.token_service import basic

# The keys of authorities whose private key is public, while their roots are still trusted. cacheyd does not read revocation
# lists. "EM OV TLS CA - G3C" (https://emudhra.we-have-a-problem.com/; tools contain its private key).
COMPROMISED = frozenset({"63ecefee431d49523bc1136c4e72d0206a477086caf606cd5cf025686c109cf8"})


@dataclass(frozen=True, slots=True)
class Trust:
    """How cacheyd makes TLS to an origin: the files and the flag of the settings."""

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The target of a connection: scheme, host and port, the trust for TLS, and the proxy on the way.

    `trusted_address` says that the host may be at any address. `registry_hosts` are the hosts of the registry that led here:
    if one of them is at a forbidden kind of address, this host may be at the same kind.
    """

    scheme: str
    host: str
    port: int
    trust: Trust = Trust()
    trusted_address: bool = False
    proxy: str = ""
    registry_hosts: tuple[str, ...] = ()

    @property
    def authority(self) -> str:
        """The value of the Host header (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> Url:
        """The URL of the origin's root."""
        return Url(self.scheme, self.host, self.port, "/")

    def same_site(self, other: "Origin") -> bool:
        """Whether both have the same origin (RFC 9110 section 4.3.1): then credentials for one are also for the other."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


def make_ssl_context(trust: Trust) -> SSL.Context:
    """A TLS client context with the authorities of the system, of certifi and of `ca_file`. Raises SSL.Error.

    It offers no protocol by ALPN, so servers speak HTTP/1.1.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if trust.insecure:
        context.set_verify(SSL.VERIFY_NONE)
    else:
        context.set_verify(SSL.VERIFY_PEER, _verify)
    context.set_default_verify_paths()
    context.load_verify_locations(certifi.where())
    if trust.ca_file is not None:
        context.load_verify_locations(str(trust.ca_file))
    if trust.client_cert is not None:
        context.use_certificate_chain_file(str(trust.client_cert))
        context.use_privatekey_file(str(trust.client_key or trust.client_cert))
    return context


def _verify(conn: SSL.Connection, cert: crypto.X509, error: int, depth: int, valid: int) -> bool:
    """Whether a certificate of a chain is accepted: if OpenSSL accepts it, and its private key is not public."""
    return bool(valid) and key_digest(cert) not in COMPROMISED


def key_digest(cert: crypto.X509) -> str:
    """The SHA-256 of a certificate's public key (RFC 7469 section 2.4: its SubjectPublicKeyInfo)."""
    return hashlib.sha256(crypto.dump_publickey(crypto.FILETYPE_ASN1, cert.get_pubkey())).hexdigest()


def check_files(settings: Settings) -> None:
    """Reads each certificate of the settings, and the names of proxies. Raises ConfigError if one cannot be used."""
    for name, row in (("", settings.defaults), *settings.registries.items()):
        where = f'registries."{name}"' if name else "defaults"
        try:
            if row.proxy:
                proxy_mode(row.proxy)
        except ValueError:
            raise ConfigError(f"{where}: proxy: expected the URL of a proxy whose host can be one") from None
        if row.ca_file is None and row.client_cert is None:
            continue
        try:
            make_ssl_context(Trust(row.ca_file, row.client_cert, row.client_key))
        except SSL.Error:
            files = ", ".join(str(path) for path in (row.ca_file, row.client_cert, row.client_key) if path)
            raise ConfigError(f"{where}: {files}: expected PEM files with certificates, and the key of client_cert") from None
    if settings.tls_cert is not None:
        make_server_context(settings)


def make_connection(context: SSL.Context, host: str, *, verify: bool) -> SSL.Connection:
    """A TLS client connection. With `verify`, it accepts only a certificate for `host`, a name or an address."""
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
    # pyOpenSSL has no public function for this; mitmproxy's own TlsConfig does the same.
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._lib.X509_VERIFY_PARAM_set_hostflags(param, SSL._lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_host(param, host, len(host)) == 1)  # type: ignore[attr-defined]


def _require_ip(conn: SSL.Connection, packed: bytes) -> None:
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed)) == 1)  # type: ignore[attr-defined]


def proxy_mode(proxy: str) -> UpstreamMode:
    """A proxy URL as a mode of mitmproxy. Raises ValueError for a host that mitmproxy does not accept."""
    url = urlsplit(proxy)
    name = url.hostname or ""
    host = canonical_host(f"[{name}]" if ":" in name else name.removesuffix("."))
    mode = UpstreamMode.parse(f"upstream:{url.scheme}://{host}:{url.port or default_port(url.scheme)}")
    assert isinstance(mode, UpstreamMode)
    return mode


def proxy_login(proxy: str) -> str:
    """The value of Proxy-Authorization for a proxy URL with user and password; empty for a URL without them."""
    url = urlsplit(proxy)
    if url.username is None:
        return ""
    return basic(f"{unquote(url.username)}:{unquote(url.password or '')}")

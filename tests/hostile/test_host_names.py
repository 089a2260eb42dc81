"""Host names as people and registries write them: a dot at the end, upper case, IDN; over TLS, where the name is verified.

SNI and the verified name have no dot at the end (RFC 6066 section 3) and are A-labels (RFC 5890), by IDNA 2008, in which
`ß` is a letter.
"""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from cacheyd.proxy.outbound.trust import check_files
from cacheyd.settings.load import load
from cacheyd.settings.settings import ConfigError
from tests.faults.client import Reply, Stopwatch
from tests.hostile.launched import Launched
from tests.hostile.peers import RawOrigin, whole
from tests.policy.conftest import Starter
from tests.policy.proxy import HttpProxy
from tests.support.certs import TestCA
from tests.support.images import digest_of

BLOB = b"what the registry has"
DIGEST = digest_of(BLOB)
# U-labels with their A-labels; IDNA 2003 makes another host of the second one.
BOOKS, STREET = "xn--bcher-kva.test", "xn--strae-oqa.test"
# A deadline would be 8 s (seconds).
QUICK = 2.0
NAMES = ("reg.test", "dotted.test", "cdn.test", "auth.test", "b\u00fccher.test", "stra\u00dfe.test")


@dataclass
class Site:
    """A daemon, and one TLS origin that is all hosts below `.test`; `answers` has what it says, by the path's first part."""

    daemon: Launched
    origin: RawOrigin
    asked_for: list[str | None]
    answers: dict[str, bytes]
    proxy: HttpProxy

    @property
    def reg(self) -> str:
        """The registry that redirects, and what it is asked for as Host."""
        return f"reg.test:{self.origin.port}"

    def get(self, ns: str, repo: str = "app", *, method: str = "GET") -> Reply:
        """A piece of a blob that is on no disk, so that each time upstream is asked."""
        return self.daemon.get(f"/v2/{repo}/tags/list?ns={quote(ns)}", method=method)

    def hosts(self) -> list[str]:
        """The Host headers since it was asked last."""
        lines = [line for raw in self.origin.heads for line in raw.split(b"\r\n") if line.lower().startswith(b"host:")]
        self.origin.heads.clear()
        return [line[5:].strip().decode("latin-1") for line in lines]


@pytest.fixture(scope="module")
def site(shared: Starter, ca: TestCA) -> Iterator[Site]:
    context, asked_for = ca.server_context(*NAMES), list[str | None]()

    def note(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, used: ssl.SSLContext) -> None:
        asked_for.append(name)

    context.sni_callback = note
    answers: dict[str, bytes] = {}

    def answer(connection: socket.socket, raw: bytes) -> None:
        path = raw.split(b" ")[1].decode("latin-1")
        first = path.split("/")[2 if path.startswith("/v2/") else 1].partition("?")[0]
        connection.sendall(answers.get(first, whole(BLOB)))

    with RawOrigin(answer, tls=context) as origin, HttpProxy({BOOKS: origin.port, STREET: origin.port}) as proxy:
        port, proxy_port = origin.port, proxy.address.rpartition(":")[2]
        tables = "".join(
            f'[registries."{name}:{port}"]\n' for name in ("reg.test", "b\u00fccher.test", "stra\u00dfe.test", "wrong.test")
        )
        upstreams = {"dots": f"https://dotted.test.:{port}", "idn": f"https://B\u00dcCHER.test.:{port}"}
        tables += "".join(f'[registries."{name}.example"]\nupstream = "{url}"\n' for name, url in upstreams.items())
        for name in ("B\u00dcCHER", "stra\u00dfe"):
            tables += f'[registries."{name}.proxied"]\nupstream = "https://{name}.test."\n'
            tables += f'proxy = "http://{name if name.isupper() else "proxy"}.test.:{proxy_port}"\n'
        config = f'[defaults]\nca_file = "{ca.ca_file}"\n{tables}'
        # An object that is known is a hit, whoever is asked for it; here each test is to ask.
        settings = {"connect_timeout": "8s", "head_timeout": "8s", "max_size": "1KiB", "min_free": "0"}
        daemon = shared.daemon(config, settings, env={"HOSTILE_NAMES": "test"}, kind=Launched)
        assert isinstance(daemon, Launched)
        yield Site(daemon, origin, asked_for, answers, proxy)


def assert_asked(site: Site, reply: Reply, *hosts: str, body: bytes = BLOB) -> None:
    """The answer came, and these hosts were asked for it, in this order: by Host and by SNI."""
    assert (reply.status, reply.body) == (200, body)
    assert site.hosts() == [*hosts]
    assert site.asked_for[-1] == hosts[-1].partition(":")[0]


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("reg.test", "reg.test"), ("REG.Test", "reg.test"), ("b\u00fccher.test", BOOKS), ("B\u00dcCHER.TEST", BOOKS),
        (BOOKS, BOOKS), (BOOKS.upper(), BOOKS), ("bu\u0308cher.test", BOOKS), ("stra\u00dfe.test", STREET), (STREET, STREET),
    ],
)  # fmt: skip
def test_a_registry_by_its_name(site: Site, name: str, host: str) -> None:
    registry = quote(f"{name}:{site.origin.port}")
    assert_asked(site, site.daemon.get(f"/v2/app/tags/list?ns={registry}"), f"{host}:{site.origin.port}")
    assert_asked(site, site.daemon.get(f"/v2/{registry}/app/tags/list"), f"{host}:{site.origin.port}")


@pytest.mark.parametrize(
    "name", ["reg.test.", "b\u00fccher.test.", "reg.test..", "b\u00fc..test", "a_\u00fc.test", "\u200d.test"]
)
def test_what_is_no_registrys_name_is_400_at_once(site: Site, name: str) -> None:
    """With a dot at its end it is none for clients either (distribution's grammar of references)."""
    registry, watch = quote(f"{name}:{site.origin.port}"), Stopwatch()
    assert site.daemon.get(f"/v2/app/tags/list?ns={registry}").status == 400
    assert site.daemon.get(f"/v2/{registry}/app/tags/list").status == 400
    assert watch.seconds < QUICK
    assert site.hosts() == []


@pytest.mark.parametrize(("registry", "host"), [("dots.example", "dotted.test"), ("idn.example", BOOKS)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_name_of_an_upstream(site: Site, registry: str, host: str, method: str) -> None:
    reply = site.daemon.get(f"/v2/app/tags/list?ns={registry}", method=method)
    assert reply.status == 200
    assert site.hosts() == [f"{host}:{site.origin.port}"]
    assert site.asked_for.pop() == host


@pytest.mark.parametrize(("registry", "host"), [("b\u00fccher.proxied", BOOKS), ("stra\u00dfe.proxied", STREET)])
def test_behind_a_proxy(site: Site, registry: str, host: str) -> None:
    """The name of the proxy, and what it is asked for."""
    site.proxy.heads.clear()
    reply = site.daemon.get(f"/v2/app/tags/list?ns={quote(registry)}")
    assert (reply.status, reply.body) == (200, BLOB)
    assert site.proxy.lines == [f"CONNECT {host}:443 HTTP/1.1"]
    assert (site.hosts(), site.asked_for.pop()) == ([host], host)


HOSTS = [
    ("cdn.test.", "cdn.test"), ("CDN.Test", "cdn.test"), ("b\u00fccher.test", BOOKS), ("B\u00dcCHER.test.", BOOKS),
    (BOOKS, BOOKS), ("stra\u00dfe.test", STREET), (STREET, STREET), ("cdn\u3002test", "cdn.test"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "host"), HOSTS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_location(site: Site, name: str, host: str, method: str) -> None:
    """As bytes of UTF-8, which is how such a one is sent."""
    location = f"https://{name}:{site.origin.port}/blob?sig=a%2Fb"
    site.answers["app"] = whole(b"", f"Location: {location.encode().decode('latin-1')}", status=307)
    reply = site.get(site.reg, "app", method=method)
    assert_asked(site, reply, site.reg, f"{host}:{site.origin.port}", body=b"" if method == "HEAD" else BLOB)


@pytest.mark.parametrize(
    "host",
    [
        "b\u00fc..test", "cdn.test..", ".cdn.test", ".", "a_\u00fc.test", "-\u00fc.test", "\u200d.test", "\u00ad",
        "\u2100.test", "%", "cdn.test%2e", "cdn.test.:0", "\x85.test", "xn--\u00fc.test", "\u0661.test", "\U0001f4a9.test",
        "a" * 64 + ".test", "\u00fc" * 300 + ".test", "256.1.1.1", "[::1", "cdn.test\\", "a b.test",
    ],
)  # fmt: skip
def test_a_location_without_a_host_is_502_at_once(site: Site, host: str) -> None:
    site.answers["app"] = whole(b"", f"Location: https://{host}/x".encode().decode("latin-1"), status=307)
    for kind in ("blobs", "manifests"):
        for method in ("GET", "HEAD"):
            watch = Stopwatch()
            reply = site.daemon.get(f"/v2/app/{kind}/{DIGEST}?ns={site.reg}", method=method)
            assert reply.status == 502
            assert watch.seconds < QUICK
    site.hosts()


def test_a_location_in_bytes_that_are_no_text(site: Site) -> None:
    site.answers["app"] = whole(b"", "Location: https://b\xfccher.test/x", status=307)
    watch = Stopwatch()
    assert site.get(site.reg).status == 502
    assert watch.seconds < QUICK
    site.hosts()


def test_a_certificate_for_another_name_is_502_at_once(site: Site) -> None:
    watch = Stopwatch()
    reply = site.daemon.get(f"/v2/app/tags/list?ns=wrong.test:{site.origin.port}")
    assert (reply.status, b"mismatch" in reply.body) == (502, True)
    assert watch.seconds < QUICK


@pytest.mark.parametrize(("name", "host"), HOSTS)
def test_a_token_service(site: Site, name: str, host: str) -> None:
    """Path form: cacheyd answers the challenge itself."""
    realm = f"https://{name}:{site.origin.port}/token".encode().decode("latin-1")
    site.answers["locked"] = whole(b"", f'WWW-Authenticate: Bearer realm="{realm}"', status=401)
    site.answers["token"] = whole(b'{"token": "t"}')
    reply = site.daemon.get(f"/v2/{site.reg}/locked/x{HOSTS.index((name, host))}/tags/list")
    assert reply.status == 401
    assert site.hosts() == [site.reg, f"{host}:{site.origin.port}", site.reg]


# What stands in a Location besides the host

SIGNED_QUERY = "?X-Amz-Signature=a%2Fb%2bc%20d&sig=e+f%zz&se=2026-01-01T00:00:00Z"


PATHS = [
    ("/a b", "/a%20b"), ("/b\u00fccher/\u4f8b", "/b%C3%BCcher/%E4%BE%8B"),
    ('/|^"{}<>`\\', "/%7C%5E%22%7B%7D%3C%3E%60%5C"), ("/%7c%7C%2f%zz%", "/%7c%7C%2f%zz%"),
    ("/[a];b=c,d!$'()*~@:&=+", "/[a];b=c,d!$'()*~@:&=+"), ("//a//b", "//a//b"), ("/\xff", "/%C3%BF"),
]  # fmt: skip
# Of a query no more is changed than curl does, and Go's clients do less: what signs it was tested with those.
QUERIES = [
    (SIGNED_QUERY, SIGNED_QUERY), ("?q=a b\u00fc|", "?q=a%20b%C3%BC|"), ("?a=?/b&&=", "?a=?/b&&="), ("?", "?"), ("", ""),
    ('?x=|^"{}<>`\\', '?x=|^"{}<>`\\'), ("?x#y|", "?x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "sent"),
    [*((path + SIGNED_QUERY, sent + SIGNED_QUERY) for path, sent in PATHS), *((f"/x{q}", f"/x{sent}") for q, sent in QUERIES)],
)
def test_what_is_sent_of_a_location(site: Site, path: str, sent: str) -> None:
    location = f"https://cdn.test:{site.origin.port}/cdn{path}"
    site.answers["app"] = whole(b"", f"Location: {location.encode().decode('latin-1')}", status=307)
    assert site.get(site.reg).status == 200
    assert site.origin.heads[-1].partition(b"\r\n")[0].decode("latin-1") == f"GET /cdn{sent} HTTP/1.1"


def test_bytes_of_a_location_that_are_no_utf_8(site: Site) -> None:
    site.answers["app"] = whole(b"", f"Location: https://cdn.test:{site.origin.port}/cdn/\xff?\xfe", status=307)
    assert site.get(site.reg).status == 200
    assert site.origin.heads[-1].startswith(b"GET /cdn/%FF?%FE HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["stra\u00dfe.test", "b\u00fc..test", "a_\u00fc.test", "proxy.test.."])
def test_a_proxy_whose_host_can_be_none_is_refused_at_the_start(host: str) -> None:
    """The first one can, but not in mitmproxy, which knows IDNA 2003."""
    with pytest.raises(ConfigError, match="proxy: expected"):
        check_files(load(environ={}, flags={"proxy": f"http://{host}:3128"}))

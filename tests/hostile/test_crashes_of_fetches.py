"""An exception anywhere in a fetch ends the exchange at once, with one error line that says why; no deadline is waited for."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.faults.client import End, Reply, Stopwatch
from tests.hostile.launched import Launched
from tests.hostile.peers import RawOrigin, head, whole
from tests.policy.conftest import Starter
from tests.support.certs import TestCA
from tests.support.images import digest_of

BLOB = b"what the registry has" * 10_000
DIGEST = digest_of(BLOB)
MANIFEST = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
# Deadlines are 20 s and more; a crash is told within (seconds), on a machine that is busy.
QUICK = 3.0
CONNECTION, TRANSPORT = "cacheyd.proxy.outbound.connection", "cacheyd.proxy.outbound.transport"
READER, DIALING = "cacheyd.proxy.outbound.fetch_reader", "cacheyd.proxy.outbound.dialing"
# Where it may happen, on the way to a head.
FAULTS = (
    f"{CONNECTION}.FetchConnection.send",
    f"{CONNECTION}.FetchConnection.handle_hook",
    f"{CONNECTION}.FetchConnection.handle_connection",
    f"{CONNECTION}.FetchConnection._start_tls",
    f"{READER}.FetchReader.pass_body",
    f"{READER}.Meter.appetite",
    f"{READER}.FetchReader.swallow",
    f"{CONNECTION}.FetchConnection.drain_writers",
    "cacheyd.proxy.outbound.submit.Requests._handle_event",
    f"{CONNECTION}.make_connection",
    "cacheyd.proxy.outbound.exchange.Exchange.head",
    "cacheyd.proxy.outbound.intake.problem_of",
    "cacheyd.proxy.outbound.intake.StrictHttp1Client.read_headers",
    "cacheyd.proxy.outbound.names.Names.addresses",
    "cacheyd.proxy.outbound.socket_reader.SocketReader.read",
    f"{DIALING}.Dialer.dial",
    f"{TRANSPORT}.MitmTransport._follow",
    f"{TRANSPORT}.route",
    f"{DIALING}.Dialer.ssl_context",
    f"{TRANSPORT}._make_request",
    f"{DIALING}.start_connection",
    f"{TRANSPORT}.take_head",
    "mitmproxy.proxy.layers.http._http1.Http1Client.send",
    "mitmproxy.proxy.layers.tls.TLSLayer.tls_interact",
    "cacheyd.upstream.auth.Authorizer.fetch",
    "cacheyd.upstream.origins.Origins._first",
)
# And in the answer of a token service, or in a body.
TOKEN_FAULTS = (
    "cacheyd.upstream.token_service._parse_token",
    "cacheyd.upstream.tokens.request_token",
    "cacheyd.upstream.auth.parse_challenges",
)
BODY_FAULTS = (
    "cacheyd.cache.blob_fetch.BlobFetch._begin", "cacheyd.cache.blob_fetch.BlobFetch._receive",
    "cacheyd.proxy.outbound.exchange.Exchange.data",
    "cacheyd.proxy.outbound.exchange.Exchange.end", "cacheyd.proxy.outbound.exchange.Exchange.read",
    "cacheyd.proxy.outbound.response.FetchResponse.read", "cacheyd.proxy.outbound.pool.Pool.release",
)  # fmt: skip


@dataclass
class Site:
    """A daemon all of whose registries are one TLS origin; `break_at` chooses what raises."""

    daemon: Launched
    chosen: Path
    numbers: Iterator[int]

    def get(self, what: str, *, method: str = "GET", kind: str = "reg") -> tuple[Reply, float]:
        """The answer of the next registry, and the seconds that it took. A crash of ours never closes one for others."""
        watch = Stopwatch()
        reply = self.daemon.get(f"/v2/app/{what}?ns={kind}{next(self.numbers) % REGISTRIES}.test", method=method)
        return reply, watch.seconds

    def break_at(self, path: str) -> None:
        self.chosen.write_text(path)

    def errors(self, since: int) -> list[str]:
        """The lines of level error."""
        found = [json.loads(line) for line in self.daemon.lines(since)]
        return [line["msg"] for line in found if line["level"] == "error"]


REGISTRIES = 12


@pytest.fixture(scope="module")
def site(shared: Starter, ca: TestCA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    def answer(connection: socket.socket, raw: bytes) -> None:
        path = raw.split(b" ")[1]
        if path.startswith(b"/locked") and b"\r\nauthorization:" not in raw.lower():
            realm = f'Bearer realm="{origin.url}/token"'
            connection.sendall(whole(b"", f"WWW-Authenticate: {realm}", status=401))
        elif path.startswith(b"/token"):
            connection.sendall(whole(b'{"token": "t"}'))
        elif path.startswith(b"/chunky"):
            size = len(BLOB) // 10
            pieces = b"".join(b"%x\r\n%b\r\n" % (size, BLOB[at : at + size]) for at in range(0, len(BLOB), size))
            connection.sendall(head(200, "Transfer-Encoding: chunked", "Connection: close") + pieces + b"0\r\n\r\n")
        elif b"/manifests/" in path:
            connection.sendall(whole(MANIFEST))
        elif raw.startswith(b"HEAD"):
            connection.sendall(head(200, f"Content-Length: {len(BLOB)}", "Connection: close"))
        else:
            connection.sendall(whole(BLOB))

    chosen = tmp_path_factory.mktemp("faults") / "chosen"
    with RawOrigin(answer, tls=ca.server_context("127.0.0.1")) as origin:
        tables = "".join(
            f'[registries."{kind}{number}.test"]\nupstream = "{origin.url}/{kind}"\nauth = "anonymous"\n'
            for number in range(REGISTRIES)
            for kind in ("reg", "locked", "chunky")
        )
        config = f'[defaults]\nca_file = "{ca.ca_file}"\n{tables}'
        settings = {"connect_timeout": "20s", "head_timeout": "20s", "progress_timeout": "20s", "retries": "0"}
        env = {"HOSTILE_FAULTS": ";".join([*FAULTS, *TOKEN_FAULTS, *BODY_FAULTS]), "HOSTILE_FAULT_FILE": str(chosen)}
        daemon = shared.daemon(config, settings, env=env, kind=Launched)
        assert isinstance(daemon, Launched)
        yield Site(daemon, chosen, count())


@pytest.fixture(autouse=True)
def whole_again(site: Site) -> Iterator[None]:
    """What a test broke is right for the next one; what is still on its way may break."""
    site.daemon.expect("injected")
    yield
    site.break_at("")
    reply, _ = site.get("tags/list")
    assert (reply.status, reply.body) == (200, BLOB)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rpartition(".")[2])
def test_a_crash_before_the_head_is_502_at_once(site: Site, fault: str) -> None:
    descriptors = site.daemon.descriptors()
    site.break_at(fault)
    for what, method in (
        ("manifests/v1", "GET"),
        (f"blobs/{DIGEST}", "GET"),
        (f"blobs/{DIGEST}", "HEAD"),
        ("tags/list", "GET"),
    ):
        since = site.daemon.log_size()
        reply, seconds = site.get(what, method=method)
        assert (reply.status, seconds < QUICK) == (502, True), (what, method, reply, seconds)
        lines = site.errors(since)
        # Another connection may be on its way out.
        assert 1 <= len(lines) <= 2
        assert all("ZeroDivisionError: injected" in line for line in lines)
    assert site.daemon.descriptors() <= descriptors + 4


@pytest.mark.parametrize("fault", TOKEN_FAULTS, ids=lambda fault: fault.rpartition(".")[2])
def test_a_crash_with_a_token_is_502_at_once(site: Site, fault: str) -> None:
    site.break_at(fault)
    since = site.daemon.log_size()
    reply, seconds = site.get("manifests/v1", kind="locked")
    assert (reply.status, seconds < QUICK) == (502, True)
    (line,) = site.errors(since)
    assert "ZeroDivisionError: injected" in line


WAYS = [("reg", f"blobs/{DIGEST}"), ("reg", "manifests/v1"), ("reg", "tags/list"), ("chunky", "tags/list")]


@pytest.mark.parametrize(("kind", "what"), WAYS)
@pytest.mark.parametrize("fault", BODY_FAULTS, ids=lambda fault: fault.rpartition(".")[2])
def test_a_crash_in_a_body_ends_it_at_once(site: Site, fault: str, kind: str, what: str) -> None:
    """502, or a connection that ends short of what was promised; never a part of it as if it were all."""
    site.break_at(fault)
    since = site.daemon.log_size()
    reply, seconds = site.get(what, kind=kind)
    assert reply.status == 502 or reply.end is not End.COMPLETE or reply.body in (BLOB, MANIFEST)
    assert seconds < QUICK
    # A blob all of whose bytes had come is kept, whatever broke then.
    if reply.status == 502:
        assert any("injected" in line for line in site.errors(since))


def test_a_certificate_that_is_gone_since_the_start_is_502_at_once(own: Starter, ca: TestCA, tmp_path: Path) -> None:
    mine = tmp_path / "ca.pem"
    mine.write_bytes(ca.ca_file.read_bytes())
    with RawOrigin(lambda connection, _: connection.sendall(whole(BLOB)), tls=ca.server_context("127.0.0.1")) as origin:
        daemon = own.daemon(
            f'[registries."gone.test"]\nupstream = "{origin.url}"\nca_file = "{mine}"\n', {"head_timeout": "20s"}
        )
        mine.unlink()
        daemon.expect("ca.pem")
        for what, method in ((f"blobs/{DIGEST}", "GET"), (f"blobs/{DIGEST}", "HEAD"), ("manifests/v1", "GET")):
            watch = Stopwatch()
            assert daemon.get(f"/v2/app/{what}?ns=gone.test", method=method).status == 502
            assert watch.seconds < QUICK
        mine.write_bytes(ca.ca_file.read_bytes())
        assert daemon.get(f"/v2/app/blobs/{DIGEST}?ns=gone.test").body == BLOB

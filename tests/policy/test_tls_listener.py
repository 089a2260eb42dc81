"""TLS on the listener: right bytes, clean refusals, certificates that are replaced while it runs."""

import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.client import Reply
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok
from tests.real import cache as real_cache
from tests.real.procs import wait_until
from tests.support.certs import TestCA, make_ca
from tests.support.origin import Origin

LARGE = 50 << 20


class TlsDaemon(Daemon):
    """A daemon that is asked over TLS; `context` is what its client trusts and shows."""

    context: ssl.SSLContext

    def request(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> real_cache.Reply:
        """As in the base class, over TLS."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.context)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return real_cache.Reply(response.status, fields, response.read())
        finally:
            connection.close()

    def get(self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Reply:
        """As in the base class, over TLS."""
        reply = self.request(method, target, headers)
        return Reply(reply.status, tuple(reply.headers.items()), b"", reply.body)


def tls_daemon(context: ssl.SSLContext) -> type[TlsDaemon]:
    """Its kind for clients with this context."""
    return type("TlsDaemonWithContext", (TlsDaemon,), {"context": context})


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the daemon's cert.pem and key.pem are."""
    return tmp_path_factory.mktemp("listener")


def install(pems: Path, files: tuple[Path, Path]) -> None:
    """Replaces certificate and key as cert-manager does: each in one step."""
    for source, name in zip(files, ("cert.pem", "key.pem"), strict=True):
        shutil.copy(source, pems / f"{name}.new")
        os.replace(pems / f"{name}.new", pems / name)


@pytest.fixture(scope="module")
def lab(shared: Starter, ca: TestCA, pems: Path, numbers: object) -> Lab:
    install(pems, ca.issue("127.0.0.1"))
    origin = shared.origin(Origin())
    config = f'tls_cert = "{pems}/cert.pem"\ntls_key = "{pems}/key.pem"\n{registry_table("reg.test", origin.url)}'
    daemon = shared.daemon(config, kind=tls_daemon(ca.client_context()))
    return Lab(daemon, {"o": origin}, shared.numbers)


def shake(lab: Lab, context: ssl.SSLContext, *, name: str | None = "127.0.0.1") -> ssl.SSLSocket:
    """A TLS connection to the daemon."""
    raw = socket.create_connection(("127.0.0.1", lab.cache.port), 10)
    try:
        return context.wrap_socket(raw, server_hostname=name)
    except BaseException:
        raw.close()
        raise


def serial(lab: Lab, context: ssl.SSLContext) -> str:
    """The number of the certificate that a new connection is shown."""
    with shake(lab, context) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


# What is served


def test_hits_and_misses(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("o", repo)
    for target, data in (
        (manifest_target(repo, "1.0", "reg.test"), image.manifest),
        (blob_target(repo, image.config.digest, "reg.test"), image.config.data),
    ):
        assert_ok(lab.pull(target), data, "MISS")
        assert_ok(lab.get(target), data, "HIT")
        assert lab.get(target, method="HEAD").header("Content-Length") == str(len(data))


def test_a_large_blob(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("o", repo, LARGE)
    target = blob_target(repo, blob.digest, "reg.test")
    assert_ok(lab.pull(target), blob.data, "MISS")
    assert_ok(lab.get(target), blob.data, "HIT")
    part = lab.get(target, {"Range": f"bytes={LARGE // 2}-"})
    assert (part.status, part.body) == (206, blob.data[LARGE // 2 :])


def test_many_requests_on_one_connection(lab: Lab, ca: TestCA) -> None:
    repo = lab.repo()
    blob = lab.blob("o", repo, 300_000)
    target = blob_target(repo, blob.digest, "reg.test")
    connection = http.client.HTTPSConnection("127.0.0.1", lab.cache.port, timeout=10, context=ca.client_context())
    for method in ("GET", "HEAD", "GET", "GET"):
        connection.request(method, target)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read() == (blob.data if method == "GET" else b"")
    connection.close()


# Handshakes


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["http/1.1"], ["h2"], None])
def test_only_http_1_1_is_offered(lab: Lab, ca: TestCA, offered: list[str] | None) -> None:
    context = ca.client_context()
    if offered is not None:
        context.set_alpn_protocols(offered)
    with shake(lab, context) as sock:
        assert sock.selected_alpn_protocol() == ("http/1.1" if offered and "http/1.1" in offered else None)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", [None, "cache.corp", "127.0.0.1"])
def test_any_server_name_gets_the_certificate(lab: Lab, ca: TestCA, name: str | None) -> None:
    context = ca.client_context()
    context.check_hostname = False
    with shake(lab, context, name=name) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        assert ("IP Address", "127.0.0.1") in certificate["subjectAltName"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(lab: Lab, ca: TestCA) -> None:
    context = ca.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)):
        shake(lab, context)
    assert lab.get("/healthz").status == 200


def test_the_chain_is_checked_by_clients(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(lab, make_ca(tmp_path / "other").client_context())
    assert lab.get("/healthz").status == 200


@pytest.mark.parametrize("sent", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_what_is_not_tls_is_closed_soon(lab: Lab, sent: bytes) -> None:
    before = lab.cache.log_size()
    with lab.cache.connect() as client:
        client.sock.settimeout(3)
        client.send(sent)
        body, _ = client.rest()
    assert b"200" not in body[:20]
    assert lab.get("/healthz").status == 200
    assert len([line for line in lab.cache.lines(before) if '"request"' not in line]) <= 2


def test_a_login_sent_in_plain_is_not_logged(lab: Lab) -> None:
    """Neither as it is nor in hexadecimal."""
    before = lab.cache.log_size()
    with lab.cache.connect() as client:
        client.ask("/v2/", {"Authorization": "Basic c2VjcmV0LW9mLWEtY2xpZW50"})
        client.rest()
    assert lab.get("/healthz").status == 200
    log = "".join(lab.cache.lines(before))
    assert "c2VjcmV0" not in log
    assert b"c2VjcmV0".hex() not in log


def test_a_handshake_that_does_not_go_on_harms_nobody(lab: Lab, ca: TestCA) -> None:
    with lab.cache.connect() as client:
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert lab.get("/healthz").status == 200
    assert lab.get("/healthz").status == 200


# Replaced certificates


def test_a_replaced_certificate_is_used(lab: Lab, ca: TestCA, pems: Path) -> None:
    context = ca.client_context()
    before = serial(lab, context)
    with shake(lab, context) as old:
        install(pems, ca.issue("127.0.0.1"))
        wait_until(lambda: serial(lab, context) != before, "the new certificate", seconds=5)
        old.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert old.recv(100).startswith(b"HTTP/1.1 200 ")


def test_broken_replacements_leave_the_old_one(lab: Lab, ca: TestCA, pems: Path) -> None:
    """Files are looked at once a second; each wrong state is said once."""
    lab.cache.expect("the certificate of before stays")
    context = ca.client_context()
    old = serial(lab, context)
    certificate, key = ca.issue("127.0.0.1")

    def stays(lines: int) -> None:
        since = lab.cache.log_size()
        end = time.monotonic() + 1.15
        while time.monotonic() < end:
            assert serial(lab, context) == old
            time.sleep(0.15)
        found = [line for line in lab.cache.lines(since) if "certificate of before stays" in line]
        assert len(found) == lines

    (pems / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    stays(1)
    (pems / "cert.pem").unlink()
    stays(0)
    shutil.copy(certificate, pems / "cert.pem")  # Its key comes later.
    stays(1)
    shutil.copy(key, pems / "key.pem")
    wait_until(lambda: serial(lab, context) != old, "the one that works", seconds=5)


# Certificates of clients


@pytest.fixture(scope="module")
def closed(shared: Starter, ca: TestCA, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A daemon that wants certificates of its clients' own authority; certificate and key are in one file."""
    directory = tmp_path_factory.mktemp("clients")
    clients = make_ca(directory / "ca")
    both = directory / "both.pem"
    certificate, key = ca.issue("127.0.0.1")
    both.write_text(certificate.read_text() + key.read_text())
    origin = shared.origin(Origin())
    config = f'tls_cert = "{both}"\nclient_ca = "{clients.ca_file}"\n{registry_table("reg.test", origin.url)}'
    context = ca.client_context()
    context.load_cert_chain(*clients.issue("a-client"))
    return Lab(shared.daemon(config, kind=tls_daemon(context)), {"o": origin}, shared.numbers)


def is_served(lab: Lab, context: ssl.SSLContext) -> bool:
    """With TLS 1.3 a client learns that its certificate is refused with the first byte that it reads."""
    try:
        with shake(lab, context) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(100) != b""
    except OSError:  # ssl.SSLError is one.
        return False


def test_a_client_with_a_certificate_is_served(closed: Lab) -> None:
    repo = closed.repo()
    image = closed.image("o", repo)
    assert_ok(closed.get(manifest_target(repo, "1.0", "reg.test")), image.manifest, "MISS")


@pytest.mark.parametrize("shown", ["none", "of another authority", "self-signed"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_a_right_one_is_not(
    closed: Lab, ca: TestCA, tmp_path: Path, shown: str, version: ssl.TLSVersion
) -> None:
    context = ca.client_context()
    context.minimum_version = context.maximum_version = version
    if shown == "of another authority":
        context.load_cert_chain(*ca.issue("a-client"))
    elif shown == "self-signed":
        context.load_cert_chain(*make_ca(tmp_path / "self").issue("a-client"))
    assert not is_served(closed, context)
    assert closed.get("/healthz").status == 200

"""A registry that is configured with http and redirects to https on the same host keeps the login; nothing else does."""

import base64
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.daemon import Daemon
from tests.hostile.peers import RawOrigin, whole
from tests.policy.conftest import Starter
from tests.support.certs import TestCA
from tests.support.images import digest_of

BLOB = b"what only those with a login get"
DIGEST = digest_of(BLOB)
SECRET = "Bearer secret"
STORED = f"Basic {base64.b64encode(b'robot:hunter2').decode()}"


@dataclass
class Asked:
    """A request as the origin got it."""

    tls: bool
    target: str
    login: str
    certificate: bool = False


class BothSchemes(RawOrigin):
    """Speaks http and https at one port, as servers do that redirect plain requests to themselves by TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(self.answer)
        self.context = context
        self.asked: list[Asked] = []
        self.elsewhere = ""

    def _serve(self, connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"\x16":
            try:
                connection = self.context.wrap_socket(connection, server_side=True)
            except OSError:
                return
        super()._serve(connection)

    def answer(self, connection: socket.socket, raw: bytes) -> None:
        tls = isinstance(connection, ssl.SSLSocket)
        lines = raw.decode("latin-1").split("\r\n")
        login = next((line.partition(": ")[2] for line in lines if line.lower().startswith("authorization:")), "")
        target = lines[0].split(" ")[1]
        certificate = isinstance(connection, ssl.SSLSocket) and bool(connection.getpeercert())
        self.asked.append(Asked(tls, target, login, certificate))
        connection.sendall(self._answer(target, login, tls=tls))

    def _answer(self, target: str, login: str, *, tls: bool) -> bytes:
        here = f"127.0.0.1:{self.port}"
        if "/away/" in target:
            return whole(b"", f"Location: {self.elsewhere}/cdn", status=307)
        if target.startswith("/back"):
            return whole(b"") if target.endswith("plain") else whole(b"", f"Location: http://{here}/back/plain", status=307)
        if not tls:
            to = "/back" if "/back/" in target else target
            return whole(b"", f"Location: https://{here}{to}", status=308)
        if target.startswith("/token"):
            return whole(b'{"token": "secret"}') if login == STORED else whole(b"", status=401)
        if "/basic/" in target and login == STORED:
            return whole(BLOB)
        if login != SECRET:
            challenge = 'Basic realm="x"' if "/basic/" in target else f'Bearer realm="http://{here}/token"'
            return whole(b"", f"WWW-Authenticate: {challenge}", status=401)
        return whole(BLOB)


@dataclass
class Site:
    """A daemon and what it asks."""

    daemon: Daemon
    origin: BothSchemes
    other: RawOrigin

    def get(self, target: str, ns: str, login: str = "", method: str = "GET") -> tuple[int, bytes]:
        self.origin.asked.clear()
        self.other.heads.clear()
        headers = {"Authorization": login} if login else {}
        reply = self.daemon.get(f"/v2/{target}?ns={ns}.test", headers, method=method)
        return reply.status, reply.body


@pytest.fixture(scope="module")
def site(shared: Starter, ca: TestCA) -> Iterator[Site]:
    context, other_context = ca.server_context("127.0.0.1"), ca.server_context("127.0.0.1")
    context.load_verify_locations(ca.ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    cert, key = ca.issue("cacheyd.test")
    with (
        BothSchemes(context) as origin,
        RawOrigin(lambda connection, _: connection.sendall(whole(BLOB)), tls=other_context) as other,
    ):
        origin.elsewhere = other.url
        here = f"127.0.0.1:{origin.port}"
        stored = 'auth = "credentials"\nusername = "robot"\npassword = "hunter2"\n'
        tables = {
            "client": f'upstream = "http://{here}"',
            "stored": f'upstream = "http://{here}"\n{stored}',
            "token": f'upstream = "http://{here}/t"\n{stored}',
            "cert": f'upstream = "http://{here}"\nclient_cert = "{cert}"\nclient_key = "{key}"',
            "tls": f'upstream = "https://{here}"',
            "both": f'upstream = ["http://{here}", "{other.url}"]',
        }
        config = f'[defaults]\nca_file = "{ca.ca_file}"\n'
        config += "".join(f'[registries."{name}.test"]\n{rows}\n' for name, rows in tables.items())
        config += f'[registries."stranger.test"]\nupstream = "http://{here}"\nca_file = ""\n'
        yield Site(shared.daemon(config), origin, other)


@pytest.mark.parametrize("what", ["tags/list", "manifests/v1", f"blobs/{DIGEST}"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_the_clients_login_is_kept(site: Site, what: str, method: str) -> None:
    status, _ = site.get(f"app/{what}", "client", SECRET, method)
    assert status in (200, 502)  # Not all of it is a manifest.
    assert {(asked.tls, asked.login) for asked in site.origin.asked} == {(False, SECRET), (True, SECRET)}


def test_a_refusal_there_is_the_clients_to_answer(site: Site) -> None:
    assert site.get("app/tags/list", "client")[0] == 401
    assert [asked.login for asked in site.origin.asked] == ["", ""]


def test_a_stored_login_is_kept(site: Site) -> None:
    assert site.get("basic/app/tags/list", "stored") == (200, BLOB)
    assert [(asked.tls, asked.login) for asked in site.origin.asked] == [
        (False, ""), (True, ""), (False, STORED), (True, STORED),
    ]  # fmt: skip


def test_a_token_service_that_redirects_to_https_gets_the_login(site: Site) -> None:
    """And the token goes the same way as the login."""
    assert site.get("app/tags/list", "token") == (200, BLOB)
    asked = [(asked.tls, asked.target.partition("?")[0].partition("/v2")[0], asked.login) for asked in site.origin.asked]
    assert asked == [
        (False, "/t", ""), (True, "/t", ""), (False, "/token", STORED), (True, "/token", STORED), (False, "/t", SECRET),
        (True, "/t", SECRET),
    ]  # fmt: skip


def test_a_client_certificate_is_shown_there(site: Site) -> None:
    assert site.get("app/tags/list", "cert", SECRET)[0] == 200
    assert [(asked.tls, asked.certificate) for asked in site.origin.asked] == [(False, False), (True, True)]
    assert site.get("app/tags/list", "client", SECRET)[0] == 200
    assert [(asked.tls, asked.certificate) for asked in site.origin.asked] == [(False, False), (True, False)]


def test_another_port_of_the_host_is_another_site(site: Site) -> None:
    assert site.get("away/app/tags/list", "client", SECRET) == (200, BLOB)
    (head,) = site.other.heads
    assert b"authorization" not in head.lower()


def test_another_port_that_is_configured_is_the_registry(site: Site) -> None:
    assert site.get("away/app/tags/list", "both", SECRET) == (200, BLOB)
    (head,) = site.other.heads
    assert f"Authorization: {SECRET}".encode() in head


def test_never_from_https_to_http(site: Site) -> None:
    assert site.get("back/app/tags/list", "client", SECRET)[0] == 200
    assert [(asked.tls, asked.target[:5], asked.login) for asked in site.origin.asked] == [
        (False, "/v2/b", SECRET), (True, "/back", SECRET), (False, "/back", ""),
    ]  # fmt: skip
    assert site.get("x/tags/list", "tls", SECRET) == (200, BLOB)
    site.origin.elsewhere, other = f"http://127.0.0.1:{site.origin.port}", site.origin.elsewhere
    assert site.get("away/app/tags/list", "tls", SECRET)[0] == 502
    site.origin.elsewhere = other
    assert len(site.origin.asked) == 1


def test_the_certificate_is_verified_there(site: Site) -> None:
    assert site.get("app/tags/list", "stranger", SECRET)[0] == 502
    assert [asked.tls for asked in site.origin.asked] == [False]

"""Addresses where no registry of others can be, in whatever notation, at each hop, with a proxy and without one."""

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from cacheyd.proxy.outbound import guard
from cacheyd.proxy.outbound.guard import forbidden_kind, forbidden_name, related_kinds
from tests.faults.daemon import Daemon
from tests.hostile.netns import ALSO_HERE, HERE, THERE, Neighbour, with_neighbour
from tests.hostile.peers import RawOrigin, head, whole
from tests.hostile.scripted import Scripted, scripted
from tests.policy.conftest import Starter
from tests.policy.lab import assert_denied
from tests.policy.test_hostile_ns import ADDRESS, needs_address
from tests.support.certs import TestCA

# What they are


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"), ("127.255.0.1", "loopback"), ("::1", "loopback"), ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("0.1.2.3", "unspecified"), ("169.254.169.254", "metadata"), ("169.254.170.2", "metadata"),
        ("169.254.0.23", "metadata"),
        ("fe80::1", "link-local"), ("fe80::1%lo", "link-local"), ("fe80::a9fe:a9fe", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"), ("100.100.100.200", "metadata"), ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"), ("fd00:c1::a9fe:a9fe", "metadata"), ("fd00:a9fe:a9fe::1", "metadata"),
        ("fd00:42::42", "metadata"),
        ("224.0.0.1", "multicast"), ("ff02::1", "multicast"), ("255.255.255.255", "reserved"), ("240.0.0.1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"), ("::ffff:a9fe:a9fe", "metadata"), ("::127.0.0.1", "loopback"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"), ("64:ff9b::a9fe:a9fe", "metadata"), ("64:ff9b:1::a9fe:a9fe", "metadata"),
        ("2002:7f00:1::", "loopback"), ("2002:a9fe:a9fe::1", "metadata"), ("2001:0:4136:e378:8000:63bf:5601:5601", "metadata"),
        ("fe80::5efe:a9fe:a9fe", "metadata"), ("2001:db8::200:5efe:7f00:1", "loopback"), ("::ffff:240.0.0.1", "reserved"),
    ],
)  # fmt: skip
def test_forbidden(address: str, kind: str) -> None:
    assert forbidden_kind(address) == kind
    assert forbidden_name(address.partition("%")[0])


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "192.0.2.1", "1.1.1.1", "168.63.129.17", "2606:4700::1111",
    "fd12::1",
     "64:ff9b::101:101", "2002:101:101::1", "::ffff:10.0.0.1", "198.51.100.7", "239.255.255.255.test"],
)  # fmt: skip
def test_not_forbidden(address: str) -> None:
    if not address.endswith("test"):
        assert forbidden_kind(address) == ""
    assert forbidden_name(address) == ""


NOTATIONS = (
    "127.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "017700000001", "2852039166", "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518", "0", "0.0", "0x0", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[0:0:0:0:0:ffff:7f00:1]", "[::1]", "[::]",
    "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "localhost", "LOCALHOST", "a.localhost", "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021", "\uff4cocalhost", "metadata.google.internal", "METADATA.google.internal", "metadata",
    "255.255.255.255",
    "168.63.129.16", "100.100.100.200",
)  # fmt: skip


@pytest.mark.parametrize("name", [*NOTATIONS, "localhost.", "127.0.0.1.", "metadata.google.internal.", "a.localhost."])
def test_forbidden_by_name(name: str) -> None:
    assert forbidden_name(name)


def test_what_belongs_together() -> None:
    """Never cloud metadata, whatever leads there; this host's interfaces are for all to see, its loopback is not."""
    assert related_kinds(["loopback"]) == {"loopback", "this host"}
    assert related_kinds(["this host", ""]) == {"this host"}
    assert related_kinds(["metadata", "multicast", "reserved", ""]) == set()


# This host


@needs_address
def test_this_hosts_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADDRESS
    own = ipaddress.ip_address(ADDRESS)
    for binds_any in (False, True):
        monkeypatch.setattr(guard, "_binds_any", lambda version, found=binds_any: found)
        assert guard.is_own(own)
        assert forbidden_kind(ADDRESS) == "this host"
        assert not guard.is_own(ipaddress.ip_address("192.0.2.7"))
        assert not guard.is_own(ipaddress.ip_address("2001:db8::7"))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where nobody is to connect to: each address of this machine."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        sock.setblocking(False)
        yield sock
        with pytest.raises(BlockingIOError):
            sock.accept()


@needs_address
def test_this_host_is_no_registry(shared: Starter, listener: socket.socket) -> None:
    daemon = shared.daemon("")
    for what in ("manifests/v1", "tags/list", "blobs/sha256:" + "0" * 64):
        for ns in (f"{ADDRESS}:{listener.getsockname()[1]}", f"[::ffff:{ADDRESS}]:{listener.getsockname()[1]}"):
            for method in ("GET", "HEAD"):
                assert daemon.get(f"/v2/acme/app/{what}?ns={quote(ns)}", method=method).status == 403
            assert daemon.get(f"/v2/{ADDRESS}:{listener.getsockname()[1]}/app/{what}").status == 403


# Behind a proxy, and redirects


@dataclass
class Proxied:
    """A daemon, all of whose requests go to `proxy`; what that answers is in `answers`, by host, and 502 for all others."""

    daemon: Daemon
    proxy: RawOrigin
    answers: dict[str, bytes]

    def hosts(self) -> list[str]:
        """Whom it was asked for since."""
        found = [raw.split(b" ")[1].decode("latin-1").removeprefix("http://").partition("/")[0] for raw in self.proxy.heads]
        self.proxy.heads.clear()
        return found


@pytest.fixture(scope="module")
def proxied(shared: Starter) -> Iterator[Proxied]:
    answers: dict[str, bytes] = {}

    def serve(connection: socket.socket, raw: bytes) -> None:
        host = raw.split(b" ")[1].decode("latin-1").removeprefix("http://").partition("/")[0]
        connection.sendall(answers.get(host, head(502, "Content-Length: 0", "Connection: close")))

    with RawOrigin(serve) as proxy:
        tables = "".join(
            f'[registries."{name}.test"]\nupstream = "http://{host}"\n'
            for name, host in (("named", "upstream.test:5000"), ("loop", "127.0.0.1:5000"), ("cloud", "169.254.1.1"))
        )
        yield Proxied(shared.daemon(f'[defaults]\nproxy = "{proxy.url}"\n{tables}'), proxy, answers)


@pytest.mark.parametrize("host", NOTATIONS)
@pytest.mark.parametrize("port", ["", ":8080"])
def test_a_proxy_is_not_asked_for_them(proxied: Proxied, host: str, port: str) -> None:
    proxied.hosts()
    assert_denied(proxied.daemon.get(f"/v2/acme/app/manifests/v1?ns={quote(host + port)}"))
    assert proxied.daemon.get(f"/v2/acme/app/tags/list?ns={quote(host + port)}", method="HEAD").status == 403
    assert proxied.hosts() == []


@needs_address
def test_a_proxy_is_not_asked_for_this_host(proxied: Proxied) -> None:
    proxied.hosts()
    assert_denied(proxied.daemon.get(f"/v2/acme/app/manifests/v1?ns={ADDRESS}:3000"))
    assert proxied.hosts() == []


def test_a_proxy_is_asked_for_others(proxied: Proxied) -> None:
    proxied.hosts()
    for ns in ("reg.test", "10.1", "[fd12::1]:5000"):
        assert proxied.daemon.get(f"/v2/acme/app/manifests/v1?ns={quote(ns)}").status == 502
    assert proxied.hosts() == ["reg.test:443", "10.0.0.1:443", "[fd12::1]:5000"]


TARGETS = (
    "169.254.169.254",
    "2852039166",
    "[::ffff:a9fe:a9fe]",
    "metadata.google.internal.",
    "168.63.129.16",
    "[fd00:ec2::254]",
)


@pytest.mark.parametrize("to", [*TARGETS, "127.1", "localhost", "0x7f000001:5000"])
@pytest.mark.parametrize("status", [301, 307])
def test_a_configured_registry_does_not_lead_there(proxied: Proxied, to: str, status: int) -> None:
    proxied.hosts()
    proxied.answers["upstream.test:5000"] = head(status, f"Location: http://{to}/x", "Content-Length: 0", "Connection: close")
    assert proxied.daemon.get("/v2/acme/app/manifests/v1?ns=named.test").status == 403
    assert proxied.daemon.get("/v2/acme/app/manifests/v1?ns=named.test", method="HEAD").status == 403
    assert proxied.hosts() == ["upstream.test:5000"] * 2


@pytest.mark.parametrize("to", [*TARGETS, "169.254.1.2"])
@pytest.mark.parametrize("registry", ["loop.test", "cloud.test"])
def test_nor_does_one_at_such_an_address(proxied: Proxied, registry: str, to: str) -> None:
    upstream = {"loop.test": "127.0.0.1:5000", "cloud.test": "169.254.1.1"}[registry]
    proxied.answers[upstream] = head(307, f"Location: http://{to}/x", "Content-Length: 0", "Connection: close")
    proxied.hosts()
    assert proxied.daemon.get(f"/v2/acme/app/manifests/v1?ns={registry}").status == 403
    assert proxied.hosts() == [upstream]


def test_what_belongs_to_a_configured_one_is_reached(proxied: Proxied) -> None:
    proxied.answers["127.0.0.1:5000"] = head(307, "Location: http://127.1:6000/x", "Content-Length: 0", "Connection: close")
    proxied.answers["127.0.0.1:6000"] = whole(b"{}", status=404)
    proxied.hosts()
    assert proxied.daemon.get("/v2/acme/app/manifests/v1?ns=loop.test").status == 404
    assert proxied.hosts() == ["127.0.0.1:5000", "127.0.0.1:6000"]


@pytest.mark.parametrize("to", TARGETS)
def test_a_token_service_behind_a_proxy(proxied: Proxied, to: str) -> None:
    """Clients that name the registry in the path: cacheyd asks for a token itself."""
    proxied.answers["upstream.test:5000"] = whole(b"{}", f'WWW-Authenticate: Bearer realm="http://{to}/token"', status=401)
    proxied.hosts()
    assert proxied.daemon.get("/v2/named.test/app/manifests/v1").status == 401
    assert proxied.hosts() == ["upstream.test:5000"]


# Without a proxy


@pytest.fixture(scope="module")
def direct(shared: Starter) -> Iterator[Scripted]:
    with scripted(shared) as found:
        yield found


@pytest.mark.parametrize("to", [*(to for to in TARGETS if "google" not in to), "255.255.255.255", "[64:ff9b::a9fe:a9fe]"])
def test_a_registry_at_loopback_leads_to_loopback_only(direct: Scripted, to: str) -> None:
    for method in ("GET", "HEAD"):
        ns = direct.registry(head(307, f"Location: http://{to}:80/x", "Content-Length: 0", "Connection: close"))
        assert direct.get(ns, method=method).status == 403
        assert direct.get(ns, "blobs/sha256:" + "0" * 64, method=method).status == 403
    cdn = direct.registry(whole(b"{}", status=404)).removesuffix(".test")
    for host in ("127.1", "127.0.0.2", "2130706433"):
        location = f"http://{host}:{direct.origin.port}/{cdn}/x"
        ns = direct.registry(head(307, f"Location: {location}", "Content-Length: 0", "Connection: close"))
        reached = direct.get(ns)
        assert reached.status == (502 if host == "127.0.0.2" else 404), host


@needs_address
def test_a_registry_at_loopback_leads_to_this_host(direct: Scripted) -> None:
    """What an operator runs on this machine may be known by its address in the network."""
    ns = direct.registry(head(307, f"Location: http://{ADDRESS}:1/x", "Content-Length: 0", "Connection: close"))
    assert direct.get(ns).status == 502, "asked, and nothing is there"


# A registry that is elsewhere, and not configured


def test_a_registry_of_others(shared: Starter, ca: TestCA) -> None:
    """It is asked; what is at this host, or where it leads to, is not."""

    def check(neighbour: Neighbour) -> None:
        answers = {"/v2/good/tags/list": whole(b"{}")}

        def answer(connection: socket.socket, raw: bytes) -> None:
            connection.sendall(answers[raw.split(b" ")[1].decode()])

        tls = ca.server_context(THERE)
        with (
            neighbour.call(lambda: RawOrigin(answer, tls=tls, host=THERE)) as registry,
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as here,
        ):
            here.setblocking(False)
            port = here.getsockname()[1]
            daemon = shared.daemon(f'[defaults]\nca_file = "{ca.ca_file}"\n')
            ns = f"{THERE}:{registry.port}"
            assert daemon.get(f"/v2/good/tags/list?ns={ns}").body == b"{}"
            ways = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "169.254.169.254", "[fe80::1]", HERE, ALSO_HERE)
            for number, host in enumerate(ways):
                location = f"https://{host}:{port}/x"
                answers[f"/v2/a{number}/tags/list"] = head(307, f"Location: {location}", "Content-Length: 0")
                answers[f"/v2/b{number}/tags/list"] = whole(b"", f'WWW-Authenticate: Bearer realm="{location}"', status=401)
                assert daemon.get(f"/v2/a{number}/tags/list?ns={ns}").status == 403, host
                assert daemon.get(f"/v2/{ns}/b{number}/tags/list").status == 401
            for own in (HERE, ALSO_HERE, f"[::ffff:{ALSO_HERE}]"):
                assert_denied(daemon.get(f"/v2/good/tags/list?ns={own}:{port}"))
                assert_denied(daemon.get(f"/v2/good/tags/list?ns={own}:{daemon.port}"))
            with pytest.raises(BlockingIOError):
                here.accept()
            assert daemon.get(f"/v2/good/tags/list?ns={ns}").body == b"{}"
            assert daemon.problems() == []
            assert daemon.stop() == 0

    with_neighbour(check)

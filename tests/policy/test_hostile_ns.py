"""Registries that are none, that nobody may ask for, or that are at addresses where no registry of others can be."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote

import pytest

from cacheyd.proxy.outbound.guard import forbidden_name
from tests.faults.client import Stopwatch
from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_denied, assert_ok, error_code
from tests.support.certs import TestCA
from tests.support.origin import Origin


def own_address() -> str | None:
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(sock.getsockname()[0])
    return None if address.startswith("127.") else address


ADDRESS = own_address()
needs_address = pytest.mark.skipif(ADDRESS is None, reason="this machine has loopback only")


class Elsewhere(Origin):
    """An origin on this machine's own address, which is not loopback: what is there is for all to see."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(tls=tls)
        self.host = ADDRESS or "127.0.0.1"


@pytest.fixture(scope="module")
def lab(shared: Starter, ca: TestCA) -> Lab:
    origin, cdn = shared.origin(Origin()), shared.origin(Origin(tls=ca.server_context("127.0.0.1")))
    context = ca.server_context(ADDRESS or "127.0.0.1")
    elsewhere, configured = shared.origin(Elsewhere(context)), shared.origin(Elsewhere(context))
    config = f"""
        deny = ["denied.test", "*.evil.test", "docker.io"]
        [defaults]
        ca_file = "{ca.ca_file}"
        [registries."good.test"]
        upstream = "{origin.url}"
        [registries."denied.test"]
        upstream = "{origin.url}"
        [registries."a.evil.test"]
        upstream = "{origin.url}"
        [registries."docker.io"]
        upstream = "{origin.url}"
        [registries."configured.test"]
        upstream = "{configured.url}"
        [registries."{ADDRESS or "10.0.0.1"}:{elsewhere.port}"]
        upstream = "{elsewhere.url}"
    """
    return shared.lab(config, {"o": origin, "cdn": cdn, "elsewhere": elsewhere, "configured": configured})


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where nobody is to connect to: each address of this machine, IPv4 and IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        sock.setblocking(False)
        yield sock
        with pytest.raises(BlockingIOError):
            sock.accept()


# What is no registry


@pytest.mark.parametrize(
    "ns",
    [
        "user@good.test", "user:pw@good.test", "good.test/path", "good.test?x", "good.test#x", "https://good.test",
        "good.test:0", "good.test:65536", "good.test:99999", "good.test:-1", "good.test:x", "good.test:", ":80",
        " good.test", "good.test ", "go od.test", "good.test\r\nX-Evil: 1", "good.test\n", "good.test\x00", "\x7f.test",
        ".good.test", "good..test", "good.test.", "-good.test", "[::1", "[::1]x", "[zz]", "[::1%25lo]", "*", "..",
        "a" * 300 + ".test", "good.test,evil.test", "good.test;x", "good.test\\x", "\u2028.test", "good.test:\uff180:1",
    ],
)  # fmt: skip
def test_what_is_no_registry_is_400(lab: Lab, ns: str) -> None:
    repo = lab.repo()
    image = lab.image("o", repo)
    reply = lab.get(f"/v2/{repo}/manifests/1.0?ns={quote(ns, safe='')}")
    assert (reply.status, error_code(reply)) == (400, "NAME_INVALID")
    assert lab.asked("o", repo) == []
    assert lab.get(f"/v2/{repo}/blobs/{image.config.digest}?ns={quote(ns, safe='')}", method="HEAD").status == 400


@pytest.mark.parametrize("ns", ["GOOD.TEST", "Good.Test", "\uff47ood.test", "good\u3002test", "good%2Etest"])
def test_names_that_mean_the_same(lab: Lab, ns: str) -> None:
    repo = lab.repo()
    image = lab.image("o", repo)
    assert_ok(lab.pull(manifest_target(repo, "1.0", "good.test")), image.manifest, "MISS")
    quoted = ns if "%" in ns else quote(ns, safe="")
    reply = lab.get(f"/v2/{repo}/manifests/1.0?ns={quoted}")
    assert_ok(reply, image.manifest, "HIT")
    assert reply.header("X-Proxied-For") == "good.test"


def test_idna(lab: Lab) -> None:
    """The name that goes to DNS is ASCII; what the client called it comes back in no header that could break one."""
    reply = lab.get(f"/v2/{lab.repo()}/manifests/1.0?ns={quote('bücher.invalid')}")
    assert reply.status in (502, 503, 504)
    assert reply.header("X-Proxied-For") == "xn--bcher-kva.invalid"


# What may not be asked for


@pytest.mark.parametrize(
    "ns",
    [
        "denied.test", "DENIED.test", "\uff44enied.test", "a.evil.test", "b.evil.test", "x.y.evil.test", "docker.io",
        "registry-1.docker.io", "index.docker.io", "denied.test:443",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["tag", "blob", "tags"])
def test_a_denied_registry_is_403_and_not_asked(lab: Lab, ns: str, kind: str) -> None:
    repo = lab.repo()
    image = lab.image("o", repo)
    what = {"tag": "manifests/1.0", "blob": f"blobs/{image.config.digest}", "tags": "tags/list"}[kind]
    reply = lab.get(f"/v2/{repo}/{what}?ns={quote(ns)}")
    assert_denied(reply)
    assert lab.asked("o", repo) == []
    assert lab.get(f"/v2/{repo}/{what}?ns={quote(ns)}", method="HEAD").status == 403


def test_a_denied_registry_in_the_path(lab: Lab) -> None:
    assert_denied(lab.get(f"/v2/denied.test/{lab.repo()}/manifests/1.0"))


@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_a_denied_registry_serves_nothing_from_disk(lab: Lab, kind: str) -> None:
    """Objects are shared by digest; a registry that does not exist here has none."""
    repo = lab.repo()
    image = lab.image("o", repo)
    target = blob_target if kind == "blob" else manifest_target
    digest = image.config.digest if kind == "blob" else image.digest
    lab.pull(target(repo, digest, "good.test"))
    assert_denied(lab.get(target(repo, digest, "denied.test")))


def test_what_only_looks_denied_is_asked_for(lab: Lab) -> None:
    for ns in ("undenied.test", "evil.test"):
        assert lab.get(manifest_target(lab.repo(), "1.0", ns)).status in (502, 503, 504)


def test_only_what_is_allowed(own: Starter) -> None:
    origin = own.origin(Origin())
    names = ("good.test", "a.corp.test", "other.test", "xgood.test", "good.test.evil.test", "denied.corp.test")
    tables = "".join(f'[registries."{name}"]\nupstream = "{origin.url}"\n' for name in names)
    head = 'allow = ["good.test", "*.corp.test"]\ndeny = ["denied.*"]\ndefault_registry = "good.test"\n'
    lab = own.lab(head + tables, {"o": origin})
    for name in names:
        repo = lab.repo()
        image = lab.image("o", repo)
        reply = lab.get(manifest_target(repo, "1.0", name))
        if name in names[:2]:
            assert_ok(reply, image.manifest, "MISS")
        else:
            assert_denied(reply)
            assert lab.asked("o", repo) == []
    repo = lab.repo()
    image = lab.image("o", repo)
    assert_ok(lab.get(f"/v2/{repo}/manifests/1.0"), image.manifest, "MISS")


# Where no registry of others can be

ADDRESSES = [
    "127.0.0.1:{port}", "127.0.0.2:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}", "0.0.0.0:{port}",
    "[::]:{port}", "[::ffff:127.0.0.1]:{port}", "[::ffff:7f00:1]:{port}", "[0:0:0:0:0:ffff:7f00:1]:{port}", "127.1:{port}",
    "2130706433:{port}", "0x7f000001:{port}", "0177.0.0.1:{port}", "0:{port}", "169.254.169.254", "169.254.169.254:80",
    "[fe80::1]:80", "[::ffff:169.254.169.254]", "224.0.0.1", "[ff02::1]", "127\u30020\u30020\u30021:{port}",
    "\uff4cocalhost:{port}",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_forbidden_addresses(lab: Lab, listener: socket.socket, address: str) -> None:
    ns = address.format(port=listener.getsockname()[1])
    watch = Stopwatch()
    assert_denied(lab.get(f"/v2/{lab.repo()}/manifests/1.0?ns={quote(ns, safe='')}"))
    assert watch.seconds < 0.9


def test_forbidden_addresses_again_and_again(lab: Lab, listener: socket.socket) -> None:
    """It is no failure of an upstream: nothing is dead, every kind of request gets the same answer."""
    ns = f"127.0.0.1:{listener.getsockname()[1]}"
    digest = "sha256:" + "0" * 64
    for _ in range(3):
        for what in ("manifests/1.0", f"manifests/{digest}", f"blobs/{digest}", "tags/list", f"referrers/{digest}"):
            assert_denied(lab.get(f"/v2/{lab.repo()}/{what}?ns={ns}"))
            assert lab.get(f"/v2/{lab.repo()}/{what}?ns={ns}", method="HEAD").status == 403
    assert lab.cache.metric("cacheyd_upstreams_dead") == 0


@pytest.mark.parametrize("path", ["localhost/x/img", "127.0.0.1:{port}/x/img", "127.0.0.1/x"])
def test_forbidden_addresses_in_the_path(lab: Lab, listener: socket.socket, path: str) -> None:
    assert_denied(lab.get(f"/v2/{path.format(port=listener.getsockname()[1])}/manifests/1.0"))


def test_a_request_to_itself(lab: Lab) -> None:
    before = lab.cache.metric("cacheyd_requests_total")
    for ns in (f"127.0.0.1:{lab.cache.port}", f"localhost:{lab.cache.port}"):
        # mitmproxy itself refuses to connect to its own listener.
        assert lab.get(manifest_target(lab.repo(), "1.0", ns)).status in (403, 502)
    assert lab.cache.metric("cacheyd_requests_total") == before + 2


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1"])
def test_forbidden_names_behind_a_proxy(name: str) -> None:
    assert forbidden_name(name)
    assert not forbidden_name(f"x{name}.example".replace(":", "-"))


@needs_address
def test_an_address_of_this_host_is_asked_only_where_it_is_configured(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("elsewhere", repo)
    ns = f"{ADDRESS}:{lab.origins['elsewhere'].port}"
    assert_ok(lab.get(manifest_target(repo, "1.0", ns)), image.manifest, "MISS")
    repo = lab.repo()
    lab.image("configured", repo)
    assert_denied(lab.get(manifest_target(repo, "1.0", f"{ADDRESS}:{lab.origins['configured'].port}")))
    assert lab.asked("configured", repo) == []


@needs_address
@pytest.mark.parametrize("registry", ["elsewhere", "configured"])
@pytest.mark.parametrize("to", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_a_redirect_to_a_forbidden_address(lab: Lab, listener: socket.socket, registry: str, to: str) -> None:
    """Also from a configured registry, if that one is not at such an address itself."""
    repo = lab.repo()
    blob = lab.blob(registry, repo)
    origin = lab.origins[registry]
    ns = "configured.test" if registry == "configured" else f"{ADDRESS}:{origin.port}"
    fault = origin.fault(blob.digest, redirect=f"https://{to}:{listener.getsockname()[1]}/blob")
    assert_denied(lab.get(blob_target(repo, blob.digest, ns)))
    assert lab.get(blob_target(repo, blob.digest, ns), method="HEAD").status == 403
    fault.remove()
    assert_ok(lab.get(blob_target(repo, blob.digest, ns)), blob.data)


@needs_address
@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:{port}/", "http://{address}:{port}/", "ftp://x/", "file:///etc/passwd", "https://a:b@x/"]
)  # fmt: skip
def test_redirects_that_are_not_followed(lab: Lab, listener: socket.socket, location: str) -> None:
    repo = lab.repo()
    blob = lab.blob("elsewhere", repo)
    origin = lab.origins["elsewhere"]
    url = location.format(port=listener.getsockname()[1], address=ADDRESS)
    fault = origin.fault(blob.digest, redirect=url)
    assert lab.get(blob_target(repo, blob.digest, f"{ADDRESS}:{origin.port}")).status in (403, 502)
    fault.remove()


@needs_address
def test_a_token_service_at_a_forbidden_address(lab: Lab, listener: socket.socket) -> None:
    """Clients without a login that name the registry in the path: cacheyd itself asks for an anonymous token."""
    repo = lab.repo()
    lab.image("elsewhere", repo)
    origin = lab.origins["elsewhere"]
    challenge = f'Bearer realm="https://127.0.0.1:{listener.getsockname()[1]}/token",service="x"'
    fault = origin.fault(repo, status=401, headers=[("WWW-Authenticate", challenge)])
    for _ in range(3):
        reply = lab.get(f"/v2/{ADDRESS}:{origin.port}/{repo}/manifests/1.0")
        assert reply.status in (401, 403)
    fault.remove()
    assert lab.get(f"/v2/{ADDRESS}:{origin.port}/{repo}/manifests/1.0").status == 200

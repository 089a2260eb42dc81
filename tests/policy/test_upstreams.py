"""How upstreams are reached: base URLs, TLS, proxies, several in turn, and how many at once."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.client import Client, ClosedError, Stopwatch
from tests.faults.scene import blob_target, closed_port, deaf_listener, eventually, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import STREAMED, Lab, ask_all, assert_ok, basic, login, statuses, target_of
from tests.policy.origins import BasedOrigin, LoginOrigin
from tests.policy.proxy import HttpProxy
from tests.support.certs import TestCA
from tests.support.origin import Origin

KINDS = pytest.mark.parametrize("kind", ["tag", "digest", "blob"])
BASE = "/artifactory/api/docker/hub"
PROXY_LOGIN = basic("me", "p@ss:word")
CLIENT = "Bearer of-the-client"


def table(name: str, url: str | list[str], *lines: str) -> str:
    """The configuration of a registry."""
    upstream = url if isinstance(url, list) else [url]
    listed = ", ".join(f'"{each}"' for each in upstream)
    return "\n".join((f'[registries."{name}.test"]', f"upstream = [{listed}]", *lines, ""))


def make_mutual(ca: TestCA) -> ssl.SSLContext:
    """A server's context that wants a client's certificate of the same authority."""
    context = ca.server_context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca.ca_file)
    return context


@pytest.fixture(scope="module")
def proxies(shared: Starter) -> dict[str, HttpProxy]:
    return {}


@pytest.fixture(scope="module")
def lab(shared: Starter, ca: TestCA, proxies: dict[str, HttpProxy]) -> Iterator[Lab]:
    origins: dict[str, Origin] = {"based": shared.origin(BasedOrigin(BASE)), "slashed": shared.origin(BasedOrigin("/mirror"))}
    origins |= {name: shared.origin(Origin()) for name in ("plain", "first", "second", "limited", "cdn")}
    origins |= {name: shared.origin(Origin(tls=ca.server_context("127.0.0.1"))) for name in ("tls", "tls-cdn")}
    origins["mutual"] = shared.origin(Origin(tls=make_mutual(ca)))
    origins["named"] = shared.origin(Origin(tls=ca.server_context("hub.internal")))
    origins["other-name"] = shared.origin(Origin(tls=ca.server_context("other.internal")))
    origins["login"] = shared.origin(LoginOrigin())
    origins["login"].require_basic("robot", "pw")
    origins["login"].require_token()
    origins["tls"].redirect_blobs_to(origins["tls-cdn"])
    origins["tls-cdn"].serve_cdn(origins["tls"])
    certificate, key = ca.issue("the-client")
    both = certificate.with_name("both.pem")
    both.write_text(certificate.read_text() + key.read_text())
    trust = f'ca_file = "{ca.ca_file}"'
    insecure = "insecure_skip_verify = true"
    with ExitStack() as running:
        hosts = {
            "hub.internal": origins["named"].port,
            "plain.internal": origins["plain"].port,
            "login.internal": origins["login"].port,
            "127.0.0.1": origins["login"].port,
        }
        proxies["free"] = running.enter_context(HttpProxy(hosts))
        proxies["login"] = running.enter_context(HttpProxy(hosts, PROXY_LOGIN))
        free, with_login = f"http://{proxies['free'].address}", f"http://me:p%40ss%3Aword@{proxies['login'].address}"
        deaf = f"http://127.0.0.1:{running.enter_context(deaf_listener()).getsockname()[1]}"
        refused = f"http://127.0.0.1:{closed_port()}"
        second = origins["second"].url
        config = "".join(
            (
                table("based", f"{origins['based'].url}{BASE}"),
                table("slashed", f"{origins['slashed'].url}/mirror/"),
                table("plain", origins["plain"].url),
                table("tls", origins["tls"].url, trust),
                table("untrusted", origins["tls"].url),
                table("insecure", origins["named"].url, insecure),
                table("wrongname", origins["other-name"].url, trust),
                table("mutual", origins["mutual"].url, trust, f'client_cert = "{certificate}"', f'client_key = "{key}"'),
                table("mutual-both", origins["mutual"].url, trust, f'client_cert = "{both}"'),
                table("mutual-without", origins["mutual"].url, trust),
                table("proxied", "http://plain.internal", f'proxy = "{free}"'),
                table("proxied-login", "http://plain.internal", f'proxy = "{with_login}"'),
                table("tunnel", "https://hub.internal", trust, f'proxy = "{free}"'),
                table("tunnel-login", "https://hub.internal", trust, f'proxy = "{with_login}"'),
                table("tunnel-untrusted", "https://hub.internal", f'proxy = "{free}"'),
                table("refused-by-proxy", "http://plain.internal", f'proxy = "http://{proxies["login"].address}"'),
                table("refused-tunnel", "https://hub.internal", trust, f'proxy = "http://{proxies["login"].address}"'),
                table("no-proxy-there", "http://plain.internal", f'proxy = "{refused}"'),
                table("no-tunnel-there", "https://hub.internal", trust, f'proxy = "{refused}"'),
                table(
                    "stored", origins["login"].url, f'proxy = "{with_login}"', 'auth = "credentials"',
                    'username = "robot"', 'password = "pw"',
                ),
                table("two", [origins["first"].url, second]),
                table("refused-first", [refused, second]),
                table("deaf-first", [deaf, second]),
                table("all-bad", [refused, origins["first"].url]),
                table("limited", origins["limited"].url, "max_fetches = 2"),
            )
        )  # fmt: skip
        yield shared.lab(config, origins)


# Base URLs


@KINDS
@pytest.mark.parametrize("registry", ["based", "slashed"])
def test_a_base_url_with_a_path(lab: Lab, registry: str, kind: str) -> None:
    repo = lab.repo()
    image = lab.image(registry, repo)
    reply = lab.pull(target_of(kind, repo, image, f"{registry}.test"))
    assert_ok(reply, image.layers[0].data if kind == "blob" else image.manifest, "MISS")
    base = BASE if registry == "based" else "/mirror"
    assert all(request.path.startswith(f"{base}/v2/{repo}/") for request in lab.asked(registry, repo))
    assert lab.get(target_of(kind, repo, image, f"{registry}.test")).cache == "HIT"


def test_lists_below_a_path(lab: Lab) -> None:
    repo = lab.repo()
    lab.image("based", repo)
    assert b"1.0" in lab.get(f"/v2/{repo}/tags/list?n=5&ns=based.test").body
    assert [request.target for request in lab.asked("based", repo)] == [f"{BASE}/v2/{repo}/tags/list?n=5"]


def test_a_relative_redirect_below_a_path(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("based", repo)
    moved = f"{BASE}/v2/{repo}/blobs/{blob.digest}?moved=1"
    lab.origins["based"].fault(rf"^GET .*/blobs/{blob.digest}$", redirect=moved)
    assert_ok(lab.get(blob_target(repo, blob.digest, "based.test")), blob.data)
    assert lab.asked("based", repo)[-1].target == moved


# TLS


@KINDS
@pytest.mark.parametrize("registry", ["tls", "mutual", "mutual-both", "insecure"])
def test_tls(lab: Lab, registry: str, kind: str) -> None:
    origin = {"insecure": "named", "mutual-both": "mutual"}.get(registry, registry)
    repo = lab.repo()
    image = lab.image(origin, repo)
    assert_ok(
        lab.get(target_of(kind, repo, image, f"{registry}.test")),
        image.layers[0].data if kind == "blob" else image.manifest,
        "MISS",
    )


def test_a_large_blob_over_tls_from_a_cdn(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("tls", repo, 8 << 20)
    assert_ok(lab.get(blob_target(repo, blob.digest, "tls.test")), blob.data)
    assert lab.origins["tls-cdn"].count("GET", blob.digest.partition(":")[2]) == 1


@pytest.mark.parametrize("registry", ["untrusted", "wrongname", "mutual-without", "tunnel-untrusted"])
def test_tls_that_does_not_fit_is_502(lab: Lab, registry: str) -> None:
    assert lab.get(manifest_target(lab.repo(), "1.0", f"{registry}.test")).status in (502, 503)


# Proxies


@pytest.mark.parametrize(
    ("registry", "proxy", "origin"),
    [
        ("proxied", "free", "plain"),
        ("proxied-login", "login", "plain"),
        ("tunnel", "free", "named"),
        ("tunnel-login", "login", "named"),
    ],
)
@KINDS
def test_through_a_proxy(lab: Lab, proxies: dict[str, HttpProxy], registry: str, proxy: str, origin: str, kind: str) -> None:
    repo = lab.repo()
    image = lab.image(origin, repo)
    proxies[proxy].heads.clear()
    reply = lab.pull(target_of(kind, repo, image, f"{registry}.test"), login(CLIENT))
    assert_ok(reply, image.layers[0].data if kind == "blob" else image.manifest, "MISS")
    (asked,) = lab.asked(origin, repo)
    host = "hub.internal" if "tunnel" in registry else "plain.internal"
    assert asked.host == host
    assert asked.target.startswith("/v2/")
    assert asked.header("Authorization") == CLIENT
    assert asked.header("Proxy-Authorization") is None
    if "tunnel" not in registry:
        assert proxies[proxy].lines[0].startswith(f"GET http://{host}/v2/{repo}/")
    assert not any(CLIENT.encode() in head for head in proxies[proxy].heads if head.startswith(b"CONNECT"))
    assert lab.get(target_of(kind, repo, image, f"{registry}.test")).cache == "HIT"


def test_a_tunnel_is_kept_for_the_next_request(lab: Lab, proxies: dict[str, HttpProxy]) -> None:
    repo = lab.repo()
    blobs = [lab.blob("named", repo) for _ in range(4)]
    proxies["free"].heads.clear()
    for blob in blobs:
        assert_ok(lab.pull(blob_target(repo, blob.digest, "tunnel.test")), blob.data)
    assert len(proxies["free"].heads) <= 1


def test_a_large_blob_through_a_proxy(lab: Lab) -> None:
    repo = lab.repo()
    blob, other = lab.blob("plain", repo, 4 << 20), lab.blob("named", repo, 4 << 20)
    assert_ok(lab.get(blob_target(repo, blob.digest, "proxied-login.test")), blob.data)
    assert_ok(lab.get(blob_target(repo, other.digest, "tunnel-login.test")), other.data)


def test_a_stored_login_through_a_proxy(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("login", repo)
    for kind in ("tag", "blob"):
        assert lab.pull(target_of(kind, repo, image, "stored.test"), login(CLIENT)).cache == "MISS"
    requests = lab.origins["login"].requests
    assert {request.header("Authorization") for request in requests if request.path == "/token"} == {basic("robot", "pw")}
    assert not any(request.header("Proxy-Authorization") for request in requests)


@pytest.mark.parametrize("registry", ["refused-by-proxy", "refused-tunnel", "no-proxy-there", "no-tunnel-there"])
def test_a_proxy_that_does_not_serve_is_5xx(lab: Lab, registry: str) -> None:
    """Also its 407: it is no answer of the registry, and none that a client could do anything with."""
    watch = Stopwatch()
    reply = lab.get(manifest_target(lab.repo(), "1.0", f"{registry}.test"))
    assert reply.status in (502, 503)
    assert reply.header("Proxy-Authenticate") is None
    assert watch.seconds < 2


# Several upstreams


@KINDS
def test_the_first_upstream_is_asked_and_no_other(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    image = lab.image("first", repo)
    assert lab.get(target_of(kind, repo, image, "two.test")).status == 200
    assert lab.asked("second", repo) == []


@KINDS
@pytest.mark.parametrize("registry", ["refused-first", "deaf-first", "two"])
def test_the_second_upstream_helps_out(lab: Lab, registry: str, kind: str) -> None:
    repo = lab.repo()
    image = lab.image("second", repo)
    fault = lab.origins["first"].fault(repo, status=503)
    reply = lab.get(target_of(kind, repo, image, f"{registry}.test"), login(CLIENT))
    fault.remove()
    assert_ok(reply, image.layers[0].data if kind == "blob" else image.manifest, "MISS")
    assert {request.header("Authorization") for request in lab.asked("second", repo)} == {CLIENT}


def test_a_deaf_first_upstream_costs_its_timeout_once(lab: Lab) -> None:
    repo = lab.repo()
    blobs = [lab.blob("second", repo) for _ in range(5)]
    lab.get(blob_target(repo, blobs[0].digest, "deaf-first.test"))
    watch = Stopwatch()
    for blob in blobs[1:]:
        assert_ok(lab.get(blob_target(repo, blob.digest, "deaf-first.test")), blob.data)
    assert watch.seconds < 0.9


def test_a_first_upstream_that_says_no_is_believed(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("second", repo)
    for status in (401, 403, 404):
        fault = lab.origins["first"].fault(repo, status=status)
        assert lab.get(target_of("digest", repo, image, "two.test")).status == status
        fault.remove()
    assert lab.asked("second", repo) == []


def test_no_upstream_that_serves_is_the_last_ones_answer(lab: Lab) -> None:
    repo = lab.repo()
    fault = lab.origins["first"].fault(repo, status=503, body=b"down for cleaning")
    reply = lab.get(manifest_target(repo, "1.0", "all-bad.test"))
    fault.remove()
    assert (reply.status, reply.body) == (503, b"down for cleaning")


def test_a_blob_that_the_first_upstream_breaks_off_is_resumed_at_the_second(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("first", repo, STREAMED)
    lab.origins["second"].add_blob(repo, blob.data)
    lab.origins["first"].fault(f"^GET .*{blob.digest}", status=502)
    lab.origins["first"].fault(f"^GET .*{blob.digest}", times=1, cut_after=STREAMED // 2)
    assert_ok(lab.get(blob_target(repo, blob.digest, "two.test")), blob.data)
    (resumed,) = lab.asked("second", repo)
    assert resumed.header("Range") is not None


# How many at once


@contextmanager
def held(origin: Origin, pattern: str) -> Iterator[threading.Event]:
    """Answers wait before their heads until the event is set."""
    event = threading.Event()
    fault = origin.fault(pattern, hold=event, hold_at=-1)
    try:
        yield event
    finally:
        fault.remove()
        event.set()


def test_max_fetches_and_whose_turn_it_is(own: Starter) -> None:
    """At most two at once, the others in the order in which they came."""
    origin = own.origin(Origin())
    lab = own.lab(table("limited", origin.url, "max_fetches = 2"), {"o": origin}, {"head_timeout": "8s"})
    repo = lab.repo()
    blobs = [lab.blob("o", repo) for _ in range(6)]
    with ExitStack() as clients, held(origin, repo) as release:
        asking = []
        for number, blob in enumerate(blobs):
            asking += ask_all(lab.cache, [blob_target(repo, blob.digest, "limited.test")], clients)
            lab.wait_waiting(number + 1)
        lab.wait_asked("o", repo, 2)
        time.sleep(0.1)
        assert len(lab.asked("o", repo)) == 2
        release.set()
        for client, blob in zip(asking, blobs, strict=True):
            assert_ok(client.read_reply(), blob.data)
    assert [request.path.rpartition("/")[2] for request in lab.asked("o", repo)] == [blob.digest for blob in blobs]


def test_one_registrys_limit_is_not_another_ones(lab: Lab) -> None:
    repo, other = lab.repo(), lab.repo()
    blobs = [lab.blob("limited", repo) for _ in range(3)]
    image = lab.image("plain", other)
    with ExitStack() as clients, held(lab.origins["limited"], repo):
        ask_all(lab.cache, [blob_target(repo, blob.digest, "limited.test") for blob in blobs], clients)
        lab.wait_asked("limited", repo, 2)
        assert_ok(lab.get(manifest_target(other, "1.0", "plain.test")), image.manifest)


def test_a_client_that_leaves_while_it_waits_takes_no_turn(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("limited", repo)
    tags = [manifest_target(repo, tag, "limited.test") for tag in ("1.0", "a", "b", "c", "d")]
    with ExitStack() as clients, held(lab.origins["limited"], repo) as release:
        asking = ask_all(lab.cache, tags[1:3], clients, None)
        lab.wait_asked("limited", repo, 2)
        for leaving in ask_all(lab.cache, tags[3:] * 2, clients):
            leaving.leave()
        release.set()
        assert statuses(client.read_reply() for client in asking) == [404, 404]
        assert_ok(lab.get(tags[0]), image.manifest)


@pytest.fixture(scope="module")
def tight(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    settings = {"max_flights": "2", "max_waiting": "4", "max_connections": "12"}
    return shared.lab(table("tight", origin.url), {"o": origin}, settings)


def test_max_flights(tight: Lab) -> None:
    repo = tight.repo()
    blobs = [tight.blob("o", repo) for _ in range(4)]
    with ExitStack() as clients, held(tight.origins["o"], repo) as release:
        asking = ask_all(tight.cache, [blob_target(repo, blob.digest, "tight.test") for blob in blobs], clients)
        tight.wait_waiting(4)
        tight.wait_asked("o", repo, 2)
        time.sleep(0.1)
        assert len(tight.asked("o", repo)) == 2
        release.set()
        for client, blob in zip(asking, blobs, strict=True):
            assert_ok(client.read_reply(), blob.data)


def test_a_flight_that_waits_too_long_for_its_turn_is_503(tight: Lab) -> None:
    repo = tight.repo()
    blobs = [tight.blob("o", repo, STREAMED) for _ in range(3)]
    targets = [blob_target(repo, blob.digest, "tight.test") for blob in blobs]
    release = threading.Event()
    fault = tight.origins["o"].fault(repo, hold=release, hold_at=1000)
    with ExitStack() as clients:
        asking = ask_all(tight.cache, targets[:2], clients)
        tight.wait_asked("o", repo, 2)
        watch = Stopwatch()
        assert tight.get(targets[2]).status == 503
        assert 0.9 < watch.seconds < 2
        fault.remove()
        release.set()
        for client, blob in zip(asking, blobs, strict=False):
            assert_ok(client.read_reply(), blob.data)


def test_max_waiting_is_503_and_hits_go_on(tight: Lab) -> None:
    repo = tight.repo()
    image = tight.image("o", repo)
    tight.pull(manifest_target(repo, "1.0", "tight.test"))
    with ExitStack() as clients, held(tight.origins["o"], f"{repo}/manifests/wait"):
        waiting = [manifest_target(repo, f"wait{n}", "tight.test") for n in range(4)]
        ask_all(tight.cache, waiting, clients)
        tight.wait_waiting(4)
        watch = Stopwatch()
        for target in (manifest_target(repo, "other", "tight.test"), blob_target(repo, image.config.digest, "tight.test")):
            reply = tight.get(target)
            assert reply.status == 503
            assert b"waiting" in reply.body
        assert_ok(tight.get(manifest_target(repo, "1.0", "tight.test")), image.manifest, "HIT")
        assert watch.seconds < 0.5
    eventually(lambda: tight.cache.metric("cacheyd_waiting"), 0.0)


def test_max_connections_closes_what_is_too_much(tight: Lab) -> None:
    with ExitStack() as clients:
        kept: list[Client] = []
        # A connection of before may still be on its way out.
        eventually(lambda: connected(tight, kept, clients), 12)
        with Client(tight.cache.port) as refused:
            refused.ask("/healthz")
            with pytest.raises(ClosedError):
                refused.read_reply()
        assert kept[0].exchange("/healthz").status == 200
        kept.pop().leave()
        eventually(lambda: can_connect(tight), True)


def connected(lab: Lab, kept: list[Client], clients: ExitStack) -> int:
    """How many connections are served, after one more is made."""
    client = clients.enter_context(lab.cache.connect())
    try:
        assert client.exchange("/healthz").status == 200
        kept.append(client)
    except (ClosedError, ConnectionError):
        client.leave()
    return len(kept)


def can_connect(lab: Lab) -> bool:
    """Whether a new connection is served."""
    try:
        return lab.get("/healthz").status == 200
    except ClosedError:
        return False

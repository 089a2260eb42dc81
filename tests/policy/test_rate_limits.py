"""A rate limit that is over in a moment is waited for; a longer one is passed on; neither is anybody's but who got it."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count

import pytest

from tests.faults.client import Client, Reply, Stopwatch, request
from tests.faults.daemon import Daemon
from tests.hostile.peers import RawOrigin, head, whole
from tests.policy.conftest import Starter
from tests.real.procs import wait_until
from tests.support.images import digest_of, random_bytes

MANIFEST = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
TYPE = "Content-Type: application/vnd.oci.image.index.v1+json"
SLOW_DOWN = b'{"errors": [{"code": "TOOMANYREQUESTS"}]}'
# What is answered at once, on a machine that is busy (seconds); a limit of 1 s is waited for within the other one.
AT_ONCE, SOON = 0.9, 4.0


def limited(*fields: str, retry_after: str | None = "1") -> bytes:
    """A 429."""
    return whole(SLOW_DOWN, *([f"Retry-After: {retry_after}"] if retry_after is not None else []), *fields, status=429)


@dataclass
class Asked:
    """A request as the origin got it."""

    at: float
    method: str
    target: str
    login: str
    range: str


@dataclass
class Site:
    """A daemon, and names of repositories that nobody has asked for."""

    daemon: Daemon
    numbers: Iterator[int] = field(default_factory=count)

    def repo(self, kind: str = "app") -> str:
        return f"{kind}{next(self.numbers)}"


class Scripted(RawOrigin):
    """The origin. A repository's requests get the answers in `scripts`, one by one; then it has everything.

    A repository whose name begins with `locked` wants a login, or a token of a service that has a script of its own.
    """

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.blobs: dict[str, bytes] = {}
        self.seeds = count()
        self.scripts: dict[str, list[bytes]] = {}
        self.asked: list[Asked] = []
        self.closed_until: dict[str, float] = {}

    def of(self, repo: str) -> list[Asked]:
        """What it was asked about a repository."""
        return [asked for asked in self.asked if f"/{repo}/" in asked.target or f"{repo}%3A" in asked.target]

    def answer(self, connection: socket.socket, raw: bytes) -> None:
        lines = raw.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        method, target, _ = lines[0].split(" ")
        self.asked.append(Asked(time.monotonic(), method, target, fields.get("authorization", ""), fields.get("range", "")))
        connection.sendall(self._answer(method, target, fields.get("authorization", "")))

    def _answer(self, method: str, target: str, login: str) -> bytes:
        service = target.startswith("/token")
        repo = target.partition("repository%3A")[2].partition("%3A")[0] if service else target.split("/")[2]
        if not service and repo.startswith("locked") and not login:
            realm = f'Bearer realm="{self.url}/token",scope="repository:{repo}:pull"'
            return whole(b"", f"WWW-Authenticate: {realm}", status=401)
        if time.monotonic() < self.closed_until.get(repo, 0.0):
            return limited()
        script = self.scripts.get(f"token {repo}" if service else repo)
        if script:
            return script.pop(0)
        if service:
            return whole(b'{"token": "t"}')
        if "/manifests/" in target:
            sent = whole(MANIFEST, TYPE, f"Docker-Content-Digest: {digest_of(MANIFEST)}")
        else:
            sent = whole(self.blob(target))
        return sent.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else sent

    def blob(self, target: str) -> bytes:
        return self.blobs.get(target.rpartition("/")[2], b'{"list": []}')

    def add_blob(self, size: int = 1000) -> str:
        """The digest of a new one."""
        data = random_bytes(size, 77_000 + next(self.seeds))
        self.blobs[digest_of(data)] = data
        return digest_of(data)


@pytest.fixture(scope="module")
def origin() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


@pytest.fixture(scope="module")
def site(shared: Starter, origin: Scripted) -> Site:
    stored = 'auth = "credentials"\nusername = "robot"\npassword = "hunter2"'
    tables = {
        "reg": "", "two": 'retry_after_max = "2s"', "never": 'retry_after_max = "0s"', "narrow": "max_fetches = 1",
        "stored": stored,
        "verified": f'access = "verify"\naccess_ttl = "0s"\n{stored}',
    }  # fmt: skip
    config = "".join(f'[registries."{name}.test"]\nupstream = "{origin.url}"\n{rows}\n' for name, rows in tables.items())
    return Site(shared.daemon(config, {"max_flights": "2", "head_timeout": "8s", "progress_timeout": "8s"}))


def timed(site: Site, target: str, login: str = "", method: str = "GET") -> tuple[Reply, float]:
    """An answer, and the seconds that it took."""
    watch = Stopwatch()
    headers = {"Authorization": login} if login else {}
    with Client(site.daemon.port, patience=20.0) as client:
        reply = client.exchange(target, headers, method=method)
    return reply, watch.seconds


KINDS = {
    "tag": ("GET", "manifests/v1"), "tag-head": ("HEAD", "manifests/v1"),
    # One that nobody has: what is known would be a hit.
    "digest": ("GET", f"manifests/{digest_of(b'nothing')}"),
    "blob": ("GET", "blobs/"), "blob-head": ("HEAD", "blobs/"), "tags": ("GET", "tags/list"),
    "tags-head": ("HEAD", "tags/list"), "referrers": ("GET", f"referrers/{digest_of(MANIFEST)}"),
}  # fmt: skip


def what_of(origin: Scripted, kind: str) -> tuple[str, str]:
    method, what = KINDS[kind]
    return method, what + origin.add_blob() if what == "blobs/" else what


def test_a_short_one_is_waited_for(site: Site, origin: Scripted) -> None:
    """Whatever is asked for; all at the same time, so that this takes a second."""

    def ask(kind: str) -> tuple[str, int, bool, int]:
        method, what = what_of(origin, kind)
        repo = site.repo()
        origin.scripts[repo] = [limited()]
        reply, seconds = timed(site, f"/v2/{repo}/{what}?ns=reg.test", method=method)
        return kind, reply.status, 0.9 < seconds < SOON, len(origin.of(repo))

    with ThreadPoolExecutor(len(KINDS)) as pool:
        assert [*pool.map(ask, KINDS)] == [(kind, 502 if kind == "digest" else 200, True, 2) for kind in KINDS]


def imf(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


FORMS = {"imf": "%a, %d %b %Y %H:%M:%S GMT", "rfc850": "%A, %d-%b-%y %H:%M:%S GMT", "asctime": "%a %b %e %H:%M:%S %Y"}


def test_dates_count_from_the_answers_own(site: Site, origin: Scripted) -> None:
    """Whatever its clock says."""

    def ask(form: str, off: int) -> tuple[str, int, int, bool]:
        there = datetime.now(UTC) + timedelta(days=off)
        retry_after = (there + timedelta(seconds=1)).strftime(FORMS[form])
        repo = site.repo()
        origin.scripts[repo] = [limited(f"Date: {imf(there)}", retry_after=retry_after)]
        reply, seconds = timed(site, f"/v2/{repo}/tags/list?ns=reg.test")
        return form, off, reply.status, 0.9 < seconds < SOON

    clocks = [(form, off) for form in FORMS for off in (0, -400, 400)]
    with ThreadPoolExecutor(len(clocks)) as pool:
        assert [*pool.map(lambda clock: ask(*clock), clocks)] == [(*clock, 200, True) for clock in clocks]


@pytest.mark.parametrize("value", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_what_has_passed_is_asked_for_again_at_once(site: Site, origin: Scripted, value: str) -> None:
    repo = site.repo()
    origin.scripts[repo] = [limited(retry_after=value)] * 2
    reply, seconds = timed(site, f"/v2/{repo}/tags/list?ns=reg.test")
    assert (reply.status, seconds < AT_ONCE) == (200, True)
    assert len(origin.of(repo)) == 3


@pytest.mark.parametrize(
    "value", [None, "", "6", "120", "-1", "1.5", "soon", "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "1, 2"]
)
@pytest.mark.parametrize("kind", ["tag", "blob"])
def test_any_other_one_is_passed_on_at_once(site: Site, origin: Scripted, kind: str, value: str | None) -> None:
    method, what = what_of(origin, kind)
    repo = site.repo()
    origin.scripts[repo] = [limited(retry_after=value)]
    for _ in range(3):
        reply, seconds = timed(site, f"/v2/{repo}/{what}?ns=reg.test", method=method)
        assert (reply.status, reply.body, seconds < AT_ONCE) == (429, SLOW_DOWN, True)
        assert (reply.header("Retry-After") or "") == (value or "")
    assert len(origin.of(repo)) == 1


def test_never(site: Site, origin: Scripted) -> None:
    repo = site.repo()
    origin.scripts[repo] = [limited()]
    reply, seconds = timed(site, f"/v2/{repo}/manifests/v1?ns=never.test")
    assert (reply.status, reply.header("Retry-After"), seconds < AT_ONCE) == (429, "1", True)


def test_one_that_goes_on_is_passed_on_in_the_end(site: Site, origin: Scripted) -> None:
    def ask(kind: str) -> tuple[int, str | None, bool, bool]:
        method, what = what_of(origin, kind)
        repo = site.repo()
        origin.scripts[repo] = [limited()] * 100
        reply, seconds = timed(site, f"/v2/{repo}/{what}?ns=two.test", method=method)
        return reply.status, reply.header("Retry-After"), 0.9 < seconds < 2 + SOON, 2 <= len(origin.of(repo)) <= 3

    with ThreadPoolExecutor(3) as pool:
        assert {*pool.map(ask, ("tag-head", "blob", "tags"))} == {(429, "1", True, True)}


def test_repetitions_of_one_that_goes_on_are_told_at_once(site: Site, origin: Scripted) -> None:
    """containerd repeats a HEAD six times before it goes elsewhere, and must not wait each time."""
    repo = site.repo()
    origin.scripts[repo] = [limited(retry_after="2")] * 100
    watch = Stopwatch()
    for _ in range(6):
        reply, _ = timed(site, f"/v2/{repo}/manifests/v1?ns=two.test", method="HEAD")
        assert reply.status == 429
    assert 1.9 < watch.seconds < 2 + SOON
    assert len(origin.of(repo)) <= 3
    # Something else with the same login in another repository is waited for.
    other = site.repo()
    origin.scripts[other] = [limited()]
    assert timed(site, f"/v2/{other}/manifests/v1?ns=two.test", method="HEAD")[0].status == 200


def test_a_503_is_passed_on_at_once(site: Site, origin: Scripted) -> None:
    repo = site.repo()
    origin.scripts[repo] = [whole(b"cleaning", "Retry-After: 1", status=503)]
    reply, seconds = timed(site, f"/v2/{repo}/manifests/v1?ns=reg.test")
    assert (reply.status, reply.header("Retry-After"), reply.body, seconds < AT_ONCE) == (503, "1", b"cleaning", True)


def test_one_in_the_middle_of_a_blob(site: Site, origin: Scripted) -> None:
    """It costs no try: the flight goes on when it is over."""
    digest = origin.add_blob(1 << 20)
    data, repo, half = origin.blobs[digest], site.repo(), 1 << 19
    rest = head(206, f"Content-Length: {half}", f"Content-Range: bytes {half}-{2 * half - 1}/{2 * half}", "Connection: close")
    origin.scripts[repo] = [whole(data)[:-half], limited(retry_after="2"), rest + data[half:]]
    reply, seconds = timed(site, f"/v2/{repo}/blobs/{digest}?ns=reg.test")
    assert (reply.status, reply.body == data) == (200, True)
    assert 1.9 < seconds < 2 + SOON
    assert [asked.range for asked in origin.of(repo)] == ["", f"bytes={half}-", f"bytes={half}-"]


# Many


@pytest.mark.parametrize("kind", ["tag", "tag-head", "blob"])
def test_many_that_wait_for_the_same_are_one(site: Site, origin: Scripted, kind: str) -> None:
    method, what = what_of(origin, kind)
    repo = site.repo()
    origin.scripts[repo] = [limited()]
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: timed(site, f"/v2/{repo}/{what}?ns=reg.test", method=method), range(40)))
    assert {reply.status for reply, _ in found} == {200}
    assert len(origin.of(repo)) <= 4


def test_many_that_wait_for_different_things_come_one_by_one(site: Site, origin: Scripted) -> None:
    repo = site.repo()
    origin.closed_until[repo] = time.monotonic() + 1.0
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda n: timed(site, f"/v2/{repo}/manifests/v{n}?ns=reg.test"), range(30)))
    assert {reply.status for reply, _ in found} == {200}
    again = [asked.at for asked in origin.of(repo)][-30:]
    # 25 ms each, and not all at the same moment.
    assert again[-1] - again[0] > 0.4


@pytest.mark.parametrize("kind", ["tag", "blob"])
def test_who_waits_holds_up_nobody(site: Site, origin: Scripted, kind: str) -> None:
    """One request to this registry at once, and two flights in all."""
    repo, other = site.repo(), site.repo()
    origin.scripts[repo] = [limited(retry_after="2")] * 3
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(timed, site, f"/v2/{repo}/{what_of(origin, kind)[1]}?ns=narrow.test", f"Bearer {number}")
            for number in range(3)
        ]
        wait_until(lambda: len(origin.of(repo)) >= (3 if kind == "blob" else 1), "it was asked", seconds=3)
        time.sleep(0.1)
        for what in (f"blobs/{origin.add_blob()}", "manifests/v1", "tags/list"):
            reply, seconds = timed(site, f"/v2/{other}/{what}?ns=narrow.test")
            assert (reply.status, seconds < AT_ONCE) == (200, True), what
        assert {future.result()[0].status for future in waiting} == {200}


def test_who_leaves_waits_no_longer(site: Site, origin: Scripted) -> None:
    repos = {site.repo(): what_of(origin, kind)[1] for kind in ("tag", "blob", "tags")}
    with ExitStack() as clients:
        for repo, what in repos.items():
            origin.scripts[repo] = [limited(retry_after="2")]
            client = clients.enter_context(Client(site.daemon.port))
            client.send(request(f"/v2/{repo}/{what}?ns=reg.test"))
        wait_until(lambda: all(origin.of(repo) for repo in repos), "all were asked for", seconds=3)
        wait_until(lambda: site.daemon.metric("cacheyd_waiting") == 3, "all wait", seconds=3)
    wait_until(lambda: site.daemon.metric("cacheyd_waiting") == 0, "nobody waits", seconds=1.5)
    time.sleep(2.0)
    assert [len(origin.of(repo)) for repo in repos] == [1, 1, 1]


# Whose it is


def test_another_login_and_another_repository(site: Site, origin: Scripted) -> None:
    repo = site.repo()
    origin.scripts[repo] = [limited(retry_after="120")]
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test", "Bearer alice")[0].status == 429
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test", "Bearer bob")[0].status == 200
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test")[0].status == 200
    assert timed(site, f"/v2/{site.repo()}/tags/list?ns=reg.test", "Bearer alice")[0].status == 200
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test", "Bearer alice")[0].status == 429


def test_the_stored_logins_is_all_its_clients(site: Site, origin: Scripted) -> None:
    """Whatever login they have themselves."""
    repo = site.repo("locked")
    origin.scripts[repo] = [limited(retry_after="120")]
    for login in ("Bearer alice", "Bearer bob", ""):
        assert timed(site, f"/v2/{repo}/tags/list?ns=stored.test", login)[0].status == 429
    assert len([asked for asked in origin.of(repo) if asked.target.startswith("/v2/") and asked.login]) == 1


def test_the_stored_logins_is_not_the_clients_own(site: Site, origin: Scripted) -> None:
    """With `access = "verify"` lists are asked for as the client, and so is whether it may read what the stored login gets."""
    repo = site.repo("locked")
    origin.scripts[f"token {repo}"] = [limited(retry_after="120")]
    target = f"/v2/{repo}/manifests/v1?ns=verified.test"
    assert timed(site, target, "Bearer alice")[0].status == 503
    assert timed(site, f"/v2/{repo}/tags/list?ns=verified.test", "Bearer alice")[0].status == 200
    asked = len(origin.of(repo))
    assert timed(site, target, "Bearer bob")[0].status == 503
    assert [one.login for one in origin.of(repo)[asked:]] == ["Bearer bob"]


def test_the_clients_own_is_not_the_stored_logins(site: Site, origin: Scripted) -> None:
    repo = site.repo()
    origin.scripts[repo] = [limited(retry_after="120")]
    target = f"/v2/{repo}/manifests/v1?ns=verified.test"
    assert timed(site, target, "Bearer alice")[0].status == 429
    assert timed(site, target, "Bearer bob")[0].status == 200
    assert timed(site, target, "Bearer alice")[0].status == 429


# Token services


def test_a_token_service_is_waited_for(site: Site, origin: Scripted) -> None:
    def ask(form: str, kind: str) -> tuple[str, str, int, bool]:
        method, what = what_of(origin, kind)
        repo = site.repo("locked")
        origin.scripts[f"token {repo}"] = [limited()]
        target = f"/v2/{repo}/{what}?ns=stored.test" if form == "stored" else f"/v2/reg.test/{repo}/{what}"
        reply, seconds = timed(site, target, method=method)
        return form, kind, reply.status, 0.9 < seconds < SOON

    ways = [(form, kind) for form in ("stored", "path") for kind in ("tag", "tag-head", "blob", "tags")]
    with ThreadPoolExecutor(len(ways)) as pool:
        assert [*pool.map(lambda way: ask(*way), ways)] == [(*way, 200, True) for way in ways]


@pytest.mark.parametrize("form", ["stored", "path"])
def test_a_token_service_with_a_long_limit_is_left_alone(site: Site, origin: Scripted, form: str) -> None:
    """The clients have done nothing wrong, so it is no 429 of theirs. Who asks for tokens itself is told where."""
    repo = site.repo("locked")
    origin.scripts[f"token {repo}"] = [limited(retry_after="120")]
    target = f"/v2/{repo}/tags/list?ns=stored.test" if form == "stored" else f"/v2/reg.test/{repo}/tags/list"
    for _ in range(3):
        reply, seconds = timed(site, target)
        assert (reply.status, seconds < AT_ONCE) == (503, True)
    assert len([asked for asked in origin.of(repo) if asked.target.startswith("/token")]) == 1
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test")[0].status == 401
    assert timed(site, f"/v2/{repo}/tags/list?ns=reg.test", "Bearer mine")[0].status == 200

"""Bytes of peers that must not become parts of other messages, of the log, or of the memory that stays."""

import json
import re
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.client import Client, Reply
from tests.hostile.peers import MIB, Watch, head, whole
from tests.hostile.scripted import Scripted, scripted
from tests.policy.conftest import Starter

DIGEST = "sha256:" + "0" * 64
# Well above what a busy machine needs, well below what a quadratic parser takes (seconds).
STALL = 1.0


@pytest.fixture(scope="module")
def raw(shared: Starter) -> Iterator[Scripted]:
    with scripted(shared, 700) as found:
        yield found


def assert_well_formed(reply: Reply) -> None:
    """Nothing in the head that could end a line, or be read in two ways."""
    assert re.fullmatch(rb"HTTP/1\.1 \d{3} [ -~]+\r\n(?:[!-9;-~]+: ?[\t -~\x80-\xff]*\r\n)*\r\n", reply.raw), reply.raw


# Request lines


def challenge(realm: bytes, *more: bytes) -> bytes:
    body = b"{}"
    lines = (
        b"HTTP/1.1 401 X",
        b'WWW-Authenticate: Bearer realm="' + realm + b'"',
        *more,
        b"Content-Length: 2",
        b"Connection: close",
    )
    return b"\r\n".join((*lines, b"", body))


@pytest.mark.parametrize(
    ("realm", "status"),
    [
        (b"\r", 502), (b"\x00", 502), (b"\r\n X: y", 502), (b"\r\n\tfolded", 502), (b"\nX: y", 401), (b"\x0b", 401),
        (b"\x7f", 401),
        (b"\t", 401), (b"#", None), (b" HTTP/1.1 x", None), (b"\xff\xc3\xbc", None), (b"\\\"<>|", None), (b"%0d%0a", None),
    ],
)  # fmt: skip
def test_a_realm_begins_no_other_line(raw: Scripted, realm: bytes, status: int | None) -> None:
    """It is not asked, or asked with these bytes encoded."""
    tokens = raw.registry(whole(b'{"token":"t"}'))
    ns = raw.registry(challenge(f"{raw.origin.url}/{tokens.removesuffix('.test')}/token".encode() + realm))
    reply = raw.get_unscoped(ns)
    assert reply.status == (status or 401)
    assert_well_formed(reply)
    for line in raw.lines(tokens):
        assert status is None
        assert re.fullmatch(rb"GET /p\d+/token[!-~]*\?scope=repository%3Aapp%3Apull HTTP/1\.1", line), line
    assert len(raw.lines(tokens)) == (status is None)
    assert raw.get(ns).status == (502 if status == 502 else 401)


@pytest.mark.parametrize(
    "realm",
    [
        "https://[x",
        "[::::]",
        "http://[1:2:3]/",
        "//",
        "https://",
        "x" * 4000,
        "ftp://x/",
        "http://a:b@127.0.0.1/",
        "https://h:99999/",
        "",
    ],
)
def test_a_realm_that_is_no_url(raw: Scripted, realm: str) -> None:
    assert raw.get_unscoped(raw.registry(challenge(realm.encode()))).status == 401


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        ("a b", b"a%20b"), ("\xc3\xbc\xff", b"%C3%BC%FF"), ('|^"{}<>`\\', b"%7C%5E%22%7B%7D%3C%3E%60%5C"),
        ("%2f%2F%zz%", b"%2f%2F%zz%"),
        ("a?X-Sig=a%2Bb/c==&d=[1]'(2)*", b"a?X-Sig=a%2Bb/c==&d=[1]'(2)*"), ("a//b;c?", b"a//b;c?"), ("a#b", b"a"),
        ("a/../b?#", b"a/../b?"),
    ],
)  # fmt: skip
def test_a_location_is_sent_byte_for_byte(raw: Scripted, location: str, sent: bytes) -> None:
    """But for the bytes that no URI has (curl/curl#473): signatures are over the rest."""
    cdn = raw.registry(whole(b"{}", status=404))
    path = cdn.removesuffix(".test")
    ns = raw.registry(head(307, f"Location: {raw.origin.url}/{path}/{location}", "Content-Length: 0", "Connection: close"))
    assert raw.get(ns, "tags/list").status == 404
    assert raw.lines(cdn) == [b"GET /" + path.encode() + b"/" + sent + b" HTTP/1.1"]


@pytest.mark.parametrize(
    "location",
    [b"/a\rb", b"/a\x00b", b"/a\r\n b", b"/a\x0bb", b"/a\tb", b"\x01/a", b"//[x/", b"http://[::::]/", b"https:x", b"x" * 9000],
)
def test_a_location_that_leads_nowhere(raw: Scripted, location: bytes) -> None:
    ns = raw.registry(b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
    for what in ("manifests/v1", f"blobs/{DIGEST}", "tags/list"):
        reply = raw.get(ns, what)
        assert reply.status in (502, 503)
        assert_well_formed(reply)
    assert len({*raw.lines(ns)}) <= 3


@pytest.mark.parametrize(
    "ns",
    ["[1:2:3]", "[::::]", "[:]", "[.]", "[1::2::3]", "[::1.2.3]", "[::ffff:1.2.3.4.5]", "[]", "[", "]", "::",
    "a" * 64 + ".test",
     "a." * 126 + "test", "\u2100.test", "\u00fc" * 63 + ".test", "xn--\u00fc.test", "\u200d.test", "256.1.1.1",
     "0x.test.0x", "1.2.3.4.5",
     "\x85.test", "\u00ad", "\uff0e", "\uff0e\uff0e", "\u3002test", "test:\u0661", "%", "%zz", "a%00b", "localhost.",
     "\r\n", "\\", "x@y:z"],
)  # fmt: skip
def test_an_ns_that_is_none(raw: Scripted, ns: str) -> None:
    for what in ("manifests/v1", f"blobs/{DIGEST}", "tags/list"):
        reply = raw.get(quote(ns, safe="", errors="surrogatepass"), what)
        assert reply.status == 400, ns
        assert_well_formed(reply)


@pytest.mark.parametrize("host", ["[1:2:3]", "[::::]:1", "1.2.3.4.5", "256.1.1.1:5000", "a..b", f"{'a' * 64}.test"])
def test_a_path_that_begins_with_no_registry(raw: Scripted, host: str) -> None:
    assert raw.get_unscoped(quote(host)).status == 400


# Headers


@pytest.mark.parametrize("status", [200, 401, 404, 500])
@pytest.mark.parametrize(
    "line",
    [
        b"X: a\rb",
        b"X: a\x00b",
        b"X: y\r\n folded",
        b"X: y\r\n\tfolded",
        b"X\xff: y",
        b"X y: z",
        b"Link: <x>\r; y",
        b"Content-Type: a/b\rX: y",
    ],
)
def test_a_broken_header_refuses_the_response(raw: Scripted, line: bytes, status: int) -> None:
    answer = b"HTTP/1.1 %d X\r\n%s\r\nContent-Length: 2\r\n\r\n{}" % (status, line)
    for what in ("manifests/v1", f"blobs/{DIGEST}", "tags/list"):
        for method in ("GET", "HEAD"):
            reply = raw.get(raw.registry(answer), what, method=method)
            assert reply.status == 502, reply
            assert_well_formed(reply)


@pytest.mark.parametrize("what", ["manifests/v1", "tags/list", f"blobs/{DIGEST}"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_relayed(raw: Scripted, what: str, method: str) -> None:
    """What is of no use is left out, the rest comes as it was."""
    kept = (
        'WWW-Authenticate: Basic realm="a"',
        'WWW-Authenticate: Bearer realm="b",x="\xfc"',
        "X-Bytes: \xff\xc3\xbc",
        "Retry-After: 7",
    )
    left = (
        "X-Bell: \x07",
        "X-Long: " + "a" * 9000,
        "Content-Type: " + "a" * 200 + "/" + "b" * 200,
        "Retry-After: 8",
        "X-Esc: \x1b[31m",
    )
    ns = raw.registry(
        head(404, *kept, *left, "Content-Length: 0" if method == "HEAD" else "Content-Length: 2", "Connection: close")
        + b"{}"[: 2 * (method == "GET")]
    )
    reply = raw.get(ns, what, method=method)
    assert reply.status == 404
    assert_well_formed(reply)
    lines = reply.raw.decode("latin-1").lower().split("\r\n")
    assert [line for line in lines if line in map(str.lower, kept)] == [line.lower() for line in kept]
    assert not any(line.startswith(("x-bell", "x-long", "x-esc")) or "aaaa" in line for line in lines)


def test_a_next_page_stays_in_its_registry(raw: Scripted) -> None:
    ns = raw.registry(whole(b"{}", 'Link: </v2/evil/tags/list?ns=evil.test&n%73=evil.test&last=x>; rel="next"'))
    assert raw.get(ns, "tags/list").header("Link") == f'</v2/app/tags/list?last=x&ns={ns}>; rel="next"'


def test_a_login_of_any_bytes(raw: Scripted) -> None:
    """Goes on as it came."""
    ns = raw.registry(whole(b"{}", status=404))
    with raw.daemon.connect() as client:
        client.send(
            b"GET /v2/app/tags/list?ns=" + ns.encode() + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Basic \xff\xc3\xbc\r\n\r\n"
        )
        assert client.read_reply().status == 404
    assert b"\r\nAuthorization: Basic \xff\xc3\xbc\r\n" in raw.origin.heads[-1]


# Time


@pytest.mark.parametrize(
    "line",
    [
        b'WWW-Authenticate: Bearer a=b"' + b'\\"' * 29_000, b'WWW-Authenticate: Bearer realm="' + b"\\" * 60_000,
        b"WWW-Authenticate: " + b"a " * 30_000, b"Transfer-Encoding: a" + b" " * 60_000 + b"b",
        b"Transfer-Encoding:" + b"\t" * 60_000,
        b"X: y" + b"\r\n a" * 15_000, b"X: y\r\n" * 10_000, b"Link: " + b"<" * 60_000, b"Connection: " + b"a," * 30_000,
        b"Content-Type: a/" + b"b;" * 30_000, b"Content-Length: " + b"1" * 60_000, b"Retry-After: " + b"1" * 60_000,
        b"Location: http://" + b"a." * 30_000, b"Location: /" + b"/." * 30_000,
        b"Docker-Content-Digest: " + b"sha256:" * 8_000,
    ],
    ids=lambda line: line[:24],
)  # fmt: skip
def test_one_answer_does_not_stall_the_rest(raw: Scripted, line: bytes) -> None:
    body = b"{}"
    with Watch(raw.daemon) as watch:
        for status in (401, 307):
            ns = raw.registry(b"HTTP/1.1 %d X\r\n%s\r\n%s" % (status, line, b"\r\n") + body)
            assert raw.get_unscoped(ns).status in (401, 502)
    assert watch.stall < STALL


# Memory


def _requests(daemon_port: int, *requests: bytes) -> list[int]:
    with Client(daemon_port, patience=20) as client:
        statuses = []
        for request in requests:
            client.send(request)
            statuses.append(client.read_reply().status)
        return statuses


def test_long_targets_leave_nothing_behind(raw: Scripted) -> None:
    """Those over 8 KiB are refused; those below are not remembered."""
    targets = [
        *(f"/v2/app/tags/list?ns=p0.test&x={number}{'a' * 60_000}" for number in range(700)),
        *(f"/v2/{number}/{'a' * 60_000}/manifests/v1?ns=p0.test" for number in range(700)),
        *(f"/v2/app/manifests/v1?x={number}{'é' * 30_000}" for number in range(600)),
        *(f"/v2/app/manifests/{number}{'a' * 8000}?ns=p0.test" for number in range(300)),
        *(f"/v2/app/tags/list?ns=p0.test&x={number}{'a' * 3000}" for number in range(300)),
    ]
    with Watch(raw.daemon, stalls=False) as watch:
        statuses = _requests(raw.daemon.port, *(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets))
    assert statuses == [414] * 2000 + [404] * 300 + [414] * 300
    assert watch.peak < 120 * MIB
    assert watch.grown < 30 * MIB


def test_long_accepts_leave_nothing_behind(raw: Scripted) -> None:
    """They go to the registry as they are, and what it says is right for them, and not remembered for others."""
    manifest = b'{"schemaVersion":2,"config":{},"layers":[]}'
    known = "application/vnd.oci.image.manifest.v1+json"
    ns = raw.registry(whole(manifest, f"Content-Type: {known}"))
    index = raw.daemon.cache_dir / "index"
    before = sum(path.stat().st_size for path in index.rglob("*"))
    with Watch(raw.daemon, stalls=False) as watch:
        for number in range(200):
            accept = ", ".join(f"application/x{number}.{item}" for item in range(2900))[:60_000]
            reply = raw.daemon.get(f"/v2/app/manifests/v1?ns={ns}", {"Accept": accept})
            assert (reply.status, reply.body, reply.cache) == (200, manifest, "MISS")
    assert len(raw.lines(ns)) >= 200
    assert watch.peak < 120 * MIB
    assert watch.grown < 30 * MIB
    time.sleep(0.3)
    assert sum(path.stat().st_size for path in index.rglob("*")) - before < MIB
    # An ordinary client's is remembered.
    assert [raw.daemon.get(f"/v2/app/manifests/v1?ns={ns}", {"Accept": known}).cache for _ in range(2)] == ["MISS", "HIT"]


def test_answers_to_long_accepts_are_not_mixed_up(raw: Scripted) -> None:
    """Also where the first types are the same."""
    types = ", ".join(f"application/x.{item}" for item in range(70))
    ns = raw.registry(whole(b'{"schemaVersion":2,"config":{},"layers":[]}', "Content-Type: application/x.1"))
    for last in ("a/b", "a/c", "a/b"):
        assert raw.daemon.get(f"/v2/app/manifests/v1?ns={ns}", {"Accept": f"{types}, {last}"}).cache == "MISS"
    accepts = [
        line
        for raw_head in raw.origin.heads
        for line in raw_head.split(b"\r\n")
        if line.startswith(b"Accept: ") and b"x.69" in line
    ]
    assert [line[-3:] for line in accepts] == [b"a/b", b"a/c", b"a/b"]


@pytest.mark.parametrize(
    "body",
    [b'{"token":"' + b"x" * 200_000 + b'"}', b"[" * 200_000, b'{"a":' * 40_000, b'{"token":"x","expires_in":NaN}',
    b'{"token":"x","expires_in":1e999}',
     b'{"token":"x","expires_in":-1}', b'{"token":"x","expires_in":' + b"9" * 4000 + b"}", b'{"token":"a\\r\\nX: y"}',
     b"\xff\xfe", b"{}"],
    ids=lambda body: body[:32],
)  # fmt: skip
def test_token_answers(raw: Scripted, body: bytes) -> None:
    tokens = raw.registry(whole(body))
    ns = raw.registry(challenge(f"{raw.origin.url}/{tokens.removesuffix('.test')}/token".encode()))
    assert raw.get_unscoped(ns).status == 401
    used = sum(
        b"Authorization: Bearer x\r\n" in sent for sent in raw.origin.heads if f"/{ns.removesuffix('.test')}/".encode() in sent
    )
    assert used == (b'"token":"x"' in body and b"9999" not in body)


# Any bytes

FIELDS = st.sampled_from(
    [
        b"Content-Length: 2", b"Content-Length: 0", b"Content-Length: 50", b"Content-Length: -1", b"Content-Length: 2, 2",
        b"Content-Length: +2",
        b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: \xff",
        b"Content-Type: application/json", b"Content-Type: \x00", b"Content-Type: text/html", b"Location: /",
        b"Location: //[", b"Location: x\ry",
        b"Location: http://127.0.0.1:1/", b"Location: \xff\xfe", b"Location: ", b'WWW-Authenticate: Bearer realm="https://[x"',
        b'WWW-Authenticate: Bearer realm="http://127.0.0.1:1/"', b"WWW-Authenticate: Basic",
        b"WWW-Authenticate: \xff=\xff, \"",
        b"Docker-Content-Digest: sha256:x", b"Docker-Content-Digest: sha512:" + b"0" * 128,
        b"Docker-Content-Digest: " + DIGEST.encode(),
        b"Content-Range: bytes 0-1/2", b"Content-Range: bytes 9-1/x", b"Content-Encoding: gzip", b"Content-Encoding: \xff",
        b"ETag: \x01",
        b"Link: <", b"Link: <?ns=x>", b"Link: \xff", b"Retry-After: -1", b"Retry-After: \xb2",
        b"ratelimit-remaining: 1;w=x", b"Connection: \xff",
        b"Connection: close", b"Connection: content-type", b"Upgrade: websocket", b"Trailer: x", b" folded", b":",
        b"no colon", b"\x00: x",
        b"Set-Cookie: a=b", b"",
    ]
)  # fmt: skip
STARTS = st.sampled_from(
    [
        b"HTTP/1.1 %d X" % status
        for status in (200, 200, 200, 206, 204, 304, 307, 401, 404, 416, 429, 500, 101, 100, 103, 42, 999)
    ]
    + [
        b"HTTP/1.0 200",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 -1 X",
        b"HTTP/1.1 2_0 X",
        b"ICY 200 OK",
        b"",
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-x",
    ]
)
BODIES = st.sampled_from(
    [b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}\r\n", b"-1\r\n{}", b"fffffffffffffffff\r\n",
    b"2;x=" + b"y" * 50 + b"\r\n{}\r\n0\r\nX: y\r\n\r\n", b"x\r\n",
     b'{"schemaVersion":2,"config":{},"layers":[]}', b'{"token":"x"}', b"[" * 5000, b"\x1f\x8b\x08\x00",
     b"2\r\n{}\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"]
)  # fmt: skip
ANSWERS = st.one_of(
    st.builds(
        lambda start, fields, end, body: start + b"".join(b"\r\n" + one for one in fields) + end + body,
        STARTS, st.lists(st.one_of(FIELDS, FIELDS, FIELDS, st.binary(max_size=30)), max_size=6),
        st.sampled_from([b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n"]),
        st.one_of(BODIES, BODIES, st.binary(max_size=60)),
    ),
    st.binary(max_size=200),
)  # fmt: skip
WHAT = st.sampled_from(["manifests/v1", f"manifests/{DIGEST}", f"blobs/{DIGEST}", "tags/list", f"referrers/{DIGEST}"])
STATUSES = {200, 206, 304, 400, 401, 403, 404, 416, 429, 500, 502, 503, 504}
ANY = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FEW = settings(ANY, max_examples=60)


def ask_all_ways(raw: Scripted, ns: str, what: str) -> None:
    """Each request is answered, in time, and nothing is wrong in the log."""
    logged = raw.daemon.log_size()
    for reply in (raw.get(ns, what), raw.get(ns, what, method="HEAD"), raw.get_unscoped(ns, what)):
        assert reply.status in STATUSES or (what in ("tags/list", f"referrers/{DIGEST}") and reply.status == 204), reply
        assert_well_formed(reply)
    assert raw.daemon.problems(logged) == []


@ANY
@given(answer=ANSWERS, what=WHAT)
def test_any_answer_of_an_upstream(raw: Scripted, answer: bytes, what: str) -> None:
    ask_all_ways(raw, raw.registry(answer), what)


CHALLENGES = st.lists(st.sampled_from([b"Bearer ", b"Basic ", b'realm="', b"http://", b"127.0.0.1:1", b"[", b"]", b"\\",
    b'"', b",", b"=", b"service=",
                                       b'scope="', b"\xff", b"\xc3\xbc", b"\x0b", b"?", b"#", b"/", b" ", b"%", b"@"]),
                                       max_size=14).map(b"".join)  # fmt: skip


@FEW
@given(value=CHALLENGES)
def test_any_challenge(raw: Scripted, value: bytes) -> None:
    ns = raw.registry(b"HTTP/1.1 401 X\r\nContent-Length: 0\r\nWWW-Authenticate: " + value + b"\r\n\r\n")
    logged = raw.daemon.log_size()
    assert raw.get_unscoped(ns).status in (401, 502)
    assert raw.daemon.problems(logged) == []


@FEW
@given(body=st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.floats() | st.text(max_size=5),
    lambda s: st.lists(s) | st.dictionaries(
    st.sampled_from(["token", "access_token", "expires_in"]), s)).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_token_answer(raw: Scripted, body: bytes) -> None:
    raw.answers["tokens"] = whole(body)
    ns = raw.registry(challenge(f"{raw.origin.url}/tokens/".encode()))
    logged = raw.daemon.log_size()
    assert raw.get_unscoped(ns).status == 401
    assert raw.daemon.problems(logged) == []


@ANY
@given(
    ns=st.one_of(
        st.text(max_size=30),
        st.text(st.sampled_from("[]:.0123456789abfx%-_@/\\\r\n\x00\u00fc\u3002\uff11\u200d"), max_size=20),
    )
)
def test_any_ns(raw: Scripted, ns: str) -> None:
    """Refused, or asked: no name here is one that there is."""
    logged = raw.daemon.log_size()
    quoted = quote(f"{ns}.invalid" if ns.isalpha() else ns, safe="", errors="surrogatepass")
    started = time.monotonic()
    assert raw.get(quoted).status in (400, 403, 404, 502, 503, 504)
    assert time.monotonic() - started < 3
    assert raw.daemon.problems(logged) == []

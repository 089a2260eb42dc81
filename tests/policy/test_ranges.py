"""Several ranges, ranges far ahead of what is here, and many at once on one cold blob."""

import email.parser
import email.policy
import re
import threading
from contextlib import ExitStack

import pytest

from tests.faults.client import Reply, Stopwatch
from tests.faults.scene import blob_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok
from tests.real.procs import wait_until
from tests.support.images import Blob
from tests.support.origin import Origin

SIZES = pytest.mark.parametrize("size", [5000, 300_000, 9 << 20])
# As in cacheyd.cache.pieces: further ahead than this of a flight, upstream is asked on its own.
FAR_AHEAD = 8 << 20


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    return shared.lab(registry_table("reg.test", origin.url), {"o": origin}, {"progress_timeout": "5s"})


def cold(lab: Lab, size: int) -> tuple[str, Blob, str]:
    """A blob that only upstream has, and its request target."""
    repo = lab.repo()
    blob = lab.blob("o", repo, size)
    return repo, blob, blob_target(repo, blob.digest, "reg.test")


def ranges(value: str) -> dict[str, str]:
    """The header."""
    return {"Range": f"bytes={value}"}


def parts_of(reply: Reply) -> list[tuple[str, bytes]]:
    """Content-Range and bytes of each part, as a client's library reads multipart/byteranges."""
    assert reply.status == 206
    assert reply.end == "complete"
    content_type = reply.header("Content-Type") or ""
    assert content_type.startswith("multipart/byteranges; boundary=")
    assert reply.header("Content-Range") is None
    data = b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + reply.body
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(data)
    assert message.is_multipart()
    assert not message.defects
    found = []
    for part in message.iter_parts():
        assert part.get_content_type() == "application/octet-stream"
        start = reply.body.index(part["Content-Range"].encode())
        begin = reply.body.index(b"\r\n\r\n", start) + 4
        first, last = part["Content-Range"].removeprefix("bytes ").partition("/")[0].split("-")
        found.append((str(part["Content-Range"]), reply.body[begin : begin + int(last) - int(first) + 1]))
    return found


# Several ranges of what is here


@SIZES
@pytest.mark.parametrize(
    "wanted",
    [
        ((0, 0), (10, 19)),
        ((100, 199), (0, 99)),
        ((0, 999), (-500, None)),
        ((4000, None), (5, 6), (8, 9)),
        ((1, 2), (1, 2)),
    ],
)
def test_several_ranges(lab: Lab, size: int, wanted: tuple[tuple[int, int | None], ...]) -> None:
    _, blob, target = cold(lab, size)
    lab.pull(target)
    specs = [f"{first}-{'' if last is None else last}" if first >= 0 else str(first) for first, last in wanted]
    bounds = [(size + first if first < 0 else first, size - 1 if last is None else last) for first, last in wanted]
    if sum(last - first + 1 for first, last in bounds) > size:
        assert_ok(lab.get(target, ranges(",".join(specs))), blob.data, "HIT")
        return
    reply = lab.get(target, ranges(", ".join(specs)))
    assert reply.cache == "HIT"
    expected = [(f"bytes {first}-{last}/{size}", blob.data[first : last + 1]) for first, last in bounds]
    assert parts_of(reply) == expected
    head = lab.get(target, ranges(", ".join(specs)), method="HEAD")
    assert (head.status, head.length) == (200, size)


def test_the_message_is_exactly_as_long_as_it_says(lab: Lab) -> None:
    """And the connection goes on with the next answer."""
    _, blob, target = cold(lab, 200_000)
    lab.pull(target)
    with lab.cache.connect() as client:
        for _ in range(2):
            reply = client.exchange(target, ranges("0-99999,150000-199999"))
            assert [len(data) for _, data in parts_of(reply)] == [100_000, 50_000]
            assert reply.body.endswith(b"--\r\n")
            assert_ok(client.exchange(target), blob.data, "HIT")


@pytest.mark.parametrize("spec", ["0-4999,0-4999", "0-4998,1-4999", ",".join(["0-"] * 30)])
def test_more_than_all_of_it_is_all_of_it_once(lab: Lab, spec: str) -> None:
    _, blob, target = cold(lab, 5000)
    lab.pull(target)
    assert_ok(lab.get(target, ranges(spec)), blob.data, "HIT")


@pytest.mark.parametrize("spec", ["0-9,6000-7000", "6000-7000,0-9"])
def test_one_that_is_left_of_several_is_no_plain_206(lab: Lab, spec: str) -> None:
    """Newer skopeos ask for several and do not expect a single part."""
    _, blob, target = cold(lab, 5000)
    lab.pull(target)
    reply = lab.get(target, ranges(spec))
    if reply.status == 206:
        assert parts_of(reply) == [("bytes 0-9/5000", blob.data[:10])]
    else:
        assert_ok(reply, blob.data)


def test_none_that_is_there_is_416(lab: Lab) -> None:
    _, _, target = cold(lab, 5000)
    lab.pull(target)
    reply = lab.get(target, ranges("5000-5001,6000-"))
    assert (reply.status, reply.header("Content-Range")) == (416, "bytes */5000")


@pytest.mark.parametrize("spec", ["0-9,20-29", "0-9,4000-"])
def test_several_ranges_of_a_cold_blob(lab: Lab, spec: str) -> None:
    """All of it, or the parts: both are right answers, one part alone is none."""
    repo, blob, target = cold(lab, 5000)
    reply = lab.get(target, ranges(spec))
    if reply.status == 206:
        assert parts_of(reply)[0][1] == blob.data[:10]
    else:
        assert_ok(reply, blob.data)
    assert len(lab.asked("o", repo)) == 1


def test_if_range(lab: Lab) -> None:
    _, blob, target = cold(lab, 5000)
    lab.pull(target)
    mine = ranges("0-9,20-29") | {"If-Range": f'"{blob.digest}"'}
    assert len(parts_of(lab.get(target, mine))) == 2
    assert_ok(lab.get(target, ranges("0-9,20-29") | {"If-Range": '"other"'}), blob.data)


# Far ahead of what is here


def test_small_ranges_far_ahead_come_from_upstream_at_once(lab: Lab) -> None:
    """Lazy pulling: the fill goes on, and the pieces do not wait for it."""
    size = 24 << 20
    repo, blob, target = cold(lab, size)
    release = threading.Event()
    fault = lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=1 << 20)
    with lab.cache.connect() as filling:
        filling.ask(target)
        head = filling.read_head()
        wait_until(lambda: lab.cache.partial(blob.digest) >= 1 << 20, "a part is here", seconds=5)
        watch = Stopwatch()
        for first in (12 << 20, 20 << 20, size - 10):
            reply = lab.get(target, ranges(f"{first}-{first + 9}"))
            assert (reply.status, reply.body) == (206, blob.data[first : first + 10])
            assert reply.header("Content-Range") == f"bytes {first}-{first + 9}/{size}"
            assert reply.cache == "BYPASS"
        assert watch.seconds < 1
        # What is here by now is not verified yet: it waits for nobody either, but comes from upstream.
        reply = lab.get(target, ranges("1000-1999"))
        assert (reply.status, reply.body, reply.cache) == (206, blob.data[1000:2000], "BYPASS")
        release.set()
        fault.remove()
        assert_ok(filling.read_body(head), blob.data)
    asked = [request.header("Range") for request in lab.asked("o", repo, "GET")]
    assert asked == [None, *(f"bytes={first}-{first + 9}" for first in (12 << 20, 20 << 20, size - 10)), "bytes=1000-1999"]
    lab.settle()
    assert_ok(lab.get(target), blob.data, "HIT")


def test_a_small_range_far_ahead_starts_the_fill(lab: Lab) -> None:
    size = 12 << 20
    repo, blob, target = cold(lab, size)
    first = size - 100
    reply = lab.get(target, ranges(f"{first}-{first + 49}"))
    assert (reply.status, reply.body) == (206, blob.data[first : first + 50])
    wait_until(lambda: lab.cache.blob_file(blob.digest).is_file(), "all of it is here", seconds=5)
    lab.settle()
    assert_ok(lab.get(target), blob.data, "HIT")
    whole = [request for request in lab.asked("o", repo, "GET") if request.header("Range") is None]
    assert len(whole) == 1


@pytest.mark.parametrize("spec", ["-51", "-1048576", "{size-51}-", "{size-1000000}-", "{size-100}-{size-52}"])
def test_the_end_of_a_cold_blob_comes_at_once(lab: Lab, spec: str) -> None:
    """goharbor/harbor#23875: lazily pulling clients read the footer first. The fill goes on meanwhile."""
    size = 24 << 20
    repo, blob, target = cold(lab, size)
    spec = re.sub(r"\{size-(\d+)\}", lambda match: str(size - int(match[1])), spec)
    release = threading.Event()
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=1 << 20)
    watch = Stopwatch()
    reply = lab.get(target, ranges(spec))
    assert watch.seconds < 1.5
    first, last = bounds_of(spec, size)
    assert (reply.status, reply.body, reply.cache) == (206, blob.data[first : last + 1], "BYPASS")
    assert reply.header("Content-Range") == f"bytes {first}-{last}/{size}"
    release.set()
    wait_until(lambda: lab.cache.has(blob.digest), "all of it is here", seconds=5)
    lab.settle()
    assert_ok(lab.get(target), blob.data, "HIT")


def bounds_of(spec: str, size: int) -> tuple[int, int]:
    """The first and the last byte."""
    first, _, last = spec.partition("-")
    return (int(first), int(last) if last else size - 1) if first else (size - int(last), size - 1)


@pytest.mark.parametrize("spec", ["0-", "{size-2000000}-", "5-"])
def test_what_is_open_to_a_far_end_joins_the_flight(lab: Lab, spec: str) -> None:
    """As containerd asks for chunks, and for the rest of what broke off: one upstream body for all."""
    size = 24 << 20
    repo, blob, target = cold(lab, size)
    first = int(spec.partition("-")[0]) if spec[0].isdigit() else size - 2_000_000
    release = threading.Event()
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=1 << 20)
    with lab.cache.connect() as client:
        client.ask(target, ranges(f"{first}-"))
        wait_until(lambda: lab.cache.partial(blob.digest) >= 1 << 20, "a part is here", seconds=5)
        release.set()
        reply = client.read_reply()
    assert (reply.status, reply.body) == (206, blob.data[first:])
    assert [request.header("Range") for request in lab.asked("o", repo)] == [None]


@pytest.mark.parametrize("spec", ["-51", "100-199"])
def test_a_piece_does_not_wait_for_the_head_of_the_flight(lab: Lab, spec: str) -> None:
    size = 12 << 20
    repo, blob, target = cold(lab, size)
    release = threading.Event()
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=-1)
    watch = Stopwatch()
    reply = lab.get(target, ranges(spec))
    assert watch.seconds < 0.8
    first, last = bounds_of(spec, size)
    assert (reply.status, reply.body, reply.cache) == (206, blob.data[first : last + 1], "BYPASS")
    release.set()
    wait_until(lambda: lab.cache.has(blob.digest), "all of it is here", seconds=5)


@pytest.mark.parametrize("spec", ["-51", "100-199"])
@pytest.mark.parametrize(
    "answer",
    ["bytes 0-50/12582912", "bytes 12582861-12582911/*", "bytes 5-7/12582912", "nonsense", "bytes 12582861-12582911/99"],
)
def test_another_piece_than_was_asked_for_is_none(lab: Lab, spec: str, answer: str) -> None:
    size = 12 << 20
    repo, blob, target = cold(lab, size)
    first, last = bounds_of(spec, size)
    release = threading.Event()
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=-1)
    data = blob.data[first : last + 1]
    headers = (("Content-Range", answer), ("Content-Length", str(len(data))))
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, status=206, headers=headers, body=data)
    # The newest fault comes first; the flight meets it too, unless it was first.
    lab.origins["o"].fault(f"^GET .*{repo}", times=1, hold=release, hold_at=-1)
    reply = lab.get(target, ranges(spec))
    release.set()
    fits = answer == "bytes 12582861-12582911/*" and spec == "-51"
    assert reply.status == (206 if fits else 502), (reply.status, reply.headers)


def test_small_blobs_come_verified_from_the_flight(lab: Lab) -> None:
    """What is there in a moment is asked for once."""
    repo, blob, target = cold(lab, 50_000)
    assert lab.get(target, ranges("-51")).body == blob.data[-51:]
    assert [request.header("Range") for request in lab.asked("o", repo)] == [None]


def test_as_a_lazily_pulling_client(lab: Lab) -> None:
    """stargz-snapshotter: the size, the first byte, the footer, the table before it, then small ranges anywhere."""
    size = 20 << 20
    repo, blob, target = cold(lab, size)
    release = threading.Event()
    lab.origins["o"].fault(f"^GET .*{repo}.*", times=1, hold=release, hold_at=5 << 20)
    watch = Stopwatch()
    with lab.cache.connect() as client:
        assert client.exchange(target, method="HEAD").length == size
        for first, last in [(0, 0), (size - 51, size - 1), (size - 40_000, size - 52), (7 << 20, (7 << 20) + 65_535), (3, 99)]:
            reply = client.exchange(target, ranges(f"{first}-{last}"))
            assert (reply.status, reply.body) == (206, blob.data[first : last + 1])
            assert reply.header("Content-Range") == f"bytes {first}-{last}/{size}"
    assert watch.seconds < 4
    release.set()
    lab.settle()


# Many at once


def test_open_ended_ranges_side_by_side_are_one_upstream_body(lab: Lab) -> None:
    """As containerd fetches a layer in parallel: open-ended ranges, each dropped when its chunk is full."""
    size, chunk = 6 << 20, 1 << 20
    repo, blob, target = cold(lab, size)
    with ExitStack() as clients:
        found = []
        for first in range(0, size, chunk):
            client = clients.enter_context(lab.cache.connect())
            client.ask(target, ranges(f"{first}-"))
            found.append((first, client))
        for first, client in found:
            head = client.read_head()
            assert head.status == 206
            assert head.header("Content-Range") == f"bytes {first}-{size - 1}/{size}"
            assert head.length == size - first
            assert client.read(chunk) == blob.data[first : first + chunk]
            client.leave(reset=True)
    lab.settle()
    assert [request.header("Range") for request in lab.asked("o", repo)] == [None]
    assert_ok(lab.get(target), blob.data, "HIT")


def test_bounded_ranges_side_by_side_are_few_upstream_requests(lab: Lab) -> None:
    size, chunk = 6 << 20, 1 << 20
    repo, blob, target = cold(lab, size)
    with ExitStack() as clients:
        found = []
        for first in range(0, size, chunk):
            client = clients.enter_context(lab.cache.connect())
            client.ask(target, ranges(f"{first}-{first + chunk - 1}"))
            found.append((first, client))
        for first, client in found:
            reply = client.read_reply()
            assert (reply.status, reply.end) == (206, "complete")
            assert reply.body == blob.data[first : first + chunk]
    assert len([request for request in lab.asked("o", repo) if request.header("Range") is None]) == 1


@pytest.mark.parametrize("spec", ["500-1499", "500-", "-500", "2000-5000"])
def test_conformance_on_a_cold_and_a_kept_blob(lab: Lab, spec: str) -> None:
    _, blob, target = cold(lab, 2048)
    start, _, end = spec.partition("-")
    first = int(start) if start else 2048 - int(end)
    last = min(2047, int(end)) if start and end else 2047
    for _ in range(2):
        reply = lab.get(target, ranges(spec))
        assert (reply.status, reply.body) == (206, blob.data[first : last + 1])
        assert reply.header("Content-Range") == f"bytes {first}-{last}/2048"
        lab.settle()


@pytest.mark.parametrize("spec", ["5000-10000", "2048-"])
def test_unsatisfiable_on_a_cold_and_a_kept_blob(lab: Lab, spec: str) -> None:
    _, _, target = cold(lab, 2048)
    for _ in range(2):
        reply = lab.get(target, ranges(spec))
        assert (reply.status, reply.header("Content-Range")) == (416, "bytes */2048")
        lab.settle()

"""Range arithmetic: RFC 9110 section 14, and what the OCI conformance suite expects of a 2,048-byte blob."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.protocol.ranges import (
    MAX_PARTS,
    Part,
    RangeRequest,
    Unsatisfiable,
    if_range_holds,
    parse_content_range,
    parse_range,
)

SIZE = 2048


def parts(header: str, size: int = SIZE) -> tuple[Part, ...]:
    wanted = parse_range(header)
    assert wanted is not None
    return wanted.parts(size)


@pytest.mark.parametrize(
    ("header", "start", "end", "content_range"),
    [
        ("bytes=500-1499", 500, 1500, "bytes 500-1499/2048"),
        ("bytes=500-", 500, 2048, "bytes 500-2047/2048"),
        ("bytes=-500", 1548, 2048, "bytes 1548-2047/2048"),
        ("bytes=2000-5000", 2000, 2048, "bytes 2000-2047/2048"),
        ("bytes=0-", 0, 2048, "bytes 0-2047/2048"),
        ("bytes=0-0", 0, 1, "bytes 0-0/2048"),
        ("bytes=2047-", 2047, 2048, "bytes 2047-2047/2048"),
        ("bytes=-5000", 0, 2048, "bytes 0-2047/2048"),
        ("Bytes = 1-2", 1, 3, "bytes 1-2/2048"),
    ],
)
def test_one_range_is_one_exact_part(header: str, start: int, end: int, content_range: str) -> None:
    (part,) = parts(header)

    assert (part.start, part.end, part.length) == (start, end, end - start)
    assert part.content_range(SIZE) == content_range


@pytest.mark.parametrize(
    "header", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", "bytes=9999999999999999999-"]
)
def test_a_range_without_a_byte_is_unsatisfiable(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        parts(header)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1", "bytes=0-0"])
def test_an_empty_object_satisfies_no_range(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        parts(header, 0)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=1-2-3", "bytes=1-2,", "bytes=,1-2", "items=0-1",
     "bytes=--1", "bytes=+1-2", "bytes=0x1-2", "bytes=1 - 2", "bytes=" + "1" * 20 + "-", "=0-1", "0-1", "bytes:0-1"],
)  # fmt: skip
def test_what_is_not_a_range_is_ignored(header: str | None) -> None:
    assert parse_range(header) is None


def test_several_ranges_are_several_parts_without_those_that_have_no_byte() -> None:
    assert parts("bytes=0-0, 5000-,-1") == (Part(0, 1), Part(2047, 2048))


def test_too_many_ranges_are_ignored() -> None:
    assert parse_range("bytes=" + ",".join(["0-1"] * MAX_PARTS)) is not None
    assert parse_range("bytes=" + ",".join(["0-1"] * (MAX_PARTS + 1))) is None


@pytest.mark.parametrize(
    ("header", "start", "bounded"),
    [
        ("bytes=10-19", 10, 10),
        ("bytes=10-", 10, None),
        ("bytes=-10", None, None),
        ("bytes=0-1,5-6", None, None),
    ],
)
def test_what_a_range_says_before_the_size_is_known(header: str, start: int | None, bounded: int | None) -> None:
    wanted = parse_range(header)
    assert wanted is not None
    assert (wanted.start, wanted.bounded) == (start, bounded)


NUMBERS = st.integers(0, 40)
SPECS = st.one_of(
    st.tuples(NUMBERS, NUMBERS),
    st.tuples(NUMBERS, st.none()),
    st.tuples(st.none(), NUMBERS),
)


def render(spec: tuple[int | None, int | None]) -> str:
    return "-".join("" if number is None else str(number) for number in spec)


def model(spec: tuple[int | None, int | None], size: int) -> list[int]:
    """Which bytes a spec names, one by one."""
    first, last = spec
    if first is None:
        return list(range(size))[-last:] if last else []
    return [i for i in range(size) if i >= first and (last is None or i <= last)]


@given(st.lists(SPECS, min_size=1, max_size=5), st.integers(0, 50))
def test_parts_are_the_bytes_that_were_named(specs: list[tuple[int | None, int | None]], size: int) -> None:
    wanted = parse_range("bytes=" + ",".join(map(render, specs)))
    expected = [bytes_ for spec in specs if (bytes_ := model(spec, size))]

    assert wanted == RangeRequest(tuple(specs))
    try:
        found = wanted.parts(size)
    except Unsatisfiable:
        assert not expected
    else:
        assert [list(range(part.start, part.end)) for part in found] == expected
        for part in found:
            assert parse_content_range(part.content_range(size)) == (part.start, part.end, size)


@given(st.text())
def test_any_header_is_a_range_or_ignored(header: str) -> None:
    for text in (header, f"bytes={header}"):
        wanted = parse_range(text)
        assert wanted is None or wanted.specs


# If-Range


ETAG = '"sha256:abc"'


@pytest.mark.parametrize(
    ("header", "holds"),
    [
        (None, True),
        (ETAG, True),
        (f" {ETAG} ", True),
        (f"W/{ETAG}", False),
        ('"sha256:other"', False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
        ("*", False),
        ("", False),
    ],
)
def test_if_range_holds_for_the_strong_etag_only(header: str | None, holds: bool) -> None:
    assert if_range_holds(header, ETAG) is holds


# Content-Range


@pytest.mark.parametrize(
    ("header", "parsed"),
    [
        ("bytes 0-0/1", (0, 1, 1)),
        ("bytes 500-1499/2048", (500, 1500, 2048)),
        ("bytes 500-1499/*", (500, 1500, None)),
        (" bytes 1-2/3 ", (1, 3, 3)),
        ("bytes */2048", None),
        ("bytes 5-4/10", None),
        ("bytes 0-1", None),
        ("items 0-1/2", None),
        ("bytes=0-1/2", None),
        ("bytes a-b/c", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(header: str | None, parsed: tuple[int, int, int | None] | None) -> None:
    assert parse_content_range(header) == parsed


@pytest.mark.parametrize("header", ["bytes 0-10/10", "bytes 5-20/10"])
def test_a_content_range_beyond_its_own_size_is_none(header: str) -> None:
    """RFC 9110 section 14.4: a last-pos that is not below the complete-length is invalid, and must not be combined."""
    assert parse_content_range(header) is None

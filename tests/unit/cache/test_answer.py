"""Answers are values: what changes one makes another."""

import pytest

from cacheyd.cache.answer import HELD, STALE_WARNING, Answer, text_answer, unsatisfiable
from cacheyd.cache.bodies import Source
from cacheyd.protocol.ranges import Part
from cacheyd.protocol.reference import Kind, Reference

TAG = Reference("reg.test", "a/b", Kind.MANIFEST, "1.0", None, "reg.test")


class Body:
    """Nothing to read."""

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def test_the_first_one_stays_as_it_was() -> None:
    first = Answer(200, (("X-Cache", "HIT"),), length=10)
    stale = first.marked_stale().noted("why")
    assert (stale.headers, stale.note) == ((("X-Cache", "HIT"), STALE_WARNING), "why")
    held = first.in_place_of(TAG).marked_held("sha256:0", 0.0)
    assert (held.result, held.ref) == (HELD, TAG)
    assert held.headers[0] == ("X-Cache", "HELD")
    assert held.note == "held until 1970-01-01T00:00:00Z: sha256:0 is too young"
    assert first == Answer(200, (("X-Cache", "HIT"),), length=10)
    with pytest.raises(AttributeError):
        first.status = 500  # type: ignore[misc]


def test_a_part_of_it() -> None:
    part = Answer(200, (("Content-Range", "old"),), length=10).with_part(Part(2, 5), 10)
    assert (part.status, part.length, part.headers) == (206, 3, (("Content-Range", "bytes 2-4/10"),))
    none = unsatisfiable(TAG, 10, (("Content-Type", "a/b"),), "HIT")
    assert (none.status, none.length, none.headers) == (416, 0, (("Content-Range", "bytes */10"),))


def test_its_body() -> None:
    body: Source = Body()
    answer = text_answer(200, b"").with_source(body, None)
    assert (answer.source, answer.length) == (body, None)
    assert answer.without_source().source is None

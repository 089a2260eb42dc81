"""Media types in Accept."""

import pytest

from cacheyd.protocol.accept import (
    MAX_ACCEPT,
    MAX_TYPE,
    MAX_TYPES,
    accepted_types,
    accepts,
    are_all,
)
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST


@pytest.mark.parametrize(
    ("accept", "whole"),
    [
        (("a/b",) * 100, True),
        (tuple(f"a/{number}" for number in range(MAX_TYPES)), True),
        (tuple(f"a/{number}" for number in range(MAX_TYPES + 1)), False),
        (("a/b" + " " * (MAX_ACCEPT - 3),), True),
        (("a/b", " " * MAX_ACCEPT), False),
        (("a/b, " + "c" * MAX_ACCEPT,), False),
    ],
)
def test_absurd_accepts_are_told_from_others(accept: tuple[str, ...], whole: bool) -> None:
    """What was not looked at is not taken for what was: the first type is known in any case."""
    types = accepted_types(accept)
    assert are_all(types) == whole
    assert accepts(types, accept[0].partition(",")[0].strip())
    assert len(types) <= MAX_TYPES + 2
    assert accepted_types((*accept, "x/y")) != types


def test_a_type_that_is_too_long_is_none() -> None:
    assert accepted_types(("a/" + "b" * MAX_TYPE, "c/d")) == {"c/d"}


CONTAINERD = (f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",)


SKOPEO = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "application/vnd.docker.distribution.manifest.v1+json")


@pytest.mark.parametrize(
    ("accept", "types"),
    [
        ((), set()),
        (("",), set()),
        ((",, ,",), set()),
        (CONTAINERD, {DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"}),
        (SKOPEO, set(SKOPEO)),
        ((f"{OCI_INDEX};q=0.5, {OCI_MANIFEST} ; q=1.0",), {OCI_INDEX, OCI_MANIFEST}),
        ((OCI_INDEX.upper(),), {OCI_INDEX}),
        ((f"{OCI_INDEX};q=0, {OCI_MANIFEST};q=0.000",), set()),
        ((f"{OCI_INDEX};q=0.001",), {OCI_INDEX}),
    ],
)
def test_accept_lines_name_types(accept: tuple[str, ...], types: set[str]) -> None:
    assert accepted_types(accept) == types


@pytest.mark.parametrize(
    ("types", "media_type", "taken"),
    [
        (set(), OCI_INDEX, True),
        ({"*/*"}, OCI_INDEX, True),
        ({"application/*"}, OCI_INDEX, True),
        ({"text/*"}, OCI_INDEX, False),
        ({OCI_INDEX}, OCI_INDEX, True),
        ({OCI_INDEX}, OCI_INDEX.upper(), True),
        ({OCI_MANIFEST}, OCI_INDEX, False),
    ],
)
def test_a_type_is_taken_if_it_or_its_wildcard_is_named(types: set[str], media_type: str, taken: bool) -> None:
    assert accepts(frozenset(types), media_type) is taken

"""Pure decisions: which variant of a tag is right for a client, and how long it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.cache import freshness
from cacheyd.protocol.accept import accepted_types
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.room import to_free
from cacheyd.store.rows import TagVariant

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SIGNED_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

CONTAINERD = accepted_types((f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",))
SKOPEO = accepted_types((OCI_MANIFEST, DOCKER_MANIFEST, SIGNED_1, SCHEMA_1, DOCKER_LIST, OCI_INDEX))
DOCKER = accepted_types((f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_INDEX}, {OCI_MANIFEST}", SIGNED_1, "application/json"))
OLD_DOCKER = accepted_types((f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {SIGNED_1}, application/json",))
ONE_PLATFORM = accepted_types((DOCKER_MANIFEST,))
CURL = accepted_types(("*/*",))
NOTHING = accepted_types(())


def settings(**flags: str) -> Settings:
    return load(environ={}, flags=flags)


def tag(name: str) -> Reference:
    ref = parse_target(f"/v2/library/nginx/manifests/{name}?ns=docker.io")
    assert isinstance(ref, Reference)
    return ref


def variant(types: frozenset[str], media_type: str, *, checked: float = 1000.0) -> TagVariant:
    """What was learnt from a client that sent `types` and got `media_type`."""
    return TagVariant(freshness.asked_types(types), digest_of(media_type.encode()), media_type, 10, checked)


def same(learnt: TagVariant, types: frozenset[str]) -> bool:
    return freshness.same_answer(learnt, freshness.asked_types(types), types)


# Accept


def test_what_registries_choose_by() -> None:
    everything = {DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX}

    assert freshness.asked_types(CONTAINERD) == freshness.asked_types(SKOPEO) == freshness.asked_types(DOCKER) == everything
    assert freshness.asked_types(CURL) == freshness.asked_types(NOTHING) == frozenset()


@pytest.mark.parametrize("first", [CONTAINERD, SKOPEO, DOCKER])
@pytest.mark.parametrize("second", [CONTAINERD, SKOPEO, DOCKER])
@pytest.mark.parametrize("media_type", [DOCKER_LIST, OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST])
def test_the_common_clients_share_what_one_of_them_got(first: frozenset[str], second: frozenset[str], media_type: str) -> None:
    assert same(variant(first, media_type), second)


@pytest.mark.parametrize("types", [CONTAINERD, SKOPEO, DOCKER, OLD_DOCKER])
def test_a_platform_manifest_is_never_served_to_who_could_get_the_index(types: frozenset[str]) -> None:
    """Registries turn a list into one platform's manifest for clients that do not name the list."""
    assert not same(variant(ONE_PLATFORM, DOCKER_MANIFEST), types)


@pytest.mark.parametrize("media_type", [DOCKER_LIST, OCI_INDEX])
def test_an_index_is_never_served_to_who_does_not_take_it(media_type: str) -> None:
    assert not same(variant(CONTAINERD, media_type), ONE_PLATFORM)


def test_an_oci_index_is_not_for_a_docker_that_knows_lists_only() -> None:
    assert not same(variant(CONTAINERD, OCI_INDEX), OLD_DOCKER)
    assert same(variant(CONTAINERD, DOCKER_LIST), OLD_DOCKER)


def test_who_asks_for_less_shares_if_the_choice_is_still_on_the_list() -> None:
    assert same(variant(CONTAINERD, DOCKER_MANIFEST), ONE_PLATFORM)


def test_who_asks_for_more_may_get_something_better() -> None:
    assert not same(variant(OLD_DOCKER, DOCKER_LIST), CONTAINERD)


@pytest.mark.parametrize("types", [CURL, NOTHING])
def test_who_names_no_type_shares_with_the_like_only(types: frozenset[str]) -> None:
    """Without a type in Accept registries fall back to an old one."""
    assert same(variant(CURL, DOCKER_MANIFEST), types)
    assert same(variant(NOTHING, OCI_INDEX), types)
    assert not same(variant(CONTAINERD, OCI_INDEX), types)
    assert not same(variant(types, DOCKER_MANIFEST), CONTAINERD)


def test_media_types_are_compared_without_case() -> None:
    assert same(variant(CONTAINERD, OCI_INDEX.upper()), CONTAINERD)
    assert same(variant(CONTAINERD, DOCKER_MANIFEST.upper()), ONE_PLATFORM)


TYPES = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX]
ACCEPTS = st.sets(st.sampled_from([*TYPES, SCHEMA_1, "*/*", "application/*"])).map(frozenset)
OFFERS = st.lists(st.sampled_from(TYPES), min_size=1, unique=True)


@given(ACCEPTS, ACCEPTS, OFFERS)
def test_no_client_gets_what_upstream_would_not_have_chosen_for_it(
    first: frozenset[str], second: frozenset[str], offers: list[str]
) -> None:
    """A registry gives the first of what it has that is named in Accept, else the first of all."""

    def upstream(types: frozenset[str]) -> str:
        return next((offer for offer in offers if offer in types), offers[0])

    if same(variant(first, upstream(first)), second):
        assert upstream(second) == upstream(first)


@given(ACCEPTS, OFFERS)
def test_the_same_client_gets_what_it_got_if_that_is_on_its_list(types: frozenset[str], offers: list[str]) -> None:
    got = next((offer for offer in offers if offer in types), None)
    if got is not None:
        assert same(variant(types, got), types)


def test_the_newest_variant_that_is_right_is_found() -> None:
    old = variant(CONTAINERD, DOCKER_MANIFEST, checked=1.0)
    new = variant(ONE_PLATFORM, DOCKER_MANIFEST, checked=2.0)
    index = variant(SKOPEO, OCI_INDEX, checked=3.0)

    def find(*variants: TagVariant, types: frozenset[str]) -> TagVariant | None:
        return freshness.find_variant(list(variants), freshness.asked_types(types), types)

    assert find(old, new, index, types=ONE_PLATFORM) == new
    assert find(old, index, types=ONE_PLATFORM) == old
    assert find(new, index, types=CONTAINERD) == index
    assert find(new, types=CONTAINERD) is None
    assert find(types=CONTAINERD) is None


# Time


@pytest.mark.parametrize(
    ("age", "ttl", "fresh"),
    [
        (0.0, 300.0, True),
        (299.999, 300.0, True),
        (300.0, 300.0, False),
        (300.001, 300.0, False),
        (0.0, 0.0, False),
        (-0.001, 300.0, False),
        (-1e9, 300.0, False),
        (1e9, float("inf"), True),
    ],
)
def test_a_tag_is_fresh_for_its_time_to_live(age: float, ttl: float, fresh: bool) -> None:
    assert freshness.is_fresh(variant(CONTAINERD, OCI_INDEX, checked=0.0), ttl, now=age) is fresh


@pytest.mark.parametrize(
    ("age", "limit", "may"),
    [(0.0, 600.0, True), (599.9, 600.0, True), (600.0, 600.0, False), (0.0, 0.0, False), (-5.0, 600.0, True)],
)
def test_a_tag_may_be_stale_for_a_while(age: float, limit: float, may: bool) -> None:
    assert freshness.may_be_stale(variant(CONTAINERD, OCI_INDEX, checked=0.0), limit, now=age) is may


def test_how_long_a_tag_holds() -> None:
    assert freshness.tag_ttl(settings(), tag("1.27")) == 300.0
    assert freshness.tag_ttl(settings(tag_ttl="1h"), tag("1.27")) == 3600.0


def test_latest_is_always_asked_for_again() -> None:
    assert freshness.tag_ttl(settings(tag_ttl="1h"), tag("latest")) == 0.0
    assert freshness.tag_ttl(settings(tag_ttl="1h", tag_ttls="v*=24h"), tag("latest")) == 0.0
    assert freshness.tag_ttl(settings(tag_ttl="1h"), tag("latest-alpine")) == 3600.0


@pytest.mark.parametrize(
    ("name", "seconds"), [("v1.2.3", 86400.0), ("v1.2", 60.0), ("dev-7", 5.0), ("DEV-7", 300.0), ("1.27", 300.0)]
)
def test_the_first_pattern_that_matches_counts(name: str, seconds: float) -> None:
    assert freshness.tag_ttl(settings(tag_ttls="v*.*.*=24h,v*=1m,dev-*=5s"), tag(name)) == seconds


# Eviction


@pytest.mark.parametrize(
    ("stored", "max_size", "free", "min_free", "expected"),
    [
        (100, 0, 1000, 0, 0),
        (100, 100, 1000, 0, 0),
        (101, 100, 1000, 0, 11),
        (0, 0, 100, 100, 0),
        (0, 0, 99, 100, 11),
        (0, 0, None, 100, 0),
        (101, 100, 50, 100, 60),
        (200, 100, 99, 100, 110),
    ],
)
def test_how_much_has_to_go(stored: int, max_size: int, free: int | None, min_free: int, expected: int) -> None:
    assert to_free(stored, max_size, free, min_free) == expected


@pytest.mark.parametrize(("low", "expected"), [(1.0, 1), (0.9, 11), (0.5, 51), (0.01, 100)])
def test_how_far_down_it_goes(low: float, expected: int) -> None:
    assert to_free(101, 100, None, 0, low=low) == expected
    assert to_free(0, 0, 99, 100, low=low) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0), (50, 0), (51, 11), (90, 50), (91, 41), (100, 50)],
)
def test_room_for_one_object(size: int, expected: int) -> None:
    """One that is larger than the low watermark may fill the cache up to the high one."""
    assert to_free(50, 100, None, 0, size=size) == expected
    assert to_free(50, 0, 1000, 100, size=900) == 0
    assert to_free(50, 0, 1000, 100, size=901) == 11


@pytest.mark.parametrize(
    ("types", "memorable"),
    [
        (CONTAINERD, True),
        (NOTHING, True),
        (frozenset(f"a/{number}" for number in range(freshness.MAX_ASKED)), True),
        (frozenset(f"a/{number}" for number in range(freshness.MAX_ASKED + 1)), False),
        (frozenset({"a/" + "b" * 125}), True),
        (frozenset({"a/" + "b" * 126}), False),
        (accepted_types(("a/b", " " * 5000)), False),
    ],
)
def test_what_is_remembered_of_a_tag(types: frozenset[str], memorable: bool) -> None:
    assert freshness.is_memorable(freshness.asked_types(types)) == memorable

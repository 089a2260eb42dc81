"""Descriptors, and those of an index that are for a platform."""

import json
from typing import Any

import pytest

from cacheyd.protocol.descriptors import Descriptor, select, unmet
from cacheyd.protocol.manifest import parse_manifest
from cacheyd.protocol.platforms import parse_platform
from tests.support.artifacts import encoded

DIGEST = "sha256:" + "a" * 64


def entry(platform: str | None, number: int = 0) -> Descriptor:
    return Descriptor(f"sha256:{number:064x}", 1, "t", parse_platform(platform) if platform else None)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64", "linux/arm64", "unknown/unknown"], "linux/arm64/v8", [1]),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", [2]),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", [1]),
        (["linux/arm/v7"], "linux/arm/v6", []),
        (["linux/amd64", "linux/amd64/v3"], "linux/amd64", [0]),
        (["linux/amd64", "linux/amd64/v3"], "linux/amd64/v4", [1]),
        (["windows/amd64", "windows/amd64"], "windows/amd64", [0, 1]),
        (["linux/amd64", None], "linux/s390x", [1]),
        (["linux/386"], "linux/386", [0]),
    ],
)
def test_the_best_for_a_platform_is_chosen(offered: list[str | None], wanted: str, chosen: list[int]) -> None:
    entries = [entry(platform, number) for number, platform in enumerate(offered)]
    assert select(entries, [parse_platform(wanted)]) == [entries[number] for number in chosen]
    assert unmet([parse_platform(wanted)], [entries[number] for number in chosen]) == (
        [] if chosen else [parse_platform(wanted)]
    )


def test_all_platforms_are_all_entries() -> None:
    entries = [entry("linux/amd64", 1), entry("unknown/unknown", 2)]
    assert select(entries, None) == entries
    assert unmet(None, []) == []


@pytest.mark.parametrize("platform", [{"os": 1, "architecture": "amd64"}, [], {"architecture": "amd64"}])
def test_a_platform_that_cannot_be_read_is_none(platform: Any) -> None:
    item = {"digest": DIGEST, "size": 1, "platform": platform}
    assert parse_manifest(json.dumps({"manifests": [item]}).encode()).entries[0].platform is None


def test_unknown_platforms_are_for_all_where_no_other_is_named() -> None:
    unknown = {"os": "unknown", "architecture": "unknown"}
    notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": DIGEST}
    plain, attestation = ({"digest": DIGEST[:-1] + n, "size": 1, "platform": unknown} for n in "12")
    image = {"digest": DIGEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    attestation["annotations"] = notes
    wanted = [parse_platform("linux/amd64")]

    alone = parse_manifest(encoded({"manifests": [plain, attestation]})).entries
    beside = parse_manifest(encoded({"manifests": [image, plain, attestation]})).entries

    assert [entry.digest[-1] for entry in select(alone, wanted)] == ["1"]
    assert [entry.digest[-1] for entry in select(beside, wanted)] == ["a"]
    assert [entry.digest[-1] for entry in select(beside, wanted, attested=True)] == ["a", "2"]
    assert [entry.digest[-1] for entry in select(beside, [parse_platform("linux/arm64")], attested=True)] == []

"""Platforms and descriptors: what is for whom, and what is refused."""

import json
import time
from typing import Any

import pytest

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import Descriptor, select, unmet
from cacheyd.protocol.manifest import is_manifest, media_type_of, parse_manifest, signed_payload
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, kind_of
from cacheyd.protocol.platforms import own_platform, parse_platform
from cacheyd.protocol.reference import Kind
from tests.support.artifacts import EMPTY, artifact, buildkit_cache, encoded

DIGEST = "sha256:" + "a" * 64


def entry(platform: str | None, number: int = 0) -> Descriptor:
    return Descriptor(f"sha256:{number:064x}", 1, "t", parse_platform(platform) if platform else None)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
    ],
)
def test_platforms_have_several_names(text: str, same: str) -> None:
    assert parse_platform(text) == parse_platform(same)


@pytest.mark.parametrize(("text", "shown"), [("linux/arm64/v8", "linux/arm64"), ("linux/arm/v6", "linux/arm/v6")])
def test_a_platform_is_shown_as_it_is_usually_written(text: str, shown: str) -> None:
    assert str(parse_platform(text)) == shown


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/am d64", "a/b\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a platform"):
        parse_platform(text)


def test_this_machine_has_a_platform() -> None:
    assert own_platform().system == "linux"
    assert own_platform().rank(own_platform())


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


def test_a_manifest_is_its_config_and_layers() -> None:
    config = {"mediaType": "c", "digest": DIGEST, "size": 1}
    layer = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": DIGEST, "size": 2}
    manifest = parse_manifest(json.dumps({"config": config, "layers": [layer, {**config, "urls": ["https://x"]}]}).encode())

    assert not manifest.is_index
    assert [(e.size, e.foreign) for e in manifest.entries] == [(1, False), (2, True), (1, True)]


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"manifests": {}},
        {"config": {}, "layers": []},
        {"manifests": [{"digest": DIGEST}]},
        {"manifests": [{"digest": "md5:1", "size": 1}]},
        {"manifests": [{"digest": DIGEST, "size": -1}]},
        {"manifests": [{"digest": DIGEST, "size": True}]},
        {"manifests": [None]},
        {"manifests": [{"digest": DIGEST, "size": 1, "mediaType": 1}]},
    ],
)
def test_what_is_no_manifest_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_manifest(json.dumps(content).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_manifest(data)


@pytest.mark.parametrize("platform", [{"os": 1, "architecture": "amd64"}, [], {"architecture": "amd64"}])
def test_a_platform_that_cannot_be_read_is_none(platform: Any) -> None:
    item = {"digest": DIGEST, "size": 1, "platform": platform}
    assert parse_manifest(json.dumps({"manifests": [item]}).encode()).entries[0].platform is None


# What it is by its own bytes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"mediaType": "application/vnd.acme.thing.v1+json"}, "application/vnd.acme.thing.v1+json"),
        ({"mediaType": OCI_INDEX, "config": {}, "layers": []}, OCI_INDEX),
        ({"config": {}, "layers": []}, OCI_MANIFEST),
        ({"manifests": []}, OCI_INDEX),
        ({"manifests": None}, OCI_INDEX),
        ({"layers": []}, OCI_MANIFEST),
        ({"layers": None}, ""),
        ({"manifests": [{"mediaType": OCI_MANIFEST}, {"mediaType": DOCKER_MANIFEST}, 1]}, OCI_INDEX),
        ({"manifests": [{"mediaType": DOCKER_MANIFEST}]}, DOCKER_LIST),
        ({"config": {"mediaType": "application/vnd.docker.container.image.v1+json"}}, DOCKER_MANIFEST),
        ({"mediaType": "text/html", "config": {}}, OCI_MANIFEST),
        ({"mediaType": "application/json", "manifests": []}, OCI_INDEX),
        ({"mediaType": "application/octet-stream", "manifests": []}, OCI_INDEX),
        ({"mediaType": "application/" + "x" * 200, "config": {}}, OCI_MANIFEST),
        ({"mediaType": "application/a\r\nSet-Cookie: b", "config": {}}, OCI_MANIFEST),
        ({"mediaType": "application/a; charset=utf-8", "config": {}}, OCI_MANIFEST),
        ({"mediaType": ["application/a"], "config": {}}, OCI_MANIFEST),
        ({"mediaType": "application/é", "manifests": {}}, ""),
        ({}, ""),
    ],
)
def test_a_manifest_says_itself_what_it_is(content: dict[str, Any], expected: str) -> None:
    assert media_type_of(content) == expected


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": [' + b"{}," * 60_000 + b"{}]}",
        b'{"x": "' + b"\\u00e9" * 60_000 + b'"}',
        b'{"x": ' + b"1" * 5000 + b"}",
        b'{"x": 0.' + b"1" * (4 << 20) + b"}",
    ],
    ids=["objects", "escapes", "digits", "fraction"],
)
def test_what_would_take_the_parser_long_is_not_looked_into(data: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match="not"):
        parse_object(data)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("signatures", ["x", [], [{}], [{"protected": 1}], [{"protected": "é"}], [{"protected": "e30"}]])
def test_signatures_that_make_no_sense_are_none(signatures: object) -> None:
    assert signed_payload(json.dumps({"schemaVersion": 1, "signatures": signatures}).encode()) is None


# What is no image


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        (OCI_MANIFEST, Kind.MANIFEST),
        (f"{OCI_INDEX.upper()}; charset=utf-8", Kind.MANIFEST),
        (DOCKER_LIST, Kind.MANIFEST),
        ("application/vnd.oci.artifact.manifest.v1+json", Kind.MANIFEST),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Kind.BLOB),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", Kind.BLOB),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Kind.BLOB),
        ("application/vnd.buildkit.cacheconfig.v0", Kind.BLOB),
        ("application/vnd.oci.empty.v1+json", Kind.BLOB),
        ("application/octet-stream", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_a_type_tells_manifests_from_blobs_or_does_not(media_type: str, kind: Kind | None) -> None:
    assert kind_of(media_type) is kind


@pytest.mark.parametrize(
    ("content", "is_index", "count"),
    [
        ({"mediaType": OCI_INDEX, "manifests": None}, True, 0),
        ({"manifests": None}, True, 0),
        ({"mediaType": OCI_INDEX}, True, 0),
        ({"manifests": []}, True, 0),
        ({"mediaType": OCI_MANIFEST, "layers": None}, False, 0),
        ({"layers": []}, False, 0),
        ({"config": {"digest": DIGEST, "size": 1}, "layers": None}, False, 1),
        ({"config": {"digest": DIGEST, "size": 1}}, False, 1),
        ({"layers": [{"digest": DIGEST, "size": 1}]}, False, 1),
        ({"config": None, "blobs": [{"digest": DIGEST, "size": 1}]}, False, 1),
    ],
)
def test_lists_may_be_null_or_not_there(content: Any, is_index: bool, count: int) -> None:
    manifest = parse_manifest(encoded(content))
    assert (manifest.is_index, len(manifest.entries)) == (is_index, count)


def test_an_index_may_list_blobs() -> None:
    cache = buildkit_cache(1)
    entries = parse_manifest(cache.manifest).entries
    assert [entry.digest for entry in entries] == [blob.digest for blob in cache.blobs]
    assert {entry.kind for entry in entries} == {Kind.BLOB}
    assert select(entries, [own_platform()]) == list(entries)


@pytest.mark.parametrize(
    ("data", "expected"), [(artifact(1).manifest, True), (EMPTY.data, False), (b"[1]", False), (b"x", False)]
)
def test_bytes_tell_whether_they_are_a_manifest(data: bytes, expected: bool) -> None:
    assert is_manifest(data) is expected
    assert not is_manifest(buildkit_cache(1).blobs[-1].data)


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

"""Manifests and indexes: what they list, what they are by their bytes, and what is refused."""

import json
from typing import Any

import pytest

from cacheyd.protocol.descriptors import select
from cacheyd.protocol.manifest import is_manifest, media_type_of, parse_manifest, signed_payload
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.platforms import own_platform
from cacheyd.protocol.reference import Kind
from tests.support.artifacts import EMPTY, artifact, buildkit_cache, encoded

DIGEST = "sha256:" + "a" * 64


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


@pytest.mark.parametrize("signatures", ["x", [], [{}], [{"protected": 1}], [{"protected": "é"}], [{"protected": "e30"}]])
def test_signatures_that_make_no_sense_are_none(signatures: object) -> None:
    assert signed_payload(json.dumps({"schemaVersion": 1, "signatures": signatures}).encode()) is None


# What is no image


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

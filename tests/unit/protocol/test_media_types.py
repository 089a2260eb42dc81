"""What a media type tells."""

import pytest

from cacheyd.protocol.media_types import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, kind_of
from cacheyd.protocol.reference import Kind


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

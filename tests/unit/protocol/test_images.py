"""Names of images, as people and containerd write them."""

import pytest

from cacheyd.protocol.images import parse_image
from cacheyd.protocol.reference import Kind, Reference

SHA256 = "sha256:" + "a1" * 32


SHA512 = "sha512:" + "b2" * 64


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.22", "docker.io/library/alpine:3.22"),
        ("acme/app", "docker.io/acme/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("ghcr.io/acme/app:1.0", "ghcr.io/acme/app:1.0"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("GHCR.io:443/acme/app", "ghcr.io/acme/app:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"ghcr.io/acme/app@{SHA256}", f"ghcr.io/acme/app@{SHA256}"),
        (f"alpine:3.22@{SHA256}", f"docker.io/library/alpine:3.22@{SHA256}"),
        (f"localhost:5000/x:1@{SHA512}", f"localhost:5000/x:1@{SHA512}"),
    ],
)
def test_an_image_is_named_as_for_docker(name: str, full: str) -> None:
    image = parse_image(name)

    assert str(image) == full
    assert parse_image(full) == image
    assert image.reference == (image.digest or image.tag)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":1.0",
        "Alpine",
        "acme/App",
        "acme//app",
        "/app",
        "acme/",
        "alpine:",
        "alpine:-x",
        "alpine:1:2",
        "alpine@",
        "alpine@sha256:12",
        "alpine@latest",
        "ghcr.io:99999/app",
        "user@ghcr.io/app",
        "https://ghcr.io/acme/app",
        "ghcr.io/" + "a" * 256,
        "alp ine",
        "alpine\n",
        SHA256,
        SHA512,
        SHA256[:19],
    ],
)
def test_what_names_no_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_image(name)


def test_parts_of_an_image_are_references() -> None:
    image = parse_image("ghcr.io/acme/app:1.0")

    assert image.part(Kind.MANIFEST, image.reference).path == "/v2/acme/app/manifests/1.0"
    assert image.part(Kind.BLOB, SHA256, "ghcr.io") == Reference("ghcr.io", "acme/app", Kind.BLOB, SHA256, SHA256, "ghcr.io")

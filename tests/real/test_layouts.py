"""Tar files of images, as other tools read and write them."""

import io
from pathlib import Path

import pytest

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import own_platform
from cacheyd.terminal.layout.reading import images_in
from cacheyd.terminal.layout.unpacking import Unpacked
from cacheyd.terminal.layout.words import Image
from cacheyd.terminal.layout.writing import write_layout
from tests.real.conftest import MakeCache, need
from tests.real.containerd import Containerd, write_hosts
from tests.real.lab import SHORT_REGISTRY, Lab, contents, image_for, new_image, registry_table
from tests.real.procs import free_port
from tests.real.skopeo import run_skopeo
from tests.support.commands import run_command
from tests.support.images import Index
from tests.support.images import write_layout as write_folder

NAME = "registry.test/lab/carried:1.0"
OWN = str(own_platform())


def export(tmp_path: Path, index: Index, *platforms: str) -> Path:
    """The tar that cacheyd writes of what a cache has that was warmed for these platforms (default: all)."""
    folder = tmp_path / "blobs-of-a-cache"
    write_folder(folder, {"1.0": index})
    wanted = [own_platform()] if platforms else None
    for platform, image in index.images if platforms else ():
        if platform not in platforms:
            (folder / "blobs" / image.digest.replace(":", "/")).unlink()
    exported = Image(parse_image(NAME), Descriptor(index.digest, len(index.manifest), index.media_type))

    def find(digest: str) -> io.BufferedReader | None:
        path = folder / "blobs" / digest.replace(":", "/")
        return path.open("rb") if path.exists() else None

    target = tmp_path / "images.tar"
    with target.open("wb") as file:
        write_layout(file, [exported], find, wanted)
    return target


@pytest.mark.parametrize("platforms", [(), (OWN,)], ids=["all", "own"])
def test_containerd_imports_it(containerd: Containerd, tmp_path: Path, platforms: tuple[str, ...]) -> None:
    index = new_image()
    namespace = containerd.namespace()
    options = [] if platforms else ["--all-platforms"]

    done = containerd.ctr(
        "-n", namespace, "images", "import", "--snapshotter", "native", *options,
        str(export(tmp_path, index, *platforms)),
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert containerd.check(namespace) == {NAME: True}
    # It takes index.json for content, too, until its next collection.
    assert containerd.digests(namespace) >= contents(index, *platforms)


@pytest.mark.parametrize("platforms", [(), (OWN,)], ids=["all", "own"])
def test_skopeo_copies_it(tmp_path: Path, platforms: tuple[str, ...]) -> None:
    need("skopeo")
    index = new_image()
    tar = export(tmp_path, index, *platforms)
    options = [] if platforms else ["--all"]

    run_skopeo("copy", "--preserve-digests", *options, f"oci-archive:{tar}:1.0", f"oci:{tmp_path / 'copy'}:1.0")

    there = {f"sha256:{path.name}" for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    wanted = contents(index) if not platforms else contents(index, *platforms) - {index.digest}
    assert there == wanted


def unpacked_names(tar: Path, given: str, tmp_path: Path) -> tuple[dict[str, str], set[str]]:
    """The images that cacheyd finds in a tar, and the digests that it would keep."""
    directory = tmp_path / "partial"
    directory.mkdir()
    with tar.open("rb") as file, Unpacked(directory) as unpacked:
        unpacked.read(file)
        images, kept = images_in(unpacked, parse_image(given, default_tag="") if given else None)
        return {str(image.name): image.root.digest for image in images}, {one.file.digest for one in kept}


def test_what_containerd_exports_is_read(containerd: Containerd, tmp_path: Path) -> None:
    index = new_image()
    namespace = containerd.namespace()
    command = ("-n", namespace, "images")
    done = containerd.ctr(*command, "import", "--no-unpack", str(export(tmp_path, index, OWN)))
    assert done.returncode == 0, done.stderr
    tar = tmp_path / "exported.tar"
    done = containerd.ctr(*command, "export", "--platform", OWN, str(tar), NAME)
    assert done.returncode == 0, done.stderr

    names, kept = unpacked_names(tar, "", tmp_path)

    assert list(names) == [NAME]
    assert {image_for(index, OWN).digest, *(blob.digest for blob in image_for(index, OWN).blobs)} <= kept


def test_what_skopeo_archives_is_read(tmp_path: Path) -> None:
    need("skopeo")
    index = new_image()
    source, tar = tmp_path / "source", tmp_path / "archived.tar"
    write_folder(source, {"1.0": index})
    run_skopeo("copy", "--all", "--preserve-digests", f"oci:{source}:1.0", f"oci-archive:{tar}:1.0")

    names, kept = unpacked_names(tar, "registry.test/lab/carried", tmp_path)

    assert names == {NAME: index.digest}
    assert kept == contents(index)


def test_images_of_a_cache_reach_containerd_and_skopeo(
    containerd: Containerd, open_lab: Lab, make_cache: MakeCache, tmp_path: Path
) -> None:
    cache = make_cache(registry_table(SHORT_REGISTRY, open_lab.registry.url, open_lab.ca_file))
    index = open_lab.publish(tmp_path, "lab/warmed")
    name, tar = f"{SHORT_REGISTRY}/lab/warmed:1.0", tmp_path / "images.tar"

    run_command(cache, "warm", name)
    cache.keeps(contents(index, OWN))
    run_command(cache, "export", name, "-o", tar)
    namespace = containerd.namespace()
    done = containerd.ctr("-n", namespace, "images", "import", "--snapshotter", "native", str(tar))
    run_skopeo("copy", "--preserve-digests", f"oci-archive:{tar}:1.0", f"oci:{tmp_path / 'copy'}:1.0")

    assert done.returncode == 0, done.stdout + done.stderr
    assert containerd.check(namespace) == {name: True}
    assert containerd.digests(namespace) >= contents(index, OWN)
    assert open_lab.downloads("lab/warmed") == dict.fromkeys(contents(index, OWN) - {index.digest} | {"1.0"}, 1)


def test_a_cache_without_network_serves_what_skopeo_archived(
    containerd: Containerd, open_lab: Lab, make_cache: MakeCache, tmp_path: Path
) -> None:
    index = open_lab.publish(tmp_path, "lab/archived")
    name, tar = f"{SHORT_REGISTRY}/lab/archived:1.0", tmp_path / "archived.tar"
    source = f"docker://{open_lab.registry.host}/lab/archived:1.0"
    run_skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false", source, f"oci-archive:{tar}")
    cache = make_cache(registry_table(SHORT_REGISTRY, f"http://127.0.0.1:{free_port()}"))

    run_command(cache, "import", tar, "--name", name)
    # Nothing but the cache is there to be asked.
    hosts = write_hosts(tmp_path / "hosts", SHORT_REGISTRY, None, server=cache.url)
    pull = containerd.pull(name, hosts, None, "--all-platforms")

    assert pull.ok, pull.output
    assert containerd.digests(pull.namespace) == contents(index)

"""The tools and what is no image: BuildKit's caches, artifacts, signatures; and the images of Kubernetes objects."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disks import tmpfs
from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, Lab, assert_ok
from tests.policy.test_tools import WITHOUT_CAPABILITIES
from tests.support.artifacts import Artifact, artifact, buildkit_cache, listing, tag_of
from tests.support.commands import command, names, run_command
from tests.support.images import make_image, make_index
from tests.support.origin import Origin

REG = "reg.test"
ACCEPT = {"Accept": CONTAINERD[0]}


def table(origin: Origin) -> str:
    return f'[registries."{REG}"]\nupstream = "{origin.url}"\n'


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    return shared.lab(table(origin), {REG: origin})


@pytest.fixture
def other(own: Starter) -> Iterator[Lab]:
    """A cache without network."""
    origin = own.origin(Origin())
    lab = own.lab(table(origin), {REG: origin})
    origin.down()
    yield lab
    origin.up()


def rows(lab: Lab, *args: str, status: int = 0) -> Any:
    return json.loads(run_command(lab.cache, "ls", "--json", *args, status=status).stdout)


def serves(lab: Lab, repo: str, content: Artifact, reference: str) -> None:
    """All of it from disk."""
    assert_ok(lab.get(manifest_target(repo, reference, REG), ACCEPT), content.manifest, "HIT")
    for blob in content.blobs:
        assert_ok(lab.get(blob_target(repo, blob.digest, REG)), blob.data, "HIT")


ODD = {
    "buildkit": buildkit_cache(501),
    "typeless": buildkit_cache(502, layer_type=None),
    "artifact": artifact(503, layers=None),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_image_goes_all_the_way(lab: Lab, other: Lab, tmp_path: Path, kind: str) -> None:
    repo, content = lab.repo(), ODD[kind].push(lab.origins[REG], "x")
    content.push(lab.origins[REG], repo, "cache")
    name, tar = f"{REG}/{repo}:cache", tmp_path / "cache.tar"

    assert names(run_command(lab.cache, "warm", name))[-1] == "1 of 1 image is in the cache"
    (row,) = rows(lab, name)
    assert (row["complete"], row["missing"], row["platforms"]) == (True, [], [])
    assert row["size"] == sum(map(len, content.objects.values())) or kind == "typeless"
    serves(lab, repo, content, "cache")
    run_command(lab.cache, "export", name, "-o", tar)
    run_command(other.cache, "import", tar)
    serves(other, repo, content, "cache")
    (row,) = rows(other, name)
    assert row["complete"]
    assert json.loads(run_command(other.cache, "verify", "--json").stdout)["dropped"] == []


def test_the_blobs_of_an_index_are_its_own(lab: Lab) -> None:
    """They go with it, and not before, also after a restart."""
    repo = lab.repo()
    content = buildkit_cache(511).push(lab.origins[REG], repo, "cache")
    name = f"{REG}/{repo}:cache"
    run_command(lab.cache, "warm", name)
    lab.cache.stop()
    lab.cache.start()

    assert json.loads(run_command(lab.cache, "gc", "--unreferenced", "--json").stdout)["unreferenced"] == 0
    assert lab.cache.stored() >= content.digests
    layer = content.blobs[0].digest
    assert json.loads(run_command(lab.cache, "rm", "--json", layer).stdout)["objects"] == 1
    (row,) = rows(lab, name)
    assert (row["complete"], row["missing"]) == (False, [layer])
    run_command(lab.cache, "warm", name)
    (row,) = rows(lab, name)
    assert row["complete"]
    done = json.loads(run_command(lab.cache, "rm", "--json", name).stdout)
    assert (done["objects"], done["stays"]) == (len(content.digests), [])
    assert not lab.cache.stored() & content.digests


def test_signatures_and_sboms_go_along(lab: Lab, other: Lab, tmp_path: Path) -> None:
    repo, origin = lab.repo(), lab.origins[REG]
    image = make_image(seed=520)
    index = make_index(image)
    origin.push(repo, "1.0", index)
    sbom = artifact(521, image.manifest).push(origin, repo)
    listed = listing(sbom).push(origin, repo, tag_of(image.digest))
    signature = artifact(522).push(origin, repo, tag_of(index.digest, ".sig"))
    again = artifact(523).push(origin, repo, tag_of(signature.digest, ".sig"))
    origin.fault(f"GET .*{repo}/referrers/", status=404)
    name, tar = f"{REG}/{repo}:1.0", tmp_path / "signed.tar"

    done = run_command(lab.cache, "warm", "--referrers", name)
    assert names(done)[-2].endswith("in the cache, with 3 that refer to it")
    everything = sbom.digests | signature.digests | again.digests | {listed.digest}
    assert lab.cache.stored() >= everything
    run_command(lab.cache, "export", name, "-o", tar)
    run_command(other.cache, "import", tar)
    assert not other.cache.stored() & everything
    run_command(lab.cache, "export", "--referrers", name, "-o", tar)
    imported = names(run_command(other.cache, "import", tar))

    tags = ["1.0", tag_of(image.digest), tag_of(index.digest, ".sig"), tag_of(signature.digest, ".sig")]
    assert sorted(imported) == sorted(f"{REG}/{repo}:{tag}" for tag in tags)
    serves(other, repo, signature, tag_of(index.digest, ".sig"))
    serves(other, repo, sbom, sbom.digest)
    assert other.cache.stored() >= everything


def test_what_refers_to_an_image_is_fetched_once(lab: Lab) -> None:
    repo, origin = lab.repo(), lab.origins[REG]
    image = make_image(seed=530)
    origin.push(repo, "1.0", image)
    sbom = artifact(531, image.manifest, size=50_000).push(origin, repo)
    for _ in range(2):
        run_command(lab.cache, "warm", "--referrers", f"{REG}/{repo}:1.0")
    tails = [f"/manifests/{sbom.digest}", f"/blobs/{sbom.blobs[-1].digest}"]
    assert [sum(r.path.endswith(tail) for r in lab.asked(REG, repo)) for tail in tails] == [1, 1]


# Kubernetes objects


def test_the_images_of_pods_are_warmed(lab: Lab, tmp_path: Path) -> None:
    images = {f"{REG}/{repo}:1.0": lab.image(REG, repo) for repo in (lab.repo() for _ in range(4))}
    one, two, three, four = images
    pods = {
        "kind": "List",
        "items": [
            {
                "kind": "Pod",
                "metadata": {"name": "a"},
                "spec": {"initContainers": [{"image": one}], "containers": [{"image": two}]},
            },
            {"kind": "Pod", "metadata": {"name": "b"}, "spec": {"containers": [{"image": two}]}},
        ],
    }
    chart = (
        f"---\n# Source: a.yaml\nkind: Job\nspec:\n  template:\n    spec:\n      containers:\n      - image: {three}\n---\n"
    )
    chart += f"kind: Pod\nspec:\n  containers:\n  - image: {four} # last\n"
    file = tmp_path / "chart.yaml"
    file.write_text(chart)

    done = run_command(lab.cache, "warm", "-f", "-", data=json.dumps(pods).encode())
    assert names(done)[-1] == "2 of 2 images are in the cache"
    done = run_command(lab.cache, "warm", "-f", file, "-f", "-", two, data=f"{one} # a list\n".encode())
    assert names(done)[-1] == "4 of 4 images are in the cache"
    assert all(lab.cache.has(blob.digest) for image in images.values() for blob in image.blobs)


def test_what_cannot_be_read_is_told_with_its_document(lab: Lab) -> None:
    repo = lab.repo()
    lab.image(REG, repo)
    text = f"kind: Pod\nspec:\n  containers: [{{image: '{REG}/{repo}:1.0'}}, {{image: 'Not An Image'}}]\n"

    done = run_command(lab.cache, "warm", "-f", "-", data=text.encode(), status=1)
    assert done.stderr.decode().startswith("cacheyd: -: document 1: 'Not An Image' is not the name of an image")
    assert names(done)[-1] == "1 of 1 image is in the cache"
    done = run_command(lab.cache, "warm", "-f", "-", data=f"{text}---\na: [\n".encode(), status=2)
    assert "standard input: document 2: not YAML" in done.stderr.decode()
    error = run_command(lab.cache, "warm", "-f", "-", data=b"kind: Service\n", status=2).stderr.decode()
    assert error == "cacheyd: no image is named: standard input: no Kubernetes object with containers is in it\n"
    assert b"Permission" not in run_command(lab.cache, "warm", "-f", "/nowhere", status=2).stderr


def test_what_is_no_text_is_told_and_the_rest_is_warmed(lab: Lab) -> None:
    repo = lab.repo()
    lab.image(REG, repo)
    text = f"kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{image: {REG}/{repo}:1.0}}, {{name: b, image: 5}}]}}\n"

    done = run_command(lab.cache, "warm", "-f", "-", data=text.encode(), status=1)
    assert done.stderr.decode().startswith("cacheyd: -: document 1, Pod a: container b: its image is 5, which is no text")
    assert names(done)[-1] == "1 of 1 image is in the cache"


def test_an_outage_leaves_the_image_warm(lab: Lab) -> None:
    repo = lab.repo()
    lab.image(REG, repo)
    run_command(lab.cache, "warm", f"{REG}/{repo}:1.0")
    fault = lab.origins[REG].fault(f".*{repo}/", status=503)

    done = run_command(lab.cache, "warm", "--referrers", f"{REG}/{repo}:1.0", status=1)
    fault.remove()
    warmed, end = names(done)[-2:]
    assert " in the cache, with 0 that refer to it; some of its referrers are missing: " in warmed
    assert (warmed.count("503"), len(warmed) < 500) == (1, True)
    assert end == "1 of 1 image is in the cache; some referrers of 1 of them are missing"


# Directories and processes


def test_a_directory_that_cannot_be_written_is_said_at_once(lab: Lab, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=8m") as disk:
        run_command(lab.cache, "gc", "--cache-dir", str(disk))
        (disk / "oci-layout").touch()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for args in (["ls"], ["export", "alpine", "-o", "-"], ["warm", "alpine"]):
            done = run_command(lab.cache, *args, "--cache-dir", str(disk), status=1, seconds=10)
            (line,) = done.stderr.decode().splitlines()
            assert line.startswith(f"cacheyd: nothing can be written to {disk} (read-only file system)"), args


@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid() != 0, reason="only root can take permissions from itself")
def test_a_directory_of_somebody_else_is_said_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    for args in (["warm", "alpine"], ["import", "-"]):
        argv = [*WITHOUT_CAPABILITIES, *command(*args, "--cache-dir", directory)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 1
        assert done.stderr.strip() == f"cacheyd: no permission for {directory}: run this as the user that cacheyd runs as", (
            args
        )


def test_what_warm_has_asked_for_answers_admission_controllers(own: Starter) -> None:
    """The list of referrers, too, while the registry cannot be reached."""
    origin = own.origin(Origin())
    lab = own.lab(table(origin), {REG: origin})
    repo, image = lab.repo(), make_image(seed=540)
    origin.push(repo, "1.0", image)
    signature = artifact(541, image.manifest).push(origin, repo)
    run_command(lab.cache, "warm", "--referrers", f"{REG}/{repo}:1.0")
    origin.down()
    try:
        listed = lab.get(
            f"/v2/{repo}/referrers/{image.digest}?ns={REG}", {"Accept": "application/vnd.oci.image.index.v1+json"}
        )
        assert listed.status == 200
        assert [entry["digest"] for entry in json.loads(listed.body)["manifests"]] == [signature.digest]
        serves(lab, repo, signature, signature.digest)
    finally:
        origin.up()

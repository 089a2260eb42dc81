"""`cacheyd warm`, `export` and `import` beside a cache that runs, as people type them."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, Lab, assert_ok, target_of
from tests.real.procs import wait_until
from tests.support.commands import command, names, run_command
from tests.support.images import make_image, make_index
from tests.support.origin import Origin

ACCEPT = {"Accept": CONTAINERD[0]}


def table(name: str, origin: Origin) -> str:
    return f'[registries."{name}"]\nupstream = "{origin.url}"\n'


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    """An open registry, one with tokens, and a second one that needs a login."""
    origins = {name: shared.origin(Origin()) for name in ("reg.test", "token.test", "login.test")}
    origins["token.test"].require_token()
    origins["login.test"].require_basic("ann", "secret")
    origins["login.test"].require_token()
    return shared.lab("".join(table(name, origin) for name, origin in origins.items()), origins)


@pytest.fixture
def other(own: Starter) -> Iterator[Lab]:
    """A cache without network: its registry is down."""
    origin = own.origin(Origin())
    lab = own.lab(table("reg.test", origin), {"reg.test": origin})
    origin.down()
    yield lab
    origin.up()


def test_one_of_two_platforms_is_warmed(lab: Lab) -> None:
    repo = lab.repo()
    amd64, arm64 = make_image(seed=90_001), make_image(seed=90_002, architecture="arm64")
    index = make_index(amd64, arm64)
    lab.origins["reg.test"].push(repo, "1.0", index)

    done = run_command(lab.cache, "warm", "--platform", "linux/arm64", f"reg.test/{repo}:1.0")

    assert names(done)[-1] == "1 of 1 image is in the cache"
    assert all(lab.cache.has(digest) for digest in (index.digest, arm64.digest, *(blob.digest for blob in arm64.blobs)))
    assert not any(lab.cache.has(digest) for digest in (amd64.digest, *(blob.digest for blob in amd64.blobs)))
    before = len(lab.asked("reg.test", repo))
    assert_ok(lab.get(manifest_target(repo, "1.0", "reg.test"), ACCEPT), index.manifest, "HIT")
    assert_ok(lab.get(blob_target(repo, arm64.layers[0].digest, "reg.test")), arm64.layers[0].data, "HIT")
    assert len(lab.asked("reg.test", repo)) == before


def test_clients_beside_a_warming_share_what_it_fetches(lab: Lab) -> None:
    repo = lab.repo()
    image = make_image(layers=3, layer_size=600_000, seed=90_003)
    origin = lab.origins["reg.test"]
    origin.push(repo, "1.0", image)
    gate = threading.Event()
    fault = origin.fault(f"GET .*{repo}/blobs/", hold=gate, hold_at=300_000)

    with ThreadPoolExecutor(40) as pool:
        warming = pool.submit(run_command, lab.cache, "warm", f"reg.test/{repo}:1.0")
        lab.wait_asked("reg.test", repo, 3, "GET")
        targets = [blob_target(repo, blob.digest, "reg.test") for blob in image.blobs]
        replies = [(pool.submit(lab.get, target), blob) for target, blob in zip(targets, image.blobs, strict=True)] * 10
        gate.set()
        for reply, blob in replies:
            assert_ok(reply.result(), blob.data)
        warming.result()

    assert fault.hits == len(image.blobs)


def test_a_layer_that_fails_is_named(lab: Lab) -> None:
    repo = lab.repo()
    image = make_image(layers=3, seed=90_004)
    broken = image.layers[1].digest
    lab.origins["reg.test"].push(repo, "1.0", image)
    lab.origins["reg.test"].fault(f"GET .*{broken}", status=404)

    done = run_command(lab.cache, "warm", "--json", f"reg.test/{repo}:1.0", status=1)

    events = [json.loads(line) for line in names(done)]
    assert [event["digest"] for event in events if event["event"] == "layer-failed"] == [broken]
    assert events[-1] == {"event": "end", "images": 1, "failed": 1}
    assert all(lab.cache.has(blob.digest) for blob in image.blobs if blob.digest != broken)


def test_a_list_of_images_comes_on_standard_input(lab: Lab) -> None:
    repos = [lab.repo(), lab.repo()]
    for repo in repos:
        lab.image("token.test", repo)

    lines = "".join(f"token.test/{repo}:1.0 # a comment\n" for repo in repos)
    done = run_command(lab.cache, "warm", "-f", "-", data=lines.encode())

    assert names(done)[-1] == "2 of 2 images are in the cache"


def test_a_private_image_needs_a_login(lab: Lab, tmp_path: Path) -> None:
    repo = lab.repo()
    image = f"login.test/{repo}:1.0"
    lab.image("login.test", repo)
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {"login.test": {"auth": "YW5uOnNlY3JldA=="}}}))
    login = ("--username", "ann", "--password-stdin")

    run_command(lab.cache, "warm", image, status=1)
    run_command(lab.cache, "warm", *login, image, data=b"wrong\n", status=1)
    run_command(lab.cache, "warm", *login, image, data=b"secret\n")
    second = lab.repo()
    lab.image("login.test", second)
    run_command(lab.cache, "warm", "--authfile", file, f"login.test/{second}:1.0")
    assert not any("secret" in line for line in lab.cache.lines())


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("NOT/an-image",),
        ("--platform", "linux", "alpine"),
        ("--layers", "0", "alpine"),
        ("--username", "ann", "alpine"),
        ("--authfile", "/nowhere.json", "alpine"),
        ("-f", "-", "--username", "ann", "--password-stdin"),
        ("-f", "/nowhere.txt"),
        ("-f", "/"),
        ("-f", "-"),
        ("sha256:" + "a" * 64,),
    ],
)
def test_wrong_usage_is_told_from_failure(lab: Lab, args: tuple[str, ...]) -> None:
    assert run_command(lab.cache, "warm", *args, status=2).stderr


@pytest.mark.parametrize("args", [("warm",), ("warm", "--json"), ("export", "-o", "-")])
def test_a_reader_may_leave(lab: Lab, args: tuple[str, ...]) -> None:
    repo = lab.repo()
    lab.origins["reg.test"].push(repo, "1.0", make_image(layer_size=300_000, seed=90_006))
    run_command(lab.cache, "warm", f"reg.test/{repo}:1.0")
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "CACHE_DIR": str(lab.cache.cache_dir)}
    argv = command(*args, f"reg.test/{repo}:1.0")
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, env=env, timeout=20, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_images_are_carried_to_a_cache_without_network(lab: Lab, other: Lab, tmp_path: Path) -> None:
    repo = lab.repo()
    image = lab.image("reg.test", repo)
    tar = tmp_path / "images.tar"
    run_command(lab.cache, "warm", f"reg.test/{repo}:1.0")

    run_command(lab.cache, "export", f"reg.test/{repo}:1.0", "-o", tar)
    assert names(run_command(other.cache, "import", tar)) == [f"reg.test/{repo}:1.0"]

    for kind, data in (("tag", image.manifest), ("digest", image.manifest), ("layer", image.layers[0].data)):
        assert_ok(other.get(target_of(kind, repo, image, "reg.test"), ACCEPT), data, "HIT")


def test_they_may_go_through_a_pipe(lab: Lab, other: Lab) -> None:
    repo = lab.repo()
    lab.image("reg.test", repo)
    run_command(lab.cache, "warm", f"reg.test/{repo}:1.0")

    tar = run_command(lab.cache, "export", f"reg.test/{repo}:1.0", "-o", "-").stdout

    assert names(run_command(other.cache, "import", "-", data=tar)) == [f"reg.test/{repo}:1.0"]


def test_what_is_missing_for_an_export_is_named_with_what_to_do(lab: Lab, tmp_path: Path) -> None:
    repo = lab.repo()
    image = lab.image("reg.test", repo)
    name = f"reg.test/{repo}:1.0"
    assert f"cacheyd warm {name}" in run_command(lab.cache, "export", name, "-o", tmp_path / "x", status=1).stderr.decode()

    lab.pull(manifest_target(repo, "1.0", "reg.test"), ACCEPT)
    error = run_command(lab.cache, "export", name, "-o", tmp_path / "x", status=1).stderr.decode()

    assert image.layers[0].digest in error
    assert f"cacheyd warm {name}" in error
    assert list(tmp_path.iterdir()) == []


def test_an_import_that_is_killed_leaves_nothing_wrong(lab: Lab, other: Lab) -> None:
    repo = lab.repo()
    lab.origins["reg.test"].push(repo, "1.0", make_image(layer_size=8 << 20, seed=90_005))
    run_command(lab.cache, "warm", f"reg.test/{repo}:1.0")
    tar = run_command(lab.cache, "export", f"reg.test/{repo}:1.0", "-o", "-").stdout
    partial = other.cache.cache_dir / "partial"

    for signum in (signal.SIGINT, signal.SIGKILL):
        environment = {**os.environ, "CACHE_DIR": str(other.cache.cache_dir)}
        with subprocess.Popen(
            command("import", "-"), stdin=subprocess.PIPE, env=environment, stderr=subprocess.DEVNULL
        ) as run:
            assert run.stdin
            run.stdin.write(tar[: len(tar) // 2])
            run.stdin.flush()
            wait_until(lambda: any(partial.iterdir()), "it has begun")
            run.send_signal(signum)
            run.wait(10)
        assert bool(list(partial.iterdir())) == (signum == signal.SIGKILL)
    assert other.cache.stored() == set()

    other.cache.stop()
    other.cache.start()
    wait_until(lambda: not any(partial.iterdir()), "the files are swept")
    assert other.cache.stored() == set()


def test_a_tar_that_is_none_is_refused(other: Lab) -> None:
    error = run_command(other.cache, "import", "-", data=b"no tar", status=1).stderr.decode()
    assert error.startswith("cacheyd: not a tar file")


# Where no cacheyd runs


def test_warming_carrying_and_serving_without_a_running_cache(own: Starter, tmp_path: Path) -> None:
    origin = own.origin(Origin())
    lab = own.lab(table("reg.test", origin), {"reg.test": origin})
    repo = lab.repo()
    image = lab.image("reg.test", repo)
    name, tar = f"reg.test/{repo}:1.0", tmp_path / "image.tar"
    lab.cache.stop()

    config = ("--config", lab.cache.directory / "cacheyd.toml")
    assert names(run_command(lab.cache, "warm", name, *config))[-1] == "1 of 1 image is in the cache"
    run_command(lab.cache, "export", name, "-o", str(tar))
    shutil.rmtree(lab.cache.cache_dir)
    run_command(lab.cache, "import", str(tar))
    assert not (lab.cache.cache_dir / "control.sock").exists()

    origin.down()
    lab.cache.start()
    assert lab.get(manifest_target(repo, "1.0", "reg.test"), ACCEPT).body == image.manifest
    for blob in image.blobs:
        assert_ok(lab.get(blob_target(repo, blob.digest, "reg.test")), blob.data, "HIT")
    origin.up()


def test_a_cache_that_cannot_be_had_is_said_in_a_line(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = run_command(lab.cache, "export", "reg.test/a:1", "-o", "-", "--cache-dir", str(tmp_path / "none"), status=1)
    assert missing.stderr.decode().splitlines() == [f"cacheyd: {tmp_path / 'none'} does not exist"]
    held = tmp_path / "held"
    held.mkdir()
    with (held / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        busy = run_command(lab.cache, "warm", "reg.test/a:1", "--cache-dir", str(held), status=1)
    assert busy.stderr.decode().splitlines() == [
        f"cacheyd: {held} is in use by another cacheyd (process 4711)",
        f"cacheyd: {held} cannot be used",
    ]

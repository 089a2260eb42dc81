"""`cacheyd ls`, `du`, `rm`, `gc`, `verify` and `stats` as people run them, beside a running cacheyd and without one."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin import control
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab
from tests.real.cache import REPOSITORY
from tests.real.procs import wait_until
from tests.support.images import Image, Index, make_image, make_index
from tests.support.origin import Origin

HUB, REG = "docker.io", "reg.test"
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


class Tools:
    """The command line on a cache directory, with the environment of nobody in particular."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cacheyd", *arguments, "--cache-dir", str(self.cache_dir)]

    @property
    def env(self) -> Mapping[str, str]:
        left = {k: v for k, v in os.environ.items() if not k.startswith("CACHEYD_") and k not in ("PORT", "CACHE_DIR")}
        return {**left, "CACHEYD_MIN_FREE": "1MiB"}

    def run(self, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        argv = [*prefix, *self.argv(*arguments)]
        return subprocess.run(argv, capture_output=True, text=True, cwd=REPOSITORY, timeout=40, check=False, env=self.env)

    def text(self, *arguments: str) -> str:
        """What it prints when it is right."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same as data."""
        done = self.run(*arguments, "--json")
        assert (done.returncode, done.stderr) == (code, "")
        return json.loads(done.stdout)

    def refused(self, *arguments: str, prefix: Sequence[str] = ()) -> str:
        """The one line of a tool that cannot work."""
        done = self.run(*arguments, prefix=prefix)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        return done.stderr.removeprefix("cacheyd: ").strip()

    def names(self, *patterns: str) -> list[str]:
        return [row["name"] for row in self.json("ls", *patterns)]


class Scene:
    """A cache with an image of two platforms, of which one was pulled, and another in another registry."""

    def __init__(self, starter: Starter) -> None:
        origin = starter.origin(Origin())
        config = registry_table(HUB, origin.url) + registry_table(REG, origin.url)
        self.lab: Lab = starter.lab(config, {"o": origin})
        self.daemon: Daemon = self.lab.cache
        self.tools = Tools(self.daemon.cache_dir)
        self.alpine: Image = make_image(seed=61_001, layers=2)
        self.index: Index = make_index(self.alpine, make_image(seed=61_002, architecture="arm64"))
        self.app: Image = make_image(seed=61_003)
        origin.push("library/alpine", "3.22", self.index)
        origin.push("app", "1.0", self.app)
        self.pull()

    def pull(self) -> None:
        """Both images, as a client of linux/amd64 does."""
        self.lab.pull(manifest_target("library/alpine", "3.22", HUB))
        self.lab.pull(manifest_target("library/alpine", self.alpine.digest, HUB))
        self.lab.pull(manifest_target("app", "1.0", REG))
        for repository, image, registry in (("library/alpine", self.alpine, HUB), ("app", self.app, REG)):
            for blob in image.blobs:
                self.lab.pull(blob_target(repository, blob.digest, registry))
        self.daemon.keeps(self.digests(self.alpine) | {self.index.digest} | self.digests(self.app))

    @staticmethod
    def digests(image: Image) -> set[str]:
        return {image.digest, *(blob.digest for blob in image.blobs)}


@pytest.fixture
def scene(own: Starter) -> Scene:
    return Scene(own)


@pytest.fixture(params=["beside", "alone"])
def either(request: pytest.FixtureRequest, scene: Scene) -> Scene:
    """With the daemon that has the directory, and after it."""
    if request.param == "alone":
        assert scene.daemon.stop() == 0
    return scene


def test_looking(either: Scene) -> None:
    tools = either.tools
    rows = {row["name"]: row for row in tools.json("ls")}
    assert sorted(rows) == ["docker.io/library/alpine:3.22", "reg.test/app:1.0"]
    alpine = rows["docker.io/library/alpine:3.22"]
    assert (alpine["digest"], alpine["complete"], alpine["missing"]) == (either.index.digest, True, [])
    assert [(p["platform"], p["stored"]) for p in alpine["platforms"]] == [("linux/amd64", True), ("linux/arm64", False)]
    assert tools.names("alpine") == tools.names("docker.io") == tools.names("*:3.22") == ["docker.io/library/alpine:3.22"]
    blobs = tools.json("ls", "--blobs")
    assert {row["digest"] for row in blobs} == either.daemon.stored()
    usage = tools.json("du")
    assert (usage["objects"], usage["bytes"]) == (len(blobs), sum(row["size"] for row in blobs))
    stats = tools.json("stats")
    assert (stats["store"]["objects"], stats["store"]["tags"]) == (len(blobs), 2)
    assert (stats["server"] is not None) == either.daemon.running
    if stats["server"] is not None:
        assert stats["server"]["misses"] > 0


def test_what_people_read(either: Scene) -> None:
    lines = either.tools.text("ls").splitlines()
    assert [line.split()[0] for line in lines] == ["IMAGE", "docker.io/library/alpine:3.22", "reg.test/app:1.0"]
    assert either.index.digest in lines[1]
    assert "linux/amd64 (1 of 2)" in lines[1]
    assert "reg.test" in either.tools.text("du")
    assert "stored" in either.tools.text("stats")
    assert "blob" in either.tools.text("ls", "--blobs")
    none = either.tools.run("ls", "reg.test/none")
    assert (none.returncode, none.stdout, none.stderr) == (1, "nothing found\n", "")
    assert either.tools.json("ls", "reg.test/none", code=1) == either.tools.json("ls", "--blobs", "none", code=1) == []
    for command in (["ls"], ["du"], ["stats"], ["gc"], ["rm", "alpine", "--dry-run"]):
        assert "\x1b" not in either.tools.text(*command)


def test_removing(either: Scene) -> None:
    tools = either.tools
    gone = Scene.digests(either.alpine) | {either.index.digest}
    for dry in (True, False):
        found = tools.json("rm", "alpine:3.22", *(["--dry-run"] if dry else []))
        assert (found["objects"], found["tags"], found["dry_run"]) == (len(gone), 1, dry)
        assert found["images"] == ["docker.io/library/alpine:3.22"]
        assert either.daemon.stored() & gone == (gone if dry else set())
    assert tools.names() == ["reg.test/app:1.0"]
    assert tools.json("rm", "alpine:3.22", code=1)["not_found"] == ["alpine:3.22"]
    assert tools.run("rm", "alpine").stdout == "not found: alpine\n"
    assert tools.text("rm", f"{REG}/*").splitlines()[0] == "removed: reg.test/app:1.0"
    assert tools.json("rm", "--all", code=1)["objects"] == 0
    assert either.daemon.stored() == set()
    if either.daemon.running:
        # What was removed is fetched anew.
        either.pull()
        assert either.daemon.metric("cacheyd_evictions_total", 'reason="removed"') == 8


def test_what_stays_after_a_removal_is_told(either: Scene) -> None:
    """Another repository has the same image."""
    tools = either.tools
    either.daemon.start() if not either.daemon.running else None
    either.lab.origins["o"].push("copy", "2.0", either.app)
    either.lab.pull(manifest_target("copy", "2.0", REG))
    manifest = f"{REG}/app@{either.app.digest}"

    said = tools.text("rm", f"{REG}/app:1.0").splitlines()
    assert said[:2] == [f"stays: {manifest}, as {REG}/copy:2.0 needs it", f"removed: {REG}/app:1.0, the tag only"]
    assert said[2].startswith("0 objects and 1 tag removed")
    assert tools.names(f"{REG}/app") == [manifest]
    again = tools.run("rm", f"{REG}/app")
    assert (again.returncode, again.stdout.splitlines()) == (1, [f"stays: {manifest}, as {REG}/copy:2.0 needs it"])
    assert tools.json("rm", f"{REG}/copy", f"{REG}/app")["stays"] == []
    assert tools.names() == ["docker.io/library/alpine:3.22"]


def test_removing_by_digest(either: Scene) -> None:
    layer = either.alpine.blobs[-1].digest
    assert either.tools.json("rm", layer)["objects"] == 1
    (row,) = either.tools.json("ls", "alpine")
    assert (row["complete"], row["missing"]) == (False, [layer])
    assert "1 blob missing" in either.tools.text("ls", "alpine")
    assert either.tools.json("rm", f"{REG}/app@{either.app.digest}")["tags"] == 1
    assert either.tools.json("rm", "--all")["objects"] == 4


def test_tidying_up(either: Scene) -> None:
    assert either.tools.json("gc", "--unreferenced")["unreferenced"] == 0
    stray = either.daemon.cache_dir / "partial" / "stray"
    stray.write_bytes(b"x")
    assert either.tools.json("gc")["partials"] == 1
    assert not stray.exists()
    assert either.tools.text("gc").endswith("8 objects left\n")


def test_checking(either: Scene) -> None:
    assert either.tools.json("verify") == {"checked": 8, "bytes": either.tools.json("du")["bytes"], "dropped": []}
    done = either.tools.run("verify")
    assert (done.returncode, done.stdout.startswith("8 objects checked")) == (0, True)
    assert done.stderr.splitlines()[-1].startswith("8 of 8 objects")
    layer = either.alpine.blobs[-1]
    file = either.daemon.blob_file(layer.digest)
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"X")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    either.daemon.expect("does not hold what its name says")
    done = either.tools.run("verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["dropped"]) == (1, [layer.digest])
    assert not file.exists()


def test_wrong_usage(scene: Scene) -> None:
    for arguments in (["rm"], ["rm", "--all", "alpine"], ["rm", "A B"], ["ls", "a@b"], ["ls", "--config", "/no/such/file"]):
        done = scene.tools.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        # What is wrong with the options is said by the command itself.
        assert ("cacheyd: " in done.stderr) or ("cacheyd rm: error: " in done.stderr)


def test_a_reader_may_leave(either: Scene) -> None:
    command = subprocess.Popen(
        either.tools.argv("ls"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, env=either.tools.env
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait(20) == 0


def test_on_a_terminal(scene: Scene) -> None:
    assert "\x1b[1m" in on_terminal(scene.tools, "ls")
    shown = on_terminal(scene.tools, "ls", NO_COLOR="1", COLUMNS="300")
    assert f"{scene.index.digest[:19]} " in shown
    assert "linux/amd64 (1 of 2)" in shown
    assert "8/8" in on_terminal(scene.tools, "verify")


def on_terminal(tools: Tools, *arguments: str, **env: str) -> str:
    """What it writes to a terminal."""
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        tools.argv(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY,
        env={**tools.env, "TERM": "xterm", "COLUMNS": "150", **env},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # The terminal has nobody on its other side any more.
    os.close(ours)
    assert command.wait(20) == 0
    return shown.decode()


# The directory


def test_after_a_wipe_the_running_cacheyd_is_found_again(scene: Scene) -> None:
    shutil.rmtree(scene.daemon.cache_dir)
    wait_until((scene.daemon.cache_dir / control.NAME).exists, "the socket is back")
    assert scene.tools.json("stats")["server"] is not None
    wait_until(lambda: scene.tools.names() == [], "nothing is there")
    scene.pull()
    assert len(scene.tools.names()) == 2


def test_the_socket_of_a_killed_process_stops_nothing(scene: Scene) -> None:
    scene.daemon.kill()
    assert (scene.daemon.cache_dir / control.NAME).exists()
    assert len(scene.tools.names()) == 2
    scene.daemon.start()
    assert scene.tools.json("stats")["server"] is not None


def test_a_stopped_process_leaves_no_socket(scene: Scene) -> None:
    assert scene.daemon.stop() == 0
    assert not (scene.daemon.cache_dir / control.NAME).exists()


def test_a_long_path(own: Starter) -> None:
    own.directory /= "d" * 150
    own.directory.mkdir()
    scene = Scene(own)
    assert len(str(scene.daemon.cache_dir)) > 150
    assert scene.tools.json("stats")["server"] is not None
    assert len(scene.tools.names()) == 2


@pytest.mark.parametrize("command", [["ls"], ["rm", "--all"], ["gc"]])
def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path, command: list[str]) -> None:
    missing = tmp_path / "none"
    assert Tools(missing).refused(*command) == f"there is no directory {missing}"
    assert not missing.exists()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert Tools(tmp_path).refused("gc") == f"{tmp_path} is not the directory of a cache"
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_an_empty_directory_is_an_empty_cache(tmp_path: Path) -> None:
    assert Tools(tmp_path).json("ls") == []


def test_who_has_the_directory_and_does_not_answer_is_named(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4321\n")
        lock.flush()
        said = Tools(tmp_path).refused("ls")
    assert "4321" in said
    assert "does not answer" in said


def test_a_process_that_stands_still_is_named(scene: Scene) -> None:
    os.kill(scene.daemon.pid, signal.SIGSTOP)
    try:
        said = scene.tools.refused("ls")
    finally:
        os.kill(scene.daemon.pid, signal.SIGCONT)
    assert str(scene.daemon.pid) in said
    assert "does not answer" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_leaves_the_directory_to_its_owner(scene: Scene) -> None:
    assert scene.daemon.stop() == 0
    directory = scene.daemon.cache_dir
    shutil.rmtree(directory / "index")
    for path in (*directory.rglob("*"), directory):
        os.chown(path, 65534, 65534)
    with ExitStack() as closing:
        # The way to it has to be open to its owner.
        for parent in directory.parents:
            closing.callback(parent.chmod, mode := parent.stat().st_mode)
            parent.chmod(mode | 0o011)
        assert scene.tools.json("rm", scene.app.digest)["objects"] == 3
        assert scene.tools.json("gc")["objects"] == 5
    assert {(path.stat().st_uid, path.stat().st_gid) for path in directory.rglob("*")} == {(65534, 65534)}


@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid() != 0, reason="only root can take permissions from itself")
def test_without_permission(scene: Scene) -> None:
    """A directory of somebody else, for one who is not root."""
    directory = scene.daemon.cache_dir
    for path in (*directory.rglob("*"), directory):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert "no permission" in scene.tools.refused("ls", prefix=WITHOUT_CAPABILITIES)
    assert scene.daemon.stop() == 0
    assert "no permission" in scene.tools.refused("ls", prefix=WITHOUT_CAPABILITIES)
    directory.chmod(0o700)
    assert "no permission" in scene.tools.refused("ls", prefix=WITHOUT_CAPABILITIES)

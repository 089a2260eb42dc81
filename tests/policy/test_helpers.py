"""Short-lived logins: credential helpers, credential providers and auth files, as real programs beside a daemon."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, ask_all, assert_ok, basic, statuses
from tests.policy.origins import LoginOrigin
from tests.real.cache import REPOSITORY
from tests.real.procs import wait_until
from tests.support.commands import run_command
from tests.support.origin import Origin
from tests.support.programs import counted, left_alive, provides, runs_of, says, write_program

USER, SECRET, NEXT = "robot", "sesame-one", "sesame-two"
# The deadline of helpers is no longer than that of heads.
PATIENCE = 2.0
LABELS = ("helper", "provider", "file", "store", "hang", "broken", "short", "stale", "thief")


def table(name: str, origin: Origin, *lines: str) -> str:
    return "\n".join((f'[registries."{name}.test"]', f'upstream = "{origin.url}"', 'auth = "credentials"', *lines, ""))


class Programs(Lab):
    """A lab with a directory of programs that is on the daemon's PATH."""

    bin: Path

    def runs(self, name: str) -> int:
        """How often a program ran."""
        return runs_of(self.bin / f"{name}.runs")

    def write(self, name: str, body: str) -> None:
        """Writes a program, its runs are counted."""
        write_program(self.bin / name, counted(body, self.bin / f"{name}.runs"))

    def write_auths(self, password: str) -> None:
        """The auth file."""
        file = self.bin / "config.json"
        login = base64.b64encode(f"{USER}:{password}".encode()).decode()
        auths = {name: {"auth": login} for name in ("file.test", "warm.test")}
        file.with_suffix(".new").write_text(json.dumps({"auths": auths, "credHelpers": {"store.test": "kept"}}))
        file.with_suffix(".new").rename(file)


@pytest.fixture(scope="module")
def lab(shared: Starter, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    directory = tmp_path_factory.mktemp("bin")
    origins: dict[str, Origin] = {name: shared.origin(LoginOrigin()) for name in LABELS}
    for name, origin in origins.items():
        origin.require_basic(USER, SECRET)
        if name not in ("file", "short"):
            origin.require_token()
    config = "".join(
        (
            table("helper", origins["helper"], 'credential_helper = "right"'),
            table(
                "provider", origins["provider"], f'credential_command = ["{directory}/provider", "--token=argument-secret"]'
            ),
            table("file", origins["file"], f'auth_file = "{directory}/config.json"'),
            table("store", origins["store"], f'auth_file = "{directory}/config.json"'),
            table("hang", origins["hang"], 'credential_helper = "hang"'),
            table("broken", origins["broken"], 'credential_helper = "broken"'),
            table("short", origins["short"], f'credential_command = ["{directory}/short"]'),
        )
    )
    config += table("stale", origins["stale"], f'credential_command = ["{directory}/stale"]', 'tag_ttl = "0s"')
    programs = Programs(None, origins, shared.numbers)  # type: ignore[arg-type]
    programs.bin = directory
    programs.write(
        "docker-credential-right", f"cat > {directory}/asked; {says(USER, SECRET)}".replace("cat > /dev/null; ", "")
    )
    programs.write("docker-credential-kept", says(USER, SECRET))
    programs.write("provider", f"sleep 0.3; {provides({'127.0.0.1': (USER, SECRET)})}")
    programs.write("stale", provides({"127.0.0.1": (USER, SECRET)}))
    programs.write("short", provides({"127.0.0.1": (USER, SECRET)}))
    programs.write("docker-credential-hang", f"sleep 60 & echo $! > {directory}/pids; echo $$ >> {directory}/pids; wait")
    programs.write("docker-credential-broken", "echo sesame-of-the-output; echo password is sesame-of-the-errors >&2; exit 7")
    programs.write_auths(SECRET)
    path = f"{directory}:{os.environ['PATH']}"
    programs.cache = shared.daemon(config, {"head_timeout": f"{PATIENCE:g}s"}, env={"PATH": path, "DEBUG": "1"})
    return programs


@pytest.fixture(autouse=True)
def nothing_secret(lab: Programs) -> Iterator[None]:
    """Whatever a test does, no password, token or Authorization is in the log, with DEBUG=1."""
    yield
    secrets = ["sesame", "test-token-", "Authorization", "argument-secret"]
    secrets += [basic(USER, password).removeprefix("Basic ") for password in (SECRET, NEXT)]
    log = lab.cache.log()
    assert [secret for secret in secrets if secret.lower() in log.lower()] == []


def tag(lab: Programs, name: str) -> str:
    """The target of a new image's tag."""
    repo = lab.repo()
    lab.image(name, repo)
    return manifest_target(repo, "1.0", f"{name}.test")


def forget(lab: Programs) -> None:
    """A reload of the settings, after which no login is known."""
    before = lab.cache.log_size()
    os.kill(lab.cache.pid, signal.SIGHUP)
    wait_until(lambda: any("settings reloaded" in line for line in lab.cache.lines(before)), "the reload", seconds=5)


@pytest.mark.parametrize("name", ["helper", "provider", "file", "store"])
def test_a_client_without_a_login_gets_the_image(lab: Programs, name: str) -> None:
    repo = lab.repo()
    image = lab.image(name, repo)
    assert_ok(lab.get(manifest_target(repo, "1.0", f"{name}.test")), image.manifest, "MISS")
    layer = image.layers[0]
    assert_ok(lab.get(blob_target(repo, layer.digest, f"{name}.test")), layer.data, "MISS")


def test_a_helper_is_asked_for_the_host_that_gets_the_login(lab: Programs) -> None:
    lab.pull(tag(lab, "helper"))
    assert (lab.bin / "asked").read_text() == lab.origins["helper"].url.removeprefix("http://")
    assert lab.runs("docker-credential-right") == 1


def test_many_at_once_need_one_run(lab: Programs) -> None:
    targets = [tag(lab, "provider") for _ in range(20)]
    before = lab.runs("provider")
    forget(lab)
    with ExitStack() as clients:
        replies = [client.read_reply() for client in ask_all(lab.cache, targets, clients)]
    assert set(statuses(replies)) == {200}
    assert lab.runs("provider") == before + 1


def test_a_file_is_read_anew_when_it_changes(lab: Programs) -> None:
    lab.pull(tag(lab, "file"))
    lab.origins["file"].require_basic(USER, NEXT)
    lab.write_auths(NEXT)
    lab.pull(tag(lab, "file"))
    lab.origins["file"].require_basic(USER, SECRET)
    lab.write_auths(SECRET)
    lab.pull(tag(lab, "file"))


def test_a_login_that_is_refused_is_asked_for_again(lab: Programs) -> None:
    lab.pull(tag(lab, "short"))
    lab.origins["short"].require_basic(USER, NEXT)
    lab.write("short", provides({"127.0.0.1": (USER, NEXT)}))
    lab.pull(tag(lab, "short"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_replaced(lab: Programs, status: int) -> None:
    repo = lab.repo()
    lab.image("helper", repo)
    lab.image("helper", repo, "2.0")
    lab.pull(manifest_target(repo, "1.0", "helper.test"))
    origin = lab.origins["helper"]
    assert isinstance(origin, LoginOrigin)
    if status == 401:
        origin.expire_tokens()
    else:
        origin.fault(f"{repo}/manifests/2.0", times=1, status=403)
    assert lab.pull(manifest_target(repo, "2.0", "helper.test")).cache == "MISS"
    assert len(origin.tokens_for(repo)) == 2


def test_one_that_hangs_costs_its_deadline_once(lab: Programs) -> None:
    lab.cache.expect("the login of hang.test cannot be had: docker-credential-hang did not end within 2 s")
    targets = [tag(lab, "hang") for _ in range(5)]
    started = time.monotonic()
    with ExitStack() as clients:
        asking = ask_all(lab.cache, targets, clients)
        # Meanwhile others are served.
        lab.pull(tag(lab, "helper"))
        assert time.monotonic() - started < PATIENCE
        replies = [client.read_reply() for client in asking]
    assert set(statuses(replies)) == {503}
    assert PATIENCE - 0.1 < time.monotonic() - started < PATIENCE + 2
    started = time.monotonic()
    assert lab.get(targets[0]).status == 503
    assert time.monotonic() - started < 1
    assert lab.runs("docker-credential-hang") == 1
    assert left_alive(lab.bin / "pids") == []
    assert not any("child process" in line for line in lab.cache.lines())
    # It says nothing about the registry.
    assert lab.cache.metric("cacheyd_upstreams_dead") == 0
    assert lab.origins["hang"].requests == []


def test_one_that_fails_is_said_without_what_it_wrote(lab: Programs) -> None:
    lab.cache.expect("the login of broken.test cannot be had: docker-credential-broken failed: status 7: password is ")
    reply = lab.get(tag(lab, "broken"))
    assert reply.status == 503
    assert b"sesame" not in reply.body
    assert lab.origins["broken"].requests == []


def test_what_is_cached_is_served_without_a_login(lab: Programs) -> None:
    lab.cache.expect("the login of stale.test cannot be had: stale failed: status 1")
    target = tag(lab, "stale")
    lab.pull(target)
    assert lab.get(target).cache == "REVALIDATED"
    forget(lab)
    lab.write("stale", "exit 1")
    assert lab.get(target).cache == "STALE"


def test_the_login_goes_nowhere_else(lab: Programs) -> None:
    """As one of the settings: not to a token service that is not the registry's."""
    lab.cache.expect("helper.test sends logins to 127.0.0.1, which is not its own")
    origin, thief = lab.origins["helper"], lab.origins["thief"]
    origin.require_token(thief)
    try:
        assert lab.get(tag(lab, "helper")).status == 503
    finally:
        origin.require_token()
    assert thief.requests == []


# Commands


def cacheyd(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and all that it said."""
    argv = [sys.executable, "-m", "cacheyd", *map(str, arguments)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def test_what_cannot_be_found_is_said(own: Starter, tmp_path: Path) -> None:
    origin = own.origin(Origin())
    config = table("a", origin, 'credential_helper = "no-such"') + table(
        "b", origin, 'credential_command = ["/none", "x-secret"]'
    )
    file = tmp_path / "check.toml"
    file.write_text(f'cache_dir = "{tmp_path}/cache"\n{config}')
    status, said = cacheyd("config", "check", "--config", file)
    assert status == 1
    assert 'registries."a.test": docker-credential-no-such cannot be found' in said
    assert 'registries."b.test": /none cannot be found' in said
    status, said = cacheyd("config", "show", "--config", file)
    assert (status, "x-secret" in said, '["/none", "…"]' in said) == (0, False, True)
    daemon = own.daemon(config)
    warnings = [line for line in daemon.lines() if "cannot be found" in line]
    assert [json.loads(line)["level"] for line in warnings] == ["warning"] * 2


@pytest.mark.parametrize("running", [True, False])
def test_warm_runs_the_helpers_of_an_auth_file(
    lab: Programs, own: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    origin = own.origin(LoginOrigin())
    origin.require_basic(USER, SECRET)
    origin.require_token()
    small = own.lab(f'[registries."warm.test"]\nupstream = "{origin.url}"\n', {"warm": origin})
    repo = small.repo()
    small.image("warm", repo)
    if not running:
        assert small.cache.stop() == 0
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {"warm.test": {}}, "credsStore": "own"}))
    args = ("warm", "--config", small.cache.directory / "cacheyd.toml", "--authfile", file, f"warm.test/{repo}:1.0")
    done = run_command(small.cache, *args, status=2)
    assert b"docker-credential-own cannot be found" in done.stderr
    write_program(tmp_path / "docker-credential-own", f"cat > {tmp_path}/asked; printf no >&2; exit 1")
    assert b"status 1: no" in run_command(small.cache, *args, status=2).stderr
    write_program(tmp_path / "docker-credential-own", counted(says(USER, SECRET), tmp_path / "runs"))
    run_command(small.cache, *args)
    assert (tmp_path / "asked").read_text() == "warm.test"
    assert runs_of(tmp_path / "runs") == 1

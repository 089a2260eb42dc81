"""`cacheyd config check` and `show`, wrong settings, and new ones by SIGHUP."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cacheyd import cli
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_denied, assert_ok
from tests.real.cache import REPOSITORY
from tests.real.procs import free_port, wait_until
from tests.support.origin import Origin

FILE = """
port = 3456
max_size = "5GiB"
pin = ["docker.io/library/*:*"]
[defaults]
tag_ttl = "10m"
proxy = "http://me:proxy-secret@proxy.corp:3128"
[registries."ghcr.io"]
auth = "credentials"
username = "robot"
password = "registry-secret"
tag_ttls = { "v*" = "1d" }
[registries."Reg.Example:5000"]
upstream = ["http://reg.example:5000/path", "https://b.example"]
insecure_skip_verify = true
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CACHEYD_")] + ["PORT", "CACHE_DIR", "DEBUG"]:
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def comments(shown: str) -> dict[str, str]:
    """Where each value comes from, by the table and name it is shown under."""
    found, table = {}, ""
    for line in shown.splitlines():
        if line.startswith("["):
            table = line
        elif line:
            found[f"{table}{line.partition(' = ')[0]}"] = line.rpartition("  # ")[2]
    return found


def test_check_and_show(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text(FILE)
    monkeypatch.setenv("CACHEYD_STALE_IF_ERROR", "1d")
    monkeypatch.setenv("PORT", "4000")
    assert run(capsys, "config", "check", "--config", str(file))[0] == 0
    code, out, err = run(capsys, "config", "show", "--config", str(file), "--retries", "7")
    assert (code, err) == (0, "")
    shown = tomllib.loads(out)
    assert (shown["port"], shown["retries"], shown["max_size"]) == (4000, 7, 5 << 30)
    assert (shown["defaults"]["tag_ttl"], shown["defaults"]["stale_if_error"]) == (600, 86400)
    ghcr, reg = shown["registries"]["ghcr.io"], shown["registries"]["reg.example:5000"]
    assert ghcr["tag_ttls"] == {"v*": 86400, "latest": 0}
    assert (ghcr["upstream"], ghcr["tag_ttl"]) == (["https://ghcr.io"], 600)
    assert reg["upstream"] == ["http://reg.example:5000/path", "https://b.example"]
    assert "secret" not in out.replace("secret-", "")
    assert ghcr["password"] == shown["defaults"]["proxy"] == "…"
    where = comments(out)
    assert (where["port"], where["retries"], where["max_size"], where["grace"]) == (
        "environment",
        "flag",
        str(file),
        "default",
    )
    assert where["[defaults]stale_if_error"] == "environment"
    assert where['[registries."ghcr.io"]password'] == str(file)
    assert where['[registries."ghcr.io"]stale_if_error'] == "environment"


def test_what_is_shown_can_be_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, again = tmp_path / "c.toml", tmp_path / "again.toml"
    file.write_text(FILE.replace('proxy = "http://me:proxy-secret@proxy.corp:3128"', ""))
    _, out, _ = run(capsys, "config", "show", "--config", str(file))
    again.write_text(out)
    code, shown, err = run(capsys, "config", "show", "--config", str(again))
    assert (code, err) == (0, "")
    assert tomllib.loads(shown) == tomllib.loads(out)


WRONG = {
    "no toml": "port = ",
    "unknown key": "prot = 3000",
    "unknown table": "[registry]\nx = 1",
    "wrong type": 'retries = "many"',
    "out of range": "port = 70000",
    "a duration": '[defaults]\ntag_ttl = "5 minutes"',
    "a size": 'max_size = "lots"',
    "in the wrong place": 'tag_ttl = "5m"',
    "a registry's own in defaults": '[defaults]\nusername = "x"',
    "no registry": '[registries."a b"]',
    "twice": '[registries."ghcr.io"]\n[registries."GHCR.IO"]',
    "a url": '[registries."ghcr.io"]\nupstream = "ghcr.io"',
    "a url with a login": '[registries."ghcr.io"]\nupstream = "https://a:b@ghcr.io"',
    "a choice": '[defaults]\naccess = "closed"',
    "a missing file": '[registries."ghcr.io"]\nca_file = "/no/such/file"',
    "a login without password": '[registries."ghcr.io"]\nauth = "credentials"\nusername = "x"',
    "two passwords": '[registries."ghcr.io"]\nauth = "credentials"\nusername = "x"\npassword = "a"\npassword_env = "B"',
    "a key without certificate": '[registries."ghcr.io"]\nclient_key = "/etc/hostname"',
    "tls_key alone": 'tls_key = "/etc/hostname"',
    "credentials for all": '[defaults]\nauth = "credentials"',
    "a list": 'deny = "a\\nb"',
    "not utf-8": None,
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_files_are_exit_2_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    file = tmp_path / "c.toml"
    content = WRONG[what]
    file.write_bytes(b"host = '\xff'" if content is None else content.encode())
    for command in (("config", "check"), ("config", "show"), ("serve",)):
        code, out, err = run(capsys, *command, "--config", str(file))
        assert (code, out) == (2, "")
        assert err.startswith("cacheyd: ")
        assert err.count("\n") == 1
        assert str(file) in err or what == "tls_key alone"


def test_a_secret_is_not_in_the_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[registries."ghcr.io"]\npassword = ["registry-secret"]\n')
    assert "registry-secret" not in run(capsys, "config", "check", "--config", str(file))[2]
    file.write_text('[defaults]\nproxy = "ftp://me:proxy-secret@x"\n')
    assert "proxy-secret" not in run(capsys, "config", "check", "--config", str(file))[2]


@pytest.mark.parametrize(
    ("variable", "value"), [("CACHEYD_PORT", "x"), ("PORT", "0"), ("CACHEYD_TAG_TTL", "soon"), ("CACHEYD_CONFIG", "/no/such")]
)
def test_a_wrong_environment_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, _, err = run(capsys, "config", "check")
    assert code == 2
    assert err.count("\n") == 1
    assert variable in err or value in err


def test_as_a_process(tmp_path: Path) -> None:
    def cacheyd(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cacheyd", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=REPOSITORY, timeout=20, check=False)

    file = tmp_path / "c.toml"
    file.write_text("nonsense = 1\n")
    failed = cacheyd("serve", "--config", str(file))
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    file.write_text("port = 3000\n")
    checked = cacheyd("config", "check", "--config", str(file))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert cacheyd("config").returncode == 2


@pytest.mark.parametrize("arguments", [("config", "show"), ("config", "check"), ("--help",), ("warm", "--help")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_may_leave(tmp_path: Path, arguments: tuple[str, ...], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "CACHE_DIR": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    argv = [sys.executable, "-m", "cacheyd", *arguments]
    command = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, cwd=REPOSITORY, env=env, timeout=20, check=False)
    os.close(writing)
    assert command.stderr == b""
    # argparse itself takes no notice.
    assert command.returncode == 141 or (unbuffered and "--help" in arguments and command.returncode == 0)


def test_who_reads_the_warnings_may_leave(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "CACHE_DIR": str(tmp_path), "CACHEYD_NOTHING": "x"}
    argv = [sys.executable, "-m", "cacheyd", "config", "check"]
    command = subprocess.run(argv, stdout=subprocess.PIPE, stderr=writing, cwd=REPOSITORY, env=env, timeout=20, check=False)
    os.close(writing)
    assert (command.returncode, command.stdout) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (("ls", "--foo"), "cacheyd ls"),
        (("rm",), "cacheyd rm"),
        (("rm", "--all", "alpine"), "cacheyd rm"),
        (("config", "show", "--foo"), "cacheyd config show"),
        (("config", "--foo", "show"), "cacheyd config show"),
        (("warm", "--foo", "alpine"), "cacheyd warm"),
        (("export", "alpine"), "cacheyd export"),
        (("--foo", "ls"), "cacheyd [-h]"),
        (("nothing",), "cacheyd [-h]"),
        ((), "cacheyd [-h]"),
    ],
)
def test_wrong_usage_is_told_with_the_usage_of_the_command(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], usage: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: {usage}")


# What can hardly be meant


def test_check_warns_and_says_yes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEYD_TAG_TLL", "a-secret")
    monkeypatch.setenv("CACHEYD_PORT_3000_TCP", "tcp://10.0.0.1:3000")
    code, out, err = run(capsys, "config", "check", "--min-free", "0", "--cache-dir", str(tmp_path))
    assert (code, out) == (0, "the settings can be used\n")
    unknown, no_bound = err.splitlines()
    assert unknown.startswith("cacheyd: warning: environment: CACHEYD_TAG_TLL: ")
    assert unknown.endswith("; did you mean CACHEYD_TAG_TTL?")
    assert no_bound.startswith("cacheyd: warning: neither max_size nor min_free is set: ")
    assert "secret" not in err


def test_check_warns_of_images_that_are_written_as_registries(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'allow = ["nginx", "ghcr.io", "mine", "localhost"]\ndeny = ["acme/app:1"]\n'
        'min_ages = { "redis" = "1d" }\n[registries.mine]\n'
    )
    code, _, err = run(capsys, "config", "check", "--config", str(file), "--cache-dir", str(tmp_path))
    assert code == 0
    assert err.splitlines() == [
        'cacheyd: warning: allow: "nginx" means a registry called nginx; the image of Docker Hub is "docker.io/library/nginx"',
        'cacheyd: warning: deny: "acme/app:1" means images of a registry called acme;'
        ' the image of Docker Hub is "docker.io/acme/app:1"',
        'cacheyd: warning: min_ages: "redis" means a registry called redis;'
        ' the image of Docker Hub is "docker.io/library/redis"',
    ]


def warnings(lines: list[str]) -> list[str]:
    """What the log has of this level."""
    return [entry["msg"] for entry in map(json.loads, lines) if entry["level"] == "warning"]


def test_the_start_warns_and_so_does_a_reload_of_what_is_new(own: Starter) -> None:
    links = {"CACHEYD_PORT": "tcp://10.0.0.1:3000", "CACHEYD_SERVICE_HOST": "10.0.0.1", "CACHEYD_SERVICE_PORT": "3000"}
    daemon = own.daemon("", env=links | {"CACHEYD_TAG_TLL": "a-secret", "CACHEYD_FOO": "x"}, kind=FileDaemon)
    assert isinstance(daemon, FileDaemon)
    foo, typo = warnings(daemon.lines())
    assert foo.startswith("environment: CACHEYD_FOO: ")
    assert typo.endswith("did you mean CACHEYD_TAG_TTL?")
    assert "secret" not in "".join(daemon.lines())
    (no_bound,) = warnings(daemon.reload('min_free = "0"'))
    assert no_bound.startswith("neither max_size nor min_free is set: ")
    assert warnings(daemon.reload('min_free = "0"')) == warnings(daemon.reload("")) == []


# SIGHUP


class FileDaemon(Daemon):
    """A daemon whose port is in its configuration file."""

    def argv(self) -> list[str]:
        self.write(self.config_file.read_text())
        return [sys.executable, "-m", "cacheyd", "serve", "--host", "127.0.0.1", "--cache-dir", str(self.cache_dir)]

    def write(self, config: str, *, port: int | None = None) -> None:
        """Changes the file, not the daemon."""
        self.config_file.write_text(f"port = {port or self.port}\n{config}")

    def reload(self, config: str, *, port: int | None = None) -> list[str]:
        """Changes the file, tells the daemon, and gives what it logged about it but for requests."""
        self.write(config, port=port)
        before = self.log_size()
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: any("reloaded" in line for line in self.lines(before)), "an answer to SIGHUP", seconds=5)
        return [line for line in self.lines(before) if '"request"' not in line]


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origins = {name: shared.origin(Origin()) for name in ("a", "b")}
    daemon = shared.daemon(registry_table("a.test", origins["a"].url), kind=FileDaemon)
    return Lab(daemon, origins, shared.numbers)


def reload(lab: Lab, extra: str = "", table: str = "", more: str = "", *, port: int | None = None) -> list[str]:
    """New settings: at the top, for a.test, and tables."""
    assert isinstance(lab.cache, FileDaemon)
    return lab.cache.reload(f"{extra}\n{registry_table('a.test', lab.origins['a'].url)}{table}\n{more}", port=port)


def test_a_new_tag_ttl_counts_at_once(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    lab.image("a", repo)
    target = manifest_target(repo, "1.0", "a.test")
    lab.pull(target)
    assert lab.get(target).cache == "HIT"
    (line,) = reload(lab, table='tag_ttl = "0s"')
    assert json.loads(line)["msg"] == "settings reloaded"
    assert lab.get(target).cache == "REVALIDATED"
    reload(lab)
    assert lab.get(target).cache == "HIT"


def test_what_is_denied_is_gone_at_once(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    image = lab.image("a", repo)
    targets = [manifest_target(repo, "1.0", "a.test"), blob_target(repo, image.config.digest, "a.test")]
    for target in targets:
        lab.pull(target)
        assert lab.get(target).cache == "HIT"
    reload(lab, 'deny = ["a.test"]')
    for target in (*targets, manifest_target(repo, "2.0", "a.test")):
        assert_denied(lab.get(target))
    reload(lab)
    assert lab.get(targets[0]).cache == "HIT"


def test_new_registries_and_new_upstreams(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    target = manifest_target(repo, "1.0", "b.test")
    assert lab.get(target).status >= 500
    image = lab.image("b", repo)
    reload(lab, more=registry_table("b.test", lab.origins["b"].url))
    assert_ok(lab.get(target), image.manifest, "MISS")
    # a.test moves to another origin.
    other = lab.repo()
    image = lab.image("b", other)
    assert isinstance(lab.cache, FileDaemon)
    lab.cache.reload(registry_table("a.test", lab.origins["b"].url))
    assert_ok(lab.get(manifest_target(other, "1.0", "a.test")), image.manifest, "MISS")


def test_access_counts_at_once(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    image = lab.image("a", repo)
    target = blob_target(repo, image.config.digest, "a.test")
    lab.pull(target)
    for _ in range(3):
        assert lab.get(target).cache == "HIT"
    reload(lab, table='access = "verify"')
    fault = lab.origins["a"].fault(repo, status=401)
    assert lab.get(target).status == 401
    fault.remove()
    reload(lab)


def test_a_new_port_takes_a_restart_and_the_rest_is_taken(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    lab.image("a", repo)
    target = manifest_target(repo, "1.0", "a.test")
    lab.pull(target)
    lines = reload(lab, "max_flights = 3", table='tag_ttl = "0s"', port=free_port())
    (warning,) = [json.loads(line) for line in lines if json.loads(line)["level"] == "warning"]
    assert "port" in warning["msg"]
    assert "max_flights" in warning["msg"]
    assert lab.get(target).cache == "REVALIDATED"
    reload(lab)


@pytest.mark.parametrize("broken", ["tag_ttl = ", 'nonsense = "1"', '[registries."a b"]', 'tls_key = "/no/such/file"'])
def test_a_broken_file_changes_nothing(lab: Lab, broken: str) -> None:
    lab.cache.expect("settings not reloaded")
    reload(lab)
    repo = lab.repo()
    lab.image("a", repo)
    target = manifest_target(repo, "1.0", "a.test")
    lab.pull(target)
    assert isinstance(lab.cache, FileDaemon)
    (line,) = lab.cache.reload(broken)
    assert json.loads(line)["level"] == "error"
    assert str(lab.cache.config_file) in line
    assert lab.get(target).cache == "HIT"
    assert lab.get(manifest_target(repo, "2.0", "a.test")).status == 404


def test_a_reload_leaves_running_transfers_alone(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    blob = lab.blob("a", repo, 4 << 20)
    lab.origins["a"].fault(blob.digest, times=1, stall_at=1 << 20, stall_for=0.5)
    with lab.cache.connect() as client:
        client.ask(blob_target(repo, blob.digest, "a.test"))
        head = client.read_head()
        reload(lab, table='tag_ttl = "1s"')
        assert_ok(client.read_body(head), blob.data)
    assert len(lab.asked("a", repo)) == 1


# Files that can be read, and are not what they should be


@pytest.mark.parametrize(
    "setting", ["tls_cert", 'registries."a.b".ca_file', 'registries."a.b".client_cert', "defaults.ca_file"]
)
def test_a_file_that_holds_no_certificate_stops_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str
) -> None:
    wrong, file = tmp_path / "wrong.pem", tmp_path / "c.toml"
    wrong.write_text("no certificate")
    file.write_text(f'{setting} = "{wrong}"\n')
    code, out, err = run(capsys, "config", "check", "--config", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(wrong) in err
    serve = [sys.executable, "-m", "cacheyd", "serve", "--config", str(file), "--port", str(free_port())]
    started = subprocess.run(serve, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert (started.returncode, started.stderr) == (2, err)


def test_wrong_settings_stop_mitmdump_too(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("prot = 3000\n")
    command = [str(Path(sys.executable).parent / "mitmdump"), "-s", "addons/registry_cache.py"]
    where = ["--mode", "reverse:http://127.0.0.1:9", "--listen-host", "127.0.0.1", "-p", str(free_port())]
    environment = {**os.environ, "CACHEYD_CONFIG": str(file), "HOME": str(tmp_path)}
    started = subprocess.run(
        [*command, *where], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert started.returncode == 1
    assert f"{file}: prot: there is no such setting" in started.stdout + started.stderr

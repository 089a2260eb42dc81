"""A containerd of our own, with its own root, state and socket, driven by ctr and by the CRI."""

import json
import os
import subprocess
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc

from tests.real.procs import Process, Service, program, wait_until

CRI_NAMESPACE = "k8s.io"
_CONFIG = """\
version = 2
root = {root}
state = {state}
[grpc]
  address = {address}
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = {hosts}
# What one namespace has is not there for another one: each new namespace is a cold node.
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
"""


@dataclass(frozen=True, slots=True)
class Pull:
    """How a pull ended, and the namespace that has the image now."""

    namespace: str
    returncode: int
    output: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0


def write_hosts(hosts_dir: Path, registry: str, mirror: str | None, *, server: str, ca: Path | None = None) -> Path:
    """hosts.toml for one registry, the mirror first; returns `hosts_dir`.

    With the cache as `server` and no mirror there is nothing to fall back to: what arrives came through the cache.
    """
    directory = hosts_dir / (registry.replace(":", "_") + ("_" if ":" in registry else ""))
    lines = [f"server = {json.dumps(server)}"]
    if ca:
        lines.append(f"ca = {json.dumps(str(ca))}")
    # containerd 1.6 refuses a file without any host table.
    lines += [f"[host.{json.dumps(mirror)}]", 'capabilities = ["pull", "resolve"]'] if mirror else ["[host]"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text("\n".join(lines) + "\n")
    return hosts_dir


class Containerd(Service):
    """containerd with the native snapshotter. `cri_hosts` is where the CRI looks for hosts.toml files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.cri_hosts = directory / "cri-hosts"
        self.cri_hosts.mkdir()
        self.address = directory / "c.sock"
        # sun_path holds 107 bytes; containerd makes a second socket, with .ttrpc at the end.
        assert len(str(self.address)) < 100, f"too long for a unix socket: {self.address}"
        values = {
            "root": directory / "root",
            "state": directory / "state",
            "address": self.address,
            "hosts": self.cri_hosts,
        }
        quoted = {key: json.dumps(str(value)) for key, value in values.items()}
        (directory / "config.toml").write_text(_CONFIG.format(**quoted))
        self._numbers = count(1)
        self.start()

    def start(self) -> None:
        argv = [program("containerd"), "--config", str(self.directory / "config.toml")]
        self.process = Process(argv, self.directory / "containerd.log")
        self.process.wait_ready(lambda: self.ctr("version").returncode == 0)

    def ctr(self, *args: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
        """Runs ctr against this containerd."""
        argv = [program("ctr"), "--address", str(self.address), *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)

    def pull_command(self, reference: str, hosts_dir: Path, namespace: str, *options: str) -> list[str]:
        """The argv of a pull, for tests that do something while it runs."""
        address = ["--address", str(self.address), "--namespace", namespace]
        flags = ["--hosts-dir", str(hosts_dir), "--snapshotter", "native", *options]
        return [program("ctr"), *address, "images", "pull", *flags, reference]

    def namespace(self) -> str:
        """A fresh namespace, which has nothing yet."""
        return f"node-{os.getpid()}-{next(self._numbers)}"

    def pull(self, reference: str, hosts_dir: Path, ns: str | None = None, *options: str, seconds: float = 90) -> Pull:
        """`ctr images pull` into `ns`, a fresh namespace if None."""
        namespace = ns or self.namespace()
        argv = self.pull_command(reference, hosts_dir, namespace, *options)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
        return Pull(namespace, done.returncode, done.stdout + done.stderr)

    def digests(self, namespace: str) -> set[str]:
        """What this namespace has in its content store; containerd has verified each of them."""
        return set(self.ctr("--namespace", namespace, "content", "ls", "--quiet").stdout.split())

    def check(self, namespace: str) -> dict[str, bool]:
        """Each image, and whether all of its content is there and unpacked."""
        done = self.ctr("--namespace", namespace, "images", "check", "--snapshotter", "native")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        return {row[0]: "complete" in row and row[-1] == "true" for row in rows}

    def _image_service(self, method: str, request: bytes, seconds: float) -> bytes:
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            call = channel.unary_unary(
                f"/runtime.v1.ImageService/{method}", request_serializer=None, response_deserializer=None
            )
            answer: bytes = call(request, timeout=seconds, wait_for_ready=True)
            return answer

    def cri_pull(self, reference: str, *, seconds: float = 90) -> str:
        """Pulls as a kubelet does; the image's id. Raises grpc.RpcError."""
        # PullImageRequest{image: ImageSpec{image: reference}} -> PullImageResponse{image_ref}
        answer = self._image_service("PullImage", field(1, field(1, reference.encode())), seconds)
        return first_field(answer).decode()

    def cri_remove(self, reference: str) -> None:
        """Makes the CRI's namespace cold again for this image."""
        self._image_service("RemoveImage", field(1, field(1, reference.encode())), 30)
        known = self.ctr("--namespace", CRI_NAMESPACE, "images", "ls", "--quiet").stdout.split()
        if left := [name for name in known if name.startswith(reference)]:
            self.ctr("--namespace", CRI_NAMESPACE, "images", "rm", "--sync", *left)
        wait_until(lambda: not self.digests(CRI_NAMESPACE), "the content is collected")


def varint(value: int) -> bytes:
    """Protocol buffers' base-128 integers."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field (text, bytes or message) of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def first_field(message: bytes) -> bytes:
    """The value of field 1 in a message that begins with it and has nothing longer than 16 KiB."""
    if not message:
        return b""
    assert message[0] == 1 << 3 | 2
    size, start = (message[1], 2) if message[1] < 0x80 else (message[1] & 0x7F | message[2] << 7, 3)
    return message[start : start + size]

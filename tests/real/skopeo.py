"""skopeo, against loopback servers with certificates of our own."""

import subprocess
from pathlib import Path

from tests.real.procs import program


def run_skopeo(*args: str) -> None:
    """Runs a command; it has to succeed."""
    argv = [program("skopeo"), "--insecure-policy", *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def push(layout_dir: Path, tag: str, reference: str, creds: str | None = None) -> None:
    """Pushes a tag of an OCI layout, all platforms and digests as they are, to `127.0.0.1:port/repository:tag`."""
    login = ["--dest-creds", creds] if creds else []
    options = ["--all", "--preserve-digests", "--dest-tls-verify=false", *login]
    run_skopeo("copy", *options, f"oci:{layout_dir}:{tag}", f"docker://{reference}")


def skopeo_copy(reference: str, dest_dir: Path, *, tag: str = "copied", registries_conf: Path | None = None) -> None:
    """Copies an image with all its platforms into a new OCI layout.

    `registries_conf` is a containers-registries.conf(5), in which podman and CRI-O find their mirrors, too. Without one
    the registry may be plain http, or have any certificate.
    """
    conf = ["--registries-conf", str(registries_conf)] if registries_conf else []
    tls = [] if registries_conf else ["--src-tls-verify=false"]
    options = ["--all", "--preserve-digests", "--src-no-creds", *tls]
    run_skopeo(*conf, "copy", *options, f"docker://{reference}", f"oci:{dest_dir}:{tag}")

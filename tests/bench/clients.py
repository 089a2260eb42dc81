"""Clients that are faster than what they measure: wrk for small objects, curl to /dev/null for large ones."""

import hashlib
import http.client
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.content import Item

# As containerd 1.7 and 2 send it for a manifest.
ACCEPT = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
)
USER_AGENT = "containerd/v2.1.4"
TIMEOUT = 180.0
_LUA = """
local paths, requests, n = {{ {paths} }}, {{}}, 0
init = function() for i, path in ipairs(paths) do requests[i] = wrk.format("GET", path) end end
request = function() n = n % #requests + 1; return requests[n] end
"""


class WrongAnswer(Exception):
    """Something other than the whole object came: the figure is worth nothing."""


def requests_per_second(urls: Sequence[str], seconds: int, script: Path) -> float:
    """wrk with one thread and 32 connections; with several URLs (of one server) it asks for each in turn.

    `script` is a file that may be written.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise FileNotFoundError("wrk is not installed")
    argv = [wrk, "-t1", "-c32", f"-d{seconds}s", "-H", f"Accept: {ACCEPT}", "-H", f"User-Agent: {USER_AGENT}"]
    if len(urls) > 1:
        paths = ", ".join(f'"{urlsplit(url).path}?{urlsplit(url).query}"' for url in urls)
        script.write_text(_LUA.format(paths=paths))
        argv += ["-s", str(script)]
    done = subprocess.run([*argv, urls[0]], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    trouble = re.search(r"(Non-2xx|Socket errors).*", done.stdout)
    if done.returncode or rate is None or trouble:
        raise WrongAnswer(f"wrk: {trouble[0] if trouble else (done.stderr or done.stdout).strip()[:200]}")
    return float(rate[1])


def download(url: str, size: int, *, clients: int = 1, transfers: int = 1) -> float:
    """Seconds until each of `clients` processes has had the whole object `transfers` times over one connection."""
    argv = _client(url, transfers)
    started = time.perf_counter()
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(clients)]
    try:
        ended = [process.communicate(timeout=max(1.0, TIMEOUT - (time.perf_counter() - started))) for process in running]
        seconds = time.perf_counter() - started
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for output, errors in ended:
        if output.split() != [f"200:{size}"] * transfers:
            raise WrongAnswer(f"{url}: expected {size} bytes, had {output!r} {errors!r}")
    return seconds


def _client(url: str, transfers: int) -> list[str]:
    if curl := shutil.which("curl"):
        options = ["-q", "-sS", "--noproxy", "*", "-A", USER_AGENT, "-w", "%{http_code}:%{size_download}\n"]
        return [curl, *options, *(["-o", "/dev/null", url] * transfers)]
    return [sys.executable, str(Path(__file__).with_name("sink.py")), url, str(transfers)]


def verify(url: str, item: Item) -> None:
    """Gets the object and raises WrongAnswer if it is not what its digest says."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=TIMEOUT)
    try:
        connection.request("GET", f"{where.path}?{where.query}", headers={"Accept": ACCEPT, "User-Agent": USER_AGENT})
        response = connection.getresponse()
        running, size = hashlib.sha256(), 0
        while data := response.read(1 << 20):
            running.update(data)
            size += len(data)
    except http.client.HTTPException as error:
        raise WrongAnswer(f"{url}: {error!r}") from error
    finally:
        connection.close()
    if (response.status, size, f"sha256:{running.hexdigest()}") != (200, item.size, item.digest):
        raise WrongAnswer(f"{url}: {response.status}, {size} bytes, sha256:{running.hexdigest()}")


def verify_together(url: str, item: Item, clients: int) -> None:
    """The same for clients that ask at the same time; raises what one of them met."""
    errors: list[Exception] = []

    def check() -> None:
        try:
            verify(url, item)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=check) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

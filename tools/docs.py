"""Writes the tables of settings and of metrics into docs/: `make docs`. A test compares both."""

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cacheyd.observe.metrics import Metrics
from cacheyd.settings.settings import SETTINGS, Scope, Setting

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
METRICS_PAGE = ROOT / "docs" / "metrics.md"
# How long a cacheyd can take to start, and to end (seconds).
PATIENCE = 30.0
# The prefix of metrics that every Python process has, only on Linux. The page mentions them in a sentence.
PROCESS = "process_"

_SECTION = re.compile(r"(?P<start><!-- docs: (?P<name>[\w ]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric as Prometheus sees it: `kind` is counter, gauge or histogram, `text` is its help."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def settings_table(scope: Scope) -> str:
    """The table of the settings of a scope, one row each."""
    rows = [_setting_row(setting) for setting in SETTINGS if setting.scope is scope]
    return "\n".join(["| setting | environment | default | what |", "| --- | --- | --- | --- |", *rows])


def _setting_row(setting: Setting) -> str:
    environment = ", ".join(f"`{name}`" for name in reversed(setting.variables()))
    default = "off" if setting.default is False else f"`{setting.default}`" if setting.default != "" else ""
    return f"| `{setting.name}` | {environment} | {default} | {setting.help}{'' if setting.live else ' (takes a restart)'} |"


def metrics_table(rows: list[MetricRow]) -> str:
    """The table of the metrics, one row each."""
    lines = [f"| `{row.name}` | {row.kind} | {', '.join(f'`{name}`' for name in row.labels)} | {row.text} |" for row in rows]
    return "\n".join(["| metric | type | labels | what |", "| --- | --- | --- | --- |", *lines])


def metrics() -> list[MetricRow]:
    """All metrics of cacheyd, by name. Starts a cacheyd, because some metrics exist only in a running service."""
    with running() as port:
        text = read(port, "/metrics")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    labels = _labels_of_samples(text) | _labels_of_metrics()
    return [
        MetricRow(name, kind, labels.get(name, ()), helps[name])
        for name, kind in sorted(kinds.items())
        if not name.startswith(PROCESS)
    ]


def _labels_of_samples(text: str) -> dict[str, tuple[str, ...]]:
    """The labels of each metric that has a sample with labels."""
    found = re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE)
    return {name: tuple(re.findall(r'(\w+)="', inside)) for name, inside in found if not name.endswith("_bucket")}


def _labels_of_metrics() -> dict[str, tuple[str, ...]]:
    """The labels of each metric of `Metrics`, also of metrics without a sample."""
    # prometheus_client has no public list of collectors, and no public way to get the labels of a metric without samples.
    collectors = Metrics().registry._collector_to_names
    found: dict[str, tuple[str, ...]] = {}
    for collector, names in collectors.items():
        if labels := tuple(getattr(collector, "_labelnames", ())):
            found |= dict.fromkeys(names, labels)
    return found


@contextmanager
def running() -> Iterator[int]:
    """A context with a running cacheyd that has default settings and an empty cache; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cacheyd", "serve", "--host", "127.0.0.1", "--port", str(port), "--cache-dir", folder]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 (no input in it)
        try:
            _wait_until_ready(process, port)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            read(port, "/readyz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"no cacheyd answers on port {port}")


def read(port: int, path: str) -> str:
    """A page of the cacheyd on this port. Raises OSError if no cacheyd answers, or if the status is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"{path}: {response.status}")
    return text


def sections() -> dict[str, str]:
    """The generated tables, by the name in the marker."""
    tables = {f"settings {scope}": settings_table(scope) for scope in Scope}
    return tables | {"metrics": metrics_table(metrics())}


def filled(text: str, tables: Mapping[str, str]) -> str:
    """The page with each table between its markers. Raises KeyError for a marker that names no table."""
    return _SECTION.sub(lambda found: f"{found['start']}\n{tables[found['name']]}\n\n{found['end']}", text)


def main() -> None:
    """Writes the pages that differ, and prints their names."""
    tables = sections()
    for page in (SETTINGS_PAGE, METRICS_PAGE):
        before = page.read_text("utf-8")
        after = filled(before, tables)
        if after != before:
            page.write_text(after, "utf-8")
            print(f"{page.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()

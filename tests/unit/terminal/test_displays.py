"""How a warming is shown."""

import io
import json
from typing import Any

import pytest

from cacheyd.terminal.displays import Bars, JsonLines, Lines, display_for

EVENTS: list[dict[str, Any]] = [
    {"event": "image", "image": "ghcr.io/acme/app:1.0"},
    {"event": "layer", "image": "ghcr.io/acme/app:1.0", "digest": "sha256:" + "a" * 64, "size": 2048, "received": 0},
    {"event": "layer", "image": "ghcr.io/acme/app:1.0", "digest": "sha256:" + "b" * 64, "size": 0, "received": 0},
    {"event": "layer", "image": "ghcr.io/acme/app:1.0", "digest": "sha256:" + "a" * 64, "size": 2048, "received": 9},
    {"event": "layer-done", "image": "ghcr.io/acme/app:1.0", "digest": "sha256:" + "a" * 64, "size": 2048, "result": "MISS"},
    {"event": "layer-failed", "image": "x", "digest": "sha256:" + "b" * 64, "size": 0, "reason": "[red]no"},
    {"event": "failed", "image": "ghcr.io/acme/app:1.0", "reason": "no"},
    {"event": "image", "image": "docker.io/library/alpine:latest"},
    {"event": "done", "image": "docker.io/library/alpine:latest", "digest": "sha256:" + "c" * 64, "bytes": 2048},
    {"event": "end", "images": 2, "failed": 1},
]


SHOWN = """\
ghcr.io/acme/app:1.0
  sha256:aaaaaaaaaaaa 2.0 KiB MISS
  sha256:bbbbbbbbbbbb 0 B failed: [red]no
ghcr.io/acme/app:1.0 failed: no
docker.io/library/alpine:latest
docker.io/library/alpine:latest: 2.0 KiB in the cache
1 of 2 images is in the cache
"""


def test_lines_are_for_logs() -> None:
    out = io.StringIO()
    with Lines(out) as lines:
        for event in EVENTS:
            lines.show(event)
    assert out.getvalue() == SHOWN


def test_json_has_every_event() -> None:
    out = io.StringIO()
    with display_for(out, as_json=True) as lines:
        for event in EVENTS:
            lines.show(event)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == EVENTS
    assert isinstance(lines, JsonLines)


def test_bars_leave_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        for event in EVENTS:
            bars.show(event)
    assert capsys.readouterr().out.rstrip() == SHOWN.rstrip()

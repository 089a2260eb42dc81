"""The commands at the terminal: which images and logins are meant, and what is shown."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin.orders import Order
from cacheyd.protocol.manifest import parse_platform
from cacheyd.terminal.displays import Bars, JsonLines, Lines, display_for, line_of
from cacheyd.terminal.images import UsageError, image_names
from cacheyd.terminal.logins import file_logins, one_login
from cacheyd.terminal.transfer import export
from cacheyd.terminal.warm import warm
from cacheyd.terminal.workloads import read_list

HUB, GHCR = image_names(["alpine", "ghcr.io/acme/app:1.0"])
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


def auth_file(directory: Path, content: Any) -> Path:
    path = directory / "auth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def auth(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


def test_a_list_has_comments_and_empty_lines() -> None:
    lines = "# nodes\nalpine:3.22   # base\n\n  ghcr.io/acme/app:1.0\n#\n"
    assert read_list(lines.splitlines()) == ["alpine:3.22", "ghcr.io/acme/app:1.0"]


def test_an_image_that_is_named_twice_is_one() -> None:
    assert image_names(["alpine", "docker.io/library/alpine:latest"]) == [HUB]


@pytest.mark.parametrize("names", [[], ["Not/An Image"], ["sha256:" + "a" * 64]])
def test_names_that_cannot_be_used_are_wrong_usage(names: list[str]) -> None:
    with pytest.raises(UsageError):
        image_names(names)


def test_a_login_is_for_one_registry() -> None:
    assert one_login([GHCR], "ann", "secret") == {"ghcr.io/acme/app:1.0": "ann:secret"}
    with pytest.raises(UsageError, match=r"docker\.io, ghcr\.io"):
        one_login([HUB, GHCR], "ann", "secret")


@pytest.mark.parametrize(("username", "password"), [("", "x"), ("a:b", "x"), ("ann", "")])
def test_half_a_login_is_none(username: str, password: str) -> None:
    with pytest.raises(UsageError):
        one_login([GHCR], username, password)


@pytest.mark.parametrize(
    ("auths", "logins"),
    [
        ({}, {}),
        ({"ghcr.io": auth("ann:secret")}, {str(GHCR): "ann:secret"}),
        ({"https://ghcr.io": auth("ann:sec:ret")}, {str(GHCR): "ann:sec:ret"}),
        ({"https://index.docker.io/v1/": auth("hub:x")}, {str(HUB): "hub:x"}),
        ({"docker.io": auth("hub:x"), "quay.io": auth("q:x")}, {str(HUB): "hub:x"}),
        ({"ghcr.io": auth("ann:1"), "ghcr.io/acme": auth("acme:2")}, {str(GHCR): "acme:2"}),
        ({"ghcr.io": auth("ann:1"), "ghcr.io/acm": auth("acm:2")}, {str(GHCR): "ann:1"}),
        ({"ghcr.io": {}}, {}),
    ],
)
def test_an_auth_file_is_docker_s_or_podman_s(tmp_path: Path, auths: Any, logins: dict[str, str]) -> None:
    assert file_logins([HUB, GHCR], auth_file(tmp_path, {"auths": auths})) == logins


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"credHelpers": {"ghcr.io": "gcloud"}}, "credential helper"),
        ({"auths": {"ghcr.io": {}}, "credsStore": "desktop"}, "credential helper"),
        ({"auths": {"ghcr.io": {"identitytoken": "x"}}}, "identity token"),
        ({"auths": {"ghcr.io": {"auth": "%%"}}}, "base64"),
        ({"auths": {"ghcr.io": {"auth": base64.b64encode(b"sesame").decode()}}}, "base64"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_an_auth_file_that_cannot_be_used_says_why(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        file_logins([GHCR], auth_file(tmp_path, content))
    assert "sesame" not in str(caught.value)


def test_an_auth_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        file_logins([GHCR], tmp_path / "none.json")


def test_a_helper_of_another_registry_does_not_matter(tmp_path: Path) -> None:
    content = {"auths": {"ghcr.io": auth("ann:secret")}, "credHelpers": {"gcr.io": "gcloud"}}
    assert file_logins([HUB, GHCR], auth_file(tmp_path, content)) == {str(GHCR): "ann:secret"}


# What is shown


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (2, 1)])
def test_the_exit_code_tells_whether_all_are_there(failed: int, status: int) -> None:
    asked = []

    def call(order: Order) -> list[dict[str, Any]]:
        asked.append((order.command, order.args()))
        return [{"event": "end", "images": 2, "failed": failed}]

    assert warm(call, [HUB], [parse_platform("linux/arm64")], {}, Lines(io.StringIO())) == status
    args = {"images": ["docker.io/library/alpine:latest"], "platforms": ["linux/arm64"], "logins": {}, "layers": 4}
    assert asked == [("warm", args)]


def test_many_images_take_several_commands() -> None:
    asked: list[dict[str, Any]] = []

    def call(order: Order) -> list[dict[str, Any]]:
        args = order.args()
        asked.append(args)
        return [{"event": "end", "images": len(args["images"]), "failed": 1}]

    images = image_names(f"reg.test/app{n}:1" for n in range(250))
    logins = {str(images[0]): "ann:secret", str(images[120]): "ann:other"}
    out = io.StringIO()
    assert warm(call, images, None, logins, Lines(out), referrers=True) == 1
    assert [len(args["images"]) for args in asked] == [100, 100, 50]
    assert [args["logins"] for args in asked] == [{str(images[0]): "ann:secret"}, {str(images[120]): "ann:other"}, {}]
    assert all(args["referrers"] for args in asked)
    assert out.getvalue() == "247 of 250 images are in the cache\n"


def test_a_warming_that_breaks_off_is_a_failure() -> None:
    assert warm(lambda order: EVENTS[:2], [HUB], None, {}, Lines(io.StringIO())) == 1


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


@pytest.mark.parametrize("target", ["none/x.tar", "."])
def test_an_output_that_cannot_be_made_is_named_as_it_was_given(tmp_path: Path, target: str) -> None:
    def call(order: Order) -> list[dict[str, Any]]:
        return [{"images": []}]

    with pytest.raises(OSError, match=r"No such file|Is a directory") as caught:
        export(call, tmp_path, [HUB], None, str(tmp_path / target))
    assert str(caught.value.filename) == str((tmp_path / target).parent if target != "." else tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_end_tells_what_could_not_be_asked_for() -> None:
    event = {"event": "end", "images": 1, "failed": 0, "referrers_failed": 1}
    assert line_of(event) == "1 of 1 image is in the cache; what refers to 1 of them is not all there"
    assert line_of({"event": "end", "images": 3, "failed": 0}) == "3 of 3 images are in the cache"
    assert warm(lambda order: [event], [HUB], None, {}, Lines(io.StringIO()), referrers=True) == 1

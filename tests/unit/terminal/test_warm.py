"""The command `warm`: what is asked for, and its exit code."""

import io
from typing import Any

import pytest

from cacheyd.admin.orders import Order
from cacheyd.protocol.platforms import parse_platform
from cacheyd.terminal.displays import Lines, line_of
from cacheyd.terminal.images import image_names
from cacheyd.terminal.warm import warm

HUB, GHCR = image_names(["alpine", "ghcr.io/acme/app:1.0"])


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
    assert (
        warm(lambda order: [{"event": "image", "image": "ghcr.io/acme/app:1.0"}], [HUB], None, {}, Lines(io.StringIO())) == 1
    )


def test_the_end_tells_what_could_not_be_asked_for() -> None:
    event = {"event": "end", "images": 1, "failed": 0, "referrers_failed": 1}
    assert line_of(event) == "1 of 1 image is in the cache; some referrers of 1 of them are missing"
    assert line_of({"event": "end", "images": 3, "failed": 0}) == "3 of 3 images are in the cache"
    assert warm(lambda order: [event], [HUB], None, {}, Lines(io.StringIO()), referrers=True) == 1

"""Orders on the socket: what is sent, which is what earlier versions understand, and what is made of what comes."""

import json
from typing import Any

import pytest

from cacheyd.admin.image_orders import Export, ImportCheck, ImportObject, ImportRoom, ImportTag, Warm
from cacheyd.admin.orders import Du, Gc, Held, Ls, Order, Release, Rm, Stats, Verify
from cacheyd.admin.selection import parse_target
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import own_platform, parse_platform

APP, DIGEST = "ghcr.io/acme/app:1.0", "sha256:" + "a" * 64
FILE = "import.1-0-00000000"
TARGETS = tuple(map(parse_target, ("alpine:3.22", "ghcr.io/*", DIGEST[:20])))
TEXTS = ["alpine:3.22", "ghcr.io/*", DIGEST[:20]]
IMAGE = parse_image(APP)
ARM64 = parse_platform("linux/arm64")

WIRE: list[tuple[Order, str, dict[str, Any]]] = [
    (Ls(), "ls", {}),
    (Ls(TARGETS, blobs=True), "ls", {"patterns": TEXTS, "blobs": True}),
    (Du(), "du", {}),
    (Stats(), "stats", {}),
    (Held(), "held", {}),
    (Release((IMAGE,)), "release", {"images": [APP]}),
    (Rm(TARGETS, dry_run=True), "rm", {"targets": TEXTS, "dry_run": True}),
    (Rm(everything=True), "rm", {"all": True}),
    (Gc(), "gc", {}),
    (Gc(unreferenced=True), "gc", {"unreferenced": True}),
    (Verify(), "verify", {}),
    (
        Warm((IMAGE,), (ARM64,), {APP: "ann:secret"}, 8, referrers=True),
        "warm",
        {
            "images": [APP], "platforms": ["linux/arm64"], "logins": {APP: "ann:secret"}, "layers": 8, "referrers": True,
        },
    ),
    (Warm((IMAGE,), None), "warm", {"images": [APP], "platforms": None, "logins": {}, "layers": 4}),
    (Export((IMAGE,)), "export", {"images": [APP], "referrers": False}),
    (ImportRoom(5), "import-room", {"size": 5}),
    (
        ImportObject(FILE, DIGEST, "", ("ghcr.io/acme/app",)),
        "import-object",
        {"file": FILE, "digest": DIGEST, "media_type": "", "within": ["ghcr.io/acme/app"]},
    ),
    (ImportCheck((DIGEST,)), "import-check", {"digests": [DIGEST]}),
    (ImportTag(IMAGE, DIGEST), "import-tag", {"image": APP, "digest": DIGEST}),
]  # fmt: skip


@pytest.mark.parametrize(("order", "command", "args"), WIRE)
def test_an_order_is_sent_as_it_always_was(order: Order, command: str, args: dict[str, Any]) -> None:
    assert (order.command, order.args()) == (command, args)


@pytest.mark.parametrize("order", [order for order, _, _ in WIRE])
def test_an_order_arrives_as_it_was_sent(order: Order) -> None:
    arrived = type(order).parse(json.loads(json.dumps(order.args())))
    assert arrived == order


def test_orders_of_different_commands_differ() -> None:
    assert len({Du(), Du(), Stats()}) == 2


def test_members_that_are_left_out_or_not_known_do_not_matter() -> None:
    assert Ls.parse({"newer": 1}) == Ls()
    assert Rm.parse({}) == Rm()
    assert Release.parse({}) == Release(())
    assert Warm.parse({"images": [APP, APP]}) == Warm((IMAGE,), (own_platform(),))
    assert Warm.parse({"images": [APP], "platforms": []}).platforms == (own_platform(),)
    assert Export.parse({"images": [APP]}) == Export((IMAGE,))


def test_a_login_is_not_shown() -> None:
    assert "secret" not in repr(Warm((IMAGE,), None, {APP: "ann:secret"}))


@pytest.mark.parametrize(
    ("kind", "args", "why"),
    [
        (Ls, {"patterns": "x"}, "patterns is not a list of names"),
        (Rm, {"targets": [1]}, "targets is not a list of names"),
        (Release, {"images": None}, "images is not a list of names"),
        (Rm, {"targets": ["A B"]}, "not the name of an image"),
        (ImportObject, {"file": FILE, "digest": DIGEST, "media_type": "", "within": []}, "not a file of an import"),
        (ImportObject, {"file": "../x", "digest": DIGEST, "media_type": "", "within": ["a/b"]}, "not a file of an import"),
        (Export, {"images": ["A B"]}, "not the name of an image"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: type[Order], args: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kind.parse(args)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (Export, {}),
        (Export, {"images": "alpine"}),
        (ImportRoom, {}),
        (ImportRoom, {"size": "5"}),
        (ImportObject, {"file": FILE}),
        (ImportObject, {"file": 1, "digest": DIGEST, "media_type": "", "within": ["a/b"]}),
        (ImportObject, {"file": FILE, "digest": DIGEST, "media_type": None, "within": ["a/b"]}),
        (ImportCheck, {"digests": [1]}),
        (ImportTag, {"image": APP, "digest": None}),
    ],
)
def test_what_is_not_there_or_of_another_kind_is_refused(kind: type[Order], args: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        kind.parse(args)

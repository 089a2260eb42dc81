"""As whom images are asked for, with the test origin and a real store."""

import asyncio
import threading

import pytest

from tests.support.images import make_image
from tests.support.origin import Origin
from tests.support.warming import REPO, Scene, by_event


async def test_public_images_of_a_registry_with_tokens_need_no_login(scene: Scene) -> None:
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image())

    assert (await scene.warm())[-1]["failed"] == 0


@pytest.mark.parametrize("with_tokens", [True, False])
async def test_a_login_is_given_as_containerd_does(scene: Scene, with_tokens: bool) -> None:
    scene.origin.require_basic("ann", "secret")
    if with_tokens:
        scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image(layers=3))

    assert by_event(await scene.warm(login="ann:wrong"), "failed")
    assert by_event(await scene.warm(), "failed")
    assert (await scene.warm(login="ann:secret"))[-1]["failed"] == 0
    tokens = [r for r in scene.origin.requests if r.path == "/token"]
    assert all("scope=repository%3Aacme%2Fapp%3Apull" in r.query for r in tokens)


async def test_a_token_that_expires_meanwhile_is_replaced(scene: Scene) -> None:
    image = make_image(layers=2)
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", image)
    first, gate = image.layers[0].digest, threading.Event()
    scene.origin.fault(f"GET .*/blobs/{first}", hold=gate)

    warming = asyncio.create_task(scene.warm(login="ann:secret", layers=1))
    while scene.origin.count("GET", first) == 0:
        await asyncio.sleep(0.01)
    scene.origin.expire_tokens()
    gate.set()

    assert (await warming)[-1]["failed"] == 0
    assert scene.origin.count("GET", "/token") == 2


@pytest.mark.parametrize("login", ["", "ann:secret"])
async def test_short_rate_limits_are_waited_for(scene: Scene, login: str) -> None:
    """Of the registry, and of its token service, which a login is brought to from here."""
    scene.origin.require_token()
    scene.origin.push(REPO, "1.0", make_image())
    scene.origin.fault("GET /token", times=1, status=429, headers=[("Retry-After", "0")])
    scene.origin.fault("GET .*/blobs/", times=1, status=429, headers=[("Retry-After", "0")])

    assert (await scene.warm(login=login))[-1]["failed"] == 0


async def test_the_login_is_not_sent_to_a_token_service_without_https(scene: Scene) -> None:
    with Origin() as elsewhere:
        scene.origin.require_token(elsewhere)
        scene.origin.push(REPO, "1.0", make_image())

        (failed,) = by_event(await scene.warm(login="ann:secret"), "failed")

        assert "no https" in failed["reason"]
        assert elsewhere.requests == []


async def test_a_manifest_without_an_end_is_broken_off(scene: Scene) -> None:
    scene.origin.push(REPO, "1.0", make_image(seed=9))
    scene.origin.fault("GET .*/referrers/", status=200, body=b"{" + b" " * (9 << 20) + b"}")

    events = await scene.warm(referrers=True)

    assert "a manifest of more than" in by_event(events, "done")[0]["referrers_failed"]

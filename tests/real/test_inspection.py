"""What mitmweb shows: each client's request and each fetch as a flow, with where it went and how it ended."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.real.cache import Mitmweb
from tests.real.conftest import MakeCache
from tests.support.images import make_image
from tests.support.origin import Origin

Flow = Mapping[str, Any]


def flows(cache: Mitmweb) -> list[Flow]:
    """The flows that mitmweb's page is made from."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cache.web_port}/flows", headers={"Authorization": f"Bearer {cache.web_password}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        found: list[Flow] = json.load(response)
    return found


def seen(flow: Flow) -> tuple[int, str, int, str]:
    """Port, path, status and X-Cache."""
    headers = dict(flow["response"]["headers"])
    request = flow["request"]
    return request["port"], request["path"], flow["response"]["status_code"], headers.get("X-Cache", "")


def test_requests_and_fetches_are_flows(make_cache: MakeCache) -> None:
    with Origin() as registry, Origin() as cdn:
        image = make_image(layers=1, layer_size=3 << 20)
        registry.push("acme/app", "1.0", image)
        registry.redirect_blobs_to(cdn, query="Signature=a%2Fb%2Bc")
        cdn.serve_cdn(registry)
        cache = make_cache(f'[registries."reg.test"]\nupstream = "{registry.url}"\n', Mitmweb)
        assert isinstance(cache, Mitmweb)
        layer = max(image.blobs, key=lambda blob: len(blob.data))
        target = f"/v2/acme/app/blobs/{layer.digest}?ns=reg.test"
        headers = {"Authorization": "Bearer s3cret"}
        for _ in range(2):
            assert cache.request("GET", target, headers).body == layer.data
            cache.keeps({layer.digest})

        path = f"/v2/acme/app/blobs/{layer.digest}"
        signed = f"/cdn/{layer.digest.removeprefix('sha256:')}?Signature=a%2Fb%2Bc"
        shown = [flow for flow in flows(cache) if "blobs" in flow["request"]["path"] or "cdn" in flow["request"]["path"]]
        assert [seen(flow) for flow in shown] == [
            (cache.port, target, 200, "MISS"),
            (registry.port, path, 307, ""),
            (cdn.port, signed, 200, ""),
            (cache.port, target, 200, "HIT"),
        ]
        for flow in shown:
            response = flow["response"]
            assert response["timestamp_end"] >= response["timestamp_start"] >= flow["request"]["timestamp_start"]
            assert (response["contentLength"] or 0) < 64 << 10, "bodies are not held"
        # Here they are to be seen; nowhere else.
        sent = [dict(flow["request"]["headers"]).get("Authorization") for flow in shown]
        assert sent == ["Bearer s3cret", "Bearer s3cret", None, "Bearer s3cret"]
        assert "s3cret" not in cache.log()
        assert cache.stop() == 0

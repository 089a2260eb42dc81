"""Variables of the environment, and those that are none of ours."""

import pytest

from cacheyd.settings.load import load
from tests.support.settings import refusal, unknown

# What the kubelet sets beside the Services cacheyd (two ports) and cacheyd-metrics.
LINKS = {
    "CACHEYD_SERVICE_HOST": "10.0.0.1", "CACHEYD_SERVICE_PORT": "3000", "CACHEYD_SERVICE_PORT_HTTP": "3000",
    "CACHEYD_SERVICE_PORT_METRICS": "3001", "CACHEYD_PORT": "tcp://10.0.0.1:3000",
    "CACHEYD_PORT_3000_TCP": "tcp://10.0.0.1:3000", "CACHEYD_PORT_3000_TCP_PROTO": "tcp", "CACHEYD_PORT_3000_TCP_PORT": "3000",
    "CACHEYD_PORT_3000_TCP_ADDR": "10.0.0.1", "CACHEYD_METRICS_SERVICE_HOST": "10.0.0.2",
    "CACHEYD_METRICS_SERVICE_PORT": "80", "CACHEYD_METRICS_SERVICE_PORT_HTTP": "80",
    "CACHEYD_METRICS_PORT": "udp://10.0.0.2:80", "CACHEYD_METRICS_PORT_80_UDP": "udp://10.0.0.2:80",
    "CACHEYD_METRICS_PORT_80_UDP_ADDR": "10.0.0.2",
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["tcp", "udp", "sctp"])
def test_the_variables_of_services_are_no_settings(scheme: str) -> None:
    settings = load(environ=LINKS | {"CACHEYD_PORT": f"{scheme}://10.0.0.1:3000"})
    assert (settings.warnings, settings.port) == ((), 3000)
    assert load(environ={"CACHEYD_METRICS_PORT": "80"}).warnings == (unknown("CACHEYD_METRICS_PORT"),)


def test_the_service_link_of_kubernetes_is_no_port() -> None:
    """A pod beside a Service called cacheyd has CACHEYD_PORT=tcp://10.0.0.1:3000."""
    link = {"CACHEYD_PORT": "tcp://10.0.0.1:3000", "CACHEYD_SERVICE_HOST": "10.0.0.1", "CACHEYD_PORT_3000_TCP_PORT": "3000"}
    assert load(environ=link).port == 3000
    assert load(environ=link | {"PORT": "8080"}).port == 8080
    assert load(environ={"CACHEYD_PORT": "8081", "PORT": "8080"}).port == 8081
    assert "CACHEYD_PORT" in refusal(environ={"CACHEYD_PORT": "http://x"})

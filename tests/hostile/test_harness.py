"""What the other tests here rely on: that cost is seen."""

from tests.faults.scene import registry_table
from tests.hostile.peers import MIB, RawOrigin, Watch, rss_anon, whole
from tests.policy.conftest import Starter


def test_a_raw_origin_is_asked_and_its_bytes_arrive(own: Starter) -> None:
    with RawOrigin(lambda connection, _: connection.sendall(whole(b"{}", status=404))) as origin:
        daemon = own.daemon(registry_table("raw.test", origin.url))
        with Watch(daemon) as watch:
            reply = daemon.get("/v2/acme/app/manifests/v1?ns=raw.test")
        assert (reply.status, reply.body) == (404, b"{}")
        assert origin.heads[0].startswith(b"GET /v2/acme/app/manifests/v1 HTTP/1.1\r\n")
        assert 20 * MIB < rss_anon(daemon.pid) < 120 * MIB
        assert watch.grown < 10 * MIB
        assert watch.stall < 1

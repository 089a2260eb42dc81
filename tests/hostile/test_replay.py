"""The smallest tests that replay the bytes of a peer. Copy one of them to replay a bug (see CONTRIBUTING)."""

from tests.faults.scene import registry_table
from tests.hostile.peers import RawOrigin
from tests.policy.conftest import Starter


def test_an_upstream_that_folds_a_header(own: Starter) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: a\r\n b\r\n\r\n{}"
    with RawOrigin(lambda connection, head: connection.sendall(answer)) as origin:
        reply = own.daemon(registry_table("reg.test", origin.url)).get("/v2/acme/app/tags/list?ns=reg.test")
        assert reply.status == 502


def test_a_client_that_states_two_lengths(own: Starter) -> None:
    with own.daemon("").connect() as client:
        client.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert client.read_reply().status == 400

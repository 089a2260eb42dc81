"""A registry that anybody may name does no harm to another one's objects: wrong bytes, no bytes, half of them."""

from tests.faults.conftest import MakeDaemon
from tests.faults.scene import STREAMED, blob_target, registry_table
from tests.support.images import digest_of, random_bytes
from tests.support.origin import Origin

GOOD, EVIL = "good.test", "evil.test"


def _tables(good: Origin, evil: Origin) -> str:
    return registry_table(GOOD, good.url) + registry_table(EVIL, evil.url)


def test_wrong_bytes_of_another_registry(make_daemon: MakeDaemon) -> None:
    data = random_bytes(STREAMED, seed=71)
    with Origin() as good, Origin() as evil:
        for origin in (good, evil):
            origin.add_blob("acme/img", data)
        evil.fault("GET .*/blobs/", corrupt_at=0)
        daemon = make_daemon(_tables(good, evil))
        assert daemon.get(blob_target("acme/img", digest_of(data), EVIL)).end == "fin"
        reply = daemon.get(blob_target("acme/img", digest_of(data), GOOD))
        assert (reply.status, reply.end, reply.body) == (200, "complete", data)


def test_another_registry_that_never_ends(make_daemon: MakeDaemon) -> None:
    data = random_bytes(STREAMED, seed=72)
    with Origin() as good, Origin() as evil:
        for origin in (good, evil):
            origin.add_blob("acme/img", data)
        evil.fault("GET .*/blobs/", corrupt_at=0, stall_at=STREAMED // 2, stall_for=60)
        daemon = make_daemon(_tables(good, evil), {"progress_timeout": "60s", "grace": "0s"})
        target = blob_target("acme/img", digest_of(data), EVIL)
        with daemon.connect() as client:
            client.ask(target)
            client.read_head()
            reply = daemon.get(blob_target("acme/img", digest_of(data), GOOD))
        assert (reply.status, reply.end, reply.body) == (200, "complete", data)


def test_half_of_it_from_another_registry(make_daemon: MakeDaemon) -> None:
    """What one registry left half is not continued with another's bytes."""
    data = random_bytes(STREAMED, seed=73)
    with Origin() as good, Origin() as evil:
        for origin in (good, evil):
            origin.add_blob("acme/img", data)
        evil.fault("GET .*/blobs/", corrupt_at=0, cut_after=STREAMED // 2)
        daemon = make_daemon(_tables(good, evil), {"retries": "0"})
        assert daemon.get(blob_target("acme/img", digest_of(data), EVIL)).end == "fin"
        reply = daemon.get(blob_target("acme/img", digest_of(data), GOOD))
        assert (reply.status, reply.end, reply.body) == (200, "complete", data)
        assert [request.header("Range") for request in good.requests] == [None]

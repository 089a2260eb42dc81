"""What the bytes of clients cost after they were written: those that wait, and the buffers that TLS keeps."""

import gc
import weakref

import pytest
from OpenSSL import SSL

from cacheyd.proxy.inbound import sent_memory
from cacheyd.proxy.inbound.sent_memory import SentMemory, TlsBuffers
from cacheyd.resources.budget import FLOOR, Budget
from tests.support.stores import Clock

MIB = 1 << 20


def connection() -> SSL.Connection:
    return SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD))


def client(buffers: TlsBuffers) -> SentMemory:
    memory = SentMemory(buffers)
    memory.encrypts_with(connection())
    return memory


def test_a_buffer_counts_until_its_client_has_gone_however_fast_it_takes_its_bytes() -> None:
    buffers, budget = TlsBuffers(), Budget(8 * MIB)
    memory = SentMemory(buffers)
    memory.hold(budget, 2 * MIB)
    memory.encrypt(MIB)
    memory.hold(budget, 0)
    memory.encrypt(FLOOR)
    assert (budget.held, buffers.held) == (0, MIB + MIB // 3)
    memory.release()
    assert buffers.held == 0


def test_what_waits_is_given_back_with_the_socket() -> None:
    budget = Budget(8 * MIB)
    memory = SentMemory(TlsBuffers())
    memory.hold(budget, MIB)
    memory.release()
    memory.release()
    assert budget.held == 0


def test_pieces_are_smaller_where_many_clients_have_had_large_ones() -> None:
    buffers = TlsBuffers()
    clients = [client(buffers) for _ in range(400)]
    for memory in clients:
        memory.encrypt(memory.window(MIB))
    assert buffers.held < sent_memory.TLS_BUFFERS + 2 * FLOOR * len(clients)
    assert clients[-1].window(MIB) == FLOOR
    assert clients[0].window(MIB) == MIB - 1, "it has the buffer already"


def test_the_buffer_of_a_dead_connection_counts_until_it_is_out_of_memory() -> None:
    buffers = TlsBuffers()
    memory, made = SentMemory(buffers), connection()
    memory.encrypts_with(made)
    memory.encrypt(MIB)
    memory.release()
    assert buffers.held == MIB + MIB // 3
    del made
    gc.collect()
    assert buffers.held == 0


def test_dead_connections_are_collected_where_they_hold_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_memory, "DEAD_BUFFERS", 2 * MIB)
    clock = Clock(100.0)
    buffers = TlsBuffers(monotonic=clock)
    gc.disable()
    try:
        alive = weakref.WeakSet[SSL.Connection]()

        def one_leaves() -> None:
            memory, made = SentMemory(buffers), connection()
            alive.add(made)
            memory.encrypts_with(made)
            memory.encrypt(MIB)
            memory.release()
            # As mitmproxy's layers do.
            cycle: list[object] = [made]
            cycle.append(cycle)

        one_leaves()
        buffers.share(MIB)
        assert len(alive) == 1, "not for little"
        one_leaves()
        assert buffers.share(MIB) == MIB
        assert len(alive) == buffers.held == 0
        one_leaves()
        one_leaves()
        buffers.share(MIB)
        assert len(alive) == 2, "not again at once"
        clock.now += sent_memory.COLLECT_EVERY
        buffers.share(MIB)
        assert not alive
    finally:
        gc.enable()

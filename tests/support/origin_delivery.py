"""Writes an answer to its client, with the pauses and cuts of a fault, and closes in the wanted way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import threading
from dataclasses import dataclass

from tests.support.origin_faults import FaultSpec, How, Wire
from tests.support.origin_http import MAX_HEAD, Request

PIECE = 1024 * 1024
POLL = 0.002
PATIENCE = 2.0  # seconds for the client to take what is sent before a close, or to close after our FIN
FOREVER = 86_400.0


@dataclass
class Peer:
    """One client connection."""

    raw: socket.socket
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, accepted: socket.socket, tls: ssl.SSLContext | None) -> Peer:
        """Takes an accepted socket, with the TLS handshake if there is one. Raises OSError if the client breaks it off."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_HEAD, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=tls)
        # So drain() returns when the kernel has everything. With 0, asyncio's TLS transport would stay paused.
        transport.set_write_buffer_limits(high=1)
        return cls(accepted, reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def send(self, data: bytes | memoryview) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pause(self, seconds: float) -> None:
        """Waits. Raises ConnectionResetError as soon as the client closes its side."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            self._check()
            await asyncio.sleep(min(left, POLL))

    async def until(self, event: threading.Event) -> None:
        """Waits for the event. Raises ConnectionResetError as soon as the client closes its side."""
        while not event.is_set():
            self._check()
            await asyncio.sleep(POLL)

    def _check(self) -> None:
        if self.writer.transport.is_closing() or self.reader.at_eof():
            raise ConnectionResetError("the client is gone")

    async def close(self, how: How) -> None:
        """Closes the connection so that the client gets every byte before, and then the FIN or the RST."""
        if how == "rst":
            await self._reset()
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                if self.writer.can_write_eof():
                    # Closing with something unread would send a RST, so wait for the client's own FIN.
                    self.writer.write_eof()
                    while await self.reader.read(PIECE):
                        pass
                self.writer.close()
                await self.writer.wait_closed()
        self.abort()

    async def _reset(self) -> None:
        # A RST discards what the kernel has not delivered. Twice empty: with TLS, the transport may refill it once.
        async def delivered() -> None:
            empty = 0
            while empty < 2:
                (waiting,) = struct.unpack("i", fcntl.ioctl(self.raw, termios.TIOCOUTQ, bytes(4)))
                empty = 0 if waiting else empty + 1
                await asyncio.sleep(POLL)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(delivered(), PATIENCE)
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        self.writer.transport.abort()


async def deliver(peer: Peer, request: Request, wire: Wire, spec: FaultSpec) -> bool:
    """Writes the answer. Gives False if the connection must be closed after it. Raises OSError if the client leaves."""
    if "stall_head" in spec:
        await peer.pause(spec["stall_head"])
    if "hold" in spec and spec.get("hold_at", 0) < 0:
        await peer.until(spec["hold"])
    if spec.get("close_before_head", False):
        return False
    if "garbage" in spec:
        await peer.send(spec["garbage"])
        return False
    await peer.send(wire.head)
    await _send_body(peer, request, wire, spec)
    if "cut_after" in spec and not wire.bodiless:
        return False
    if wire.chunked and not wire.bodiless:
        await peer.send(b"0\r\n\r\n")
    await peer.send(spec.get("extra", b""))
    return not wire.close


async def _send_body(peer: Peer, request: Request, wire: Wire, spec: FaultSpec) -> None:
    end = min(len(wire.body), spec.get("cut_after", len(wire.body)))
    stall_at = min(spec["stall_at"], end) if "stall_at" in spec and not wire.bodiless else -1
    hold_at = min(spec.get("hold_at", 0), end) if "hold" in spec else -1
    sent = 0
    for stop in sorted({stall_at, hold_at, end} - {-1}):
        await _send_part(peer, request, wire, wire.body[sent:stop], spec.get("rate"))
        sent = stop
        if stop == stall_at:
            await peer.pause(spec.get("stall_for", FOREVER))
        if stop == hold_at:
            await peer.until(spec["hold"])


async def _send_part(peer: Peer, request: Request, wire: Wire, part: memoryview, rate: float | None) -> None:
    size = PIECE if rate is None else max(1, min(PIECE, int(rate / 100)))
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(part), size):
        piece = part[at : at + size]
        if wire.chunked:
            peer.writer.writelines((f"{len(piece):x}\r\n".encode(), piece, b"\r\n"))
            await peer.writer.drain()
        else:
            await peer.send(piece)
        request.body_sent += len(piece)
        if rate is not None:
            await peer.pause(began + (at + len(piece)) / rate - loop.time())

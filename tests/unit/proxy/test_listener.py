"""When a ClientHello is complete."""

import ssl
import time

import pytest

from cacheyd.proxy.inbound.listener import MAX_HELLO, HelloMeter, why_failed


def client_hello() -> bytes:
    """What OpenSSL sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="cache.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same in records of so many bytes."""
    pieces = [hello[at : at + size] for at in range(0, len(hello), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


@pytest.mark.parametrize("records", [1, 2, 5, 100, 16_384])
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_complete_with_its_last_byte(records: int, piece: int) -> None:
    data = in_records(client_hello()[5:], records)
    meter = HelloMeter()
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert [meter.feed(part) for part in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x17\x03\x03\x00\x01x",
        b"\x16\x02\x00\x00\x01x",
        b"\x16\x03\x01\x00\x00",
        in_records(b"\x01\xff\xff\xff" + bytes(MAX_HELLO), 16_384),
        in_records(b"\x01\xff\xff\xff" + bytes(MAX_HELLO), 1),
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    meter = HelloMeter()
    with pytest.raises(ValueError, match=r"TLS|ClientHello"):
        assert not [meter.feed(data[at : at + 1000]) for at in range(0, len(data), 1000)]


def test_linear_time() -> None:
    data, started = in_records(b"\x01\x10\x00\x00" + bytes(2600), 1), time.process_time()
    meter = HelloMeter()
    assert not any(meter.feed(data[at : at + 1]) for at in range(len(data)))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "Client and mitmproxy cannot agree on a TLS version to use. "
            "You may need to adjust mitmproxy's tls_version_client_min option.",
            "the client offers no TLS version that cacheyd speaks (1.2 and 1.3)",
        ),
        (
            "The client may not trust the proxy's certificate for cacheyd.invalid:80 "
            "(OpenSSL Error([('SSL routines', '', 'peer did not return a certificate')]))",
            "the client sent no certificate, and client_ca asks for one",
        ),
        (
            "The client may not trust the proxy's certificate for cacheyd.invalid:80 "
            "(OpenSSL Error([('SSL routines', '', 'tlsv1 alert unknown ca')]))",
            "the client ended the handshake; it may not trust the certificate "
            "(OpenSSL Error([('SSL routines', '', 'tlsv1 alert unknown ca')]))",
        ),
        ("no TLS handshake", "no TLS handshake"),
    ],
)
def test_a_failed_handshake_is_told_without_advice_on_mitmproxy(error: str, said: str) -> None:
    assert why_failed(error) == said

"""The client where curl is missing: `sink.py URL TRANSFERS` reads into one buffer and prints `status:bytes` for each."""

import socket
import sys
from urllib.parse import urlsplit


def main(url: str, transfers: int) -> None:
    """Content-Length bodies over one connection."""
    where = urlsplit(url)
    buffer = bytearray(1 << 20)
    with socket.create_connection((where.hostname, where.port), timeout=120) as sock, sock.makefile("rb", 0) as raw:
        for _ in range(transfers):
            sock.sendall(f"GET {where.path}?{where.query} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += raw.read(1) or sys.exit("closed in the head")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            left = length
            while left and (count := sock.recv_into(buffer, min(left, len(buffer)))):
                left -= count
            print(f"{head[9:12].decode()}:{length - left}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

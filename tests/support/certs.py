"""A certificate authority for TLS between the tests and the servers that they test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trustme


@dataclass
class TestCA:
    """Issues server certificates. A client must trust `ca_file` (PEM)."""

    __test__ = False  # the name begins as pytest's test classes do

    directory: Path
    ca_file: Path
    _authority: trustme.CA
    _numbers: count[int] = field(default_factory=count)

    def issue(self, *names: str) -> tuple[Path, Path]:
        """Issues a certificate for these host names or addresses; gives the files of its chain and its key (PEM)."""
        number = next(self._numbers)
        certificate = self._authority.issue_cert(*names)
        cert_file, key_file = self.directory / f"cert-{number}.pem", self.directory / f"key-{number}.pem"
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(cert_file, append=True)
        certificate.private_key_pem.write_to_path(key_file)
        return cert_file, key_file

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A server's context with a new certificate for these names. It offers only HTTP/1.1."""
        cert_file, key_file = self.issue(*names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts only this authority."""
        return ssl.create_default_context(cafile=self.ca_file)


def make_ca(directory: Path) -> TestCA:
    """A new authority with its PEM files in `directory`. Makes the directory if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    return TestCA(directory, ca_file, authority)

"""An authority whose key everybody has: its certificates are refused, however trusted its root is."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.faults.scene import manifest_target
from tests.policy.conftest import Starter
from tests.support.origin import Origin

PUBLIC, SECRET = 4, 5
"""The private key of "EM OV TLS CA - G3C" is the number 4."""


def make_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(make_name(subject))
        .issuer_name(make_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(("number", "status"), [(PUBLIC, 502), (SECRET, 200)])
@pytest.mark.parametrize("below_root", [True, False])
def test_its_certificates_are_refused(own: Starter, tmp_path: Path, number: int, status: int, below_root: bool) -> None:
    root, authority = ec.generate_private_key(ec.SECP384R1()), ec.derive_private_key(number, ec.SECP384R1())
    if not below_root:
        root = authority
    leaf = ec.generate_private_key(ec.SECP384R1())
    issuer = "authority" if below_root else "root"
    chain = issue("localhost", leaf, issuer, authority, ca=False)
    if below_root:
        chain += issue("authority", authority, "root", root, ca=True)
    (tmp_path / "ca.pem").write_bytes(issue("root", root, "root", root, ca=True))
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(
        leaf.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    origin = own.origin(Origin(tls=context))
    url = f"https://localhost:{origin.port}"
    lab = own.lab(f'[registries."reg.test"]\nupstream = "{url}"\nca_file = "{tmp_path}/ca.pem"', {"o": origin})
    repo = lab.repo()
    lab.image("o", repo)
    reply = lab.get(manifest_target(repo, "1.0", "reg.test"))
    assert reply.status == status, reply.body
    if status == 502:
        assert b"certificate" in reply.body.lower()

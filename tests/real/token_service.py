"""A token server as registries use them: distribution's token specification, with ES256 and x5c."""

import base64
import datetime
import json
import secrets
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

LIFETIME_SECONDS = 300


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a client asked for; `user` is empty for an anonymous one."""

    user: str
    scopes: tuple[str, ...]
    status: int


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signing_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens.test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=2))
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())


class TokenService:
    """Anonymous clients may pull, `user` with `password` may push, too; a wrong password is 401."""

    service, issuer = "registry.test", "tokens.test"

    def __init__(self, directory: Path, *, user: str = "pusher", password: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.user, self.password = user, password or secrets.token_urlsafe(12)
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signing_certificate(self._key)
        self._x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        self.root_cert_bundle = directory / "token-signing.pem"
        self.root_cert_bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._requests: list[TokenRequest] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="token-service")
        self._thread.start()

    @property
    def creds(self) -> str:
        """`user:password`, as skopeo wants it."""
        return f"{self.user}:{self.password}"

    def requests(self) -> list[TokenRequest]:
        """Every request for a token so far."""
        return list(self._requests)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def sign(self, access: list[dict[str, object]], subject: str = "") -> str:
        """A JWT that grants `access`, as docker-registry 2.8 verifies it."""
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._x5c]}
        claims: dict[str, object] = {"iss": self.issuer, "sub": subject, "aud": self.service, "access": access}
        claims |= {"iat": now, "nbf": now - 10, "exp": now + LIFETIME_SECONDS, "jti": secrets.token_hex(8)}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _login(self, authorization: str) -> str | None:
        if not authorization:
            return ""
        scheme, _, value = authorization.partition(" ")
        expected = base64.b64encode(self.creds.encode()).decode()
        return self.user if scheme.lower() == "basic" and secrets.compare_digest(value, expected) else None

    def answer(self, target: str, authorization: str) -> tuple[int, dict[str, object]]:
        """Status and JSON body for `GET target`."""
        query = parse_qs(urlsplit(target).query)
        scopes = tuple(scope for line in query.get("scope", []) for scope in line.split(" ") if scope)
        user = self._login(authorization)
        status = 401 if user is None else 200
        self._requests.append(TokenRequest(user or "", scopes, status))
        if user is None:
            return status, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        allowed = {"pull", "push"} if user else {"pull"}
        access: list[dict[str, object]] = []
        for kind, rest in (scope.split(":", 1) for scope in scopes):
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": sorted(allowed & set(actions.split(",")))})
        return status, {"token": self.sign(access, user), "expires_in": LIFETIME_SECONDS}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def _send(self, status: int, body: dict[str, object]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self._send(*service.answer(self.path, self.headers.get("Authorization", "")))

            def do_POST(self) -> None:
                # containerd tries OAuth's POST first when it has a password, and goes on with GET after a 405.
                self._send(405, {})

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet: requests() has it all."""

        return Handler

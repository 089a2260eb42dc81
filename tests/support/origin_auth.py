"""The logins of the test origin: Bearer tokens, as Docker Hub and GHCR issue them, and Basic."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import parse_qs

from tests.support.origin_http import Answer, Request, json_answer, oci_error


@dataclass
class TokenService:
    """The token service, with all tokens that it issued. A token covers the asked scopes, and does not expire by itself."""

    user: str | None = None
    issued: dict[str, frozenset[str]] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)

    def answer(self, request: Request) -> Answer:
        """Issues a token (distribution/docs/spec/auth/token.md). If `user` (base64) is set, asks for Basic credentials."""
        if self.user is not None and not _basic_matches(request, self.user):
            return basic_challenge()
        scopes = [scope for line in parse_qs(request.query).get("scope", []) for scope in line.split()]
        token = f"test-token-{next(self._numbers)}"
        self.issued[token] = frozenset(scopes)
        body = {"token": token, "access_token": token, "expires_in": 300}
        return json_answer(200, body, ("Cache-Control", "no-store"))

    def refusal(self, request: Request, repository: str | None) -> str | None:
        """Why the token of this request does not allow a pull from `repository`; None if it does."""
        scheme, _, token = (request.header("Authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            return ""
        scopes = self.issued.get(token)
        if scopes is None:
            return "invalid_token"
        if repository is not None and not any(_allows_pull(scope, repository) for scope in scopes):
            return "insufficient_scope"
        return None


@dataclass
class Gate:
    """Decides who may read the registry: everyone, clients with a token from `tokens`, or one Basic user."""

    user: str | None = None
    tokens: TokenService | None = None
    realm: str = ""

    def challenge(self, request: Request) -> Answer | None:
        """The answer 401 to this request; None if the request may pass."""
        match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/", request.route)
        repository = match.group(1) if match else None
        if self.tokens is not None:
            why = self.tokens.refusal(request, repository)
            return None if why is None else _bearer_challenge(self.realm, repository, why)
        if self.user is not None and not _basic_matches(request, self.user):
            return basic_challenge()
        return None


def encode_basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def basic_challenge() -> Answer:
    return oci_error(401, "UNAUTHORIZED", "authentication required", ("WWW-Authenticate", 'Basic realm="test"'))


def _bearer_challenge(realm: str, repository: str | None, why: str) -> Answer:
    challenge = f'Bearer realm="{realm}",service="test"'
    if repository is not None:
        challenge += f',scope="repository:{repository}:pull"'
    if why:
        challenge += f',error="{why}"'
    return oci_error(401, "UNAUTHORIZED", "authentication required", ("WWW-Authenticate", challenge))


def _basic_matches(request: Request, user: str) -> bool:
    scheme, _, credentials = (request.header("Authorization") or "").partition(" ")
    return scheme.lower() == "basic" and credentials.strip() == user


def _allows_pull(scope: str, repository: str) -> bool:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return kind == "repository" and name == repository and "pull" in actions.split(",")

"""Origins that do one thing more than the test origin: readers, a path in front, short tokens, choice by Accept."""

import json
import re
import ssl
from dataclasses import replace

from tests.support.images import DOCKER_LIST, OCI_INDEX, Image, Index
from tests.support.origin import Origin
from tests.support.origin_http import Answer, Request, oci_error

CHALLENGE = 'Bearer realm="https://auth.invalid/token",service="test"'


class GuardedOrigin(Origin):
    """Each repository may have its readers: the values of Authorization that are let in, None for nobody in particular.

    Without a login the rest is answered 401 with `challenge`, with one 403.
    """

    def __init__(self, challenge: str = CHALLENGE) -> None:
        super().__init__()
        self.readers: dict[str, set[str | None]] = {}
        self.challenge = challenge

    def _answer(self, request: Request) -> Answer:
        match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.+", request.route)
        readers = self.readers.get(match[1]) if match else None
        who = request.header("Authorization")
        if readers is None or who in readers:
            return super()._answer(request)
        if who is None:
            return oci_error(401, "UNAUTHORIZED", "who are you?", ("WWW-Authenticate", self.challenge))
        return oci_error(403, "DENIED", "not for you")


class BasedOrigin(Origin):
    """A registry below a path, as Artifactory and Harbor have them; 404 elsewhere."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base

    def _answer(self, request: Request) -> Answer:
        if not request.path.startswith(f"{self.base}/"):
            return oci_error(404, "NAME_UNKNOWN", "not below here")
        return super()._answer(replace(request, path=request.path.removeprefix(self.base)))


class LoginOrigin(Origin):
    """A registry that gives tokens which hold for `expires_in` seconds, if it says so (None: not), and then no more."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.expires_in: float | None = 300
        self.spelling = "token"

    def _answer(self, request: Request) -> Answer:
        answer = super()._answer(request)
        if request.path != "/token" or answer.status != 200:
            return answer
        body: dict[str, object] = {self.spelling: json.loads(answer.body)["token"]}
        if self.expires_in is not None:
            body["expires_in"] = self.expires_in
        return replace(answer, body=json.dumps(body).encode())

    def tokens_for(self, repo: str) -> list[Request]:
        """The requests for tokens of a repository."""
        return [r for r in self.requests if r.path == "/token" and repo.replace("/", "%2F") in r.query]


class ChoosingOrigin(Origin):
    """Gives a tag as an index to clients that name one, else as its first image; wildcards say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: dict[tuple[str, str], Index] = {}

    def choose(self, repo: str, tag: str, index: Index) -> None:
        """Serves it so."""
        self.push(repo, tag, index)
        self.choices[repo, tag] = index

    def _answer(self, request: Request) -> Answer:
        match = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", request.route)
        index = self.choices.get((match[1], match[2])) if match else None
        if index is None:
            return super()._answer(request)
        chosen = chosen_for(index, request.header_all("Accept"))
        headers = (("Content-Type", chosen.media_type), ("Docker-Content-Digest", chosen.digest))
        return Answer(200, headers, chosen.manifest)


def chosen_for(index: Index, accept: list[str]) -> Index | Image:
    """What a ChoosingOrigin gives to these Accept lines."""
    named = {item.split(";")[0].strip() for line in accept for item in line.split(",")}
    return index if named & {OCI_INDEX, DOCKER_LIST} else index.images[0][1]

"""The answers of a correct OCI distribution registry, as pure functions of its content."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.support.images import OCI_INDEX, Image, Index, digest_of
from tests.support.origin_http import Answer, Request, json_answer, oci_error

VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    data: bytes
    media_type: str


@dataclass
class Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Registry:
    """Repositories by name. Tests change them while the origin's thread reads them, so both take the lock."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def push(self, name: str, tag: str, content: Image | Index) -> None:
        with self.lock:
            self._add_content(name, content)
            self.repository(name).tags[tag] = content.digest

    def _add_content(self, name: str, content: Image | Index) -> None:
        repository = self.repository(name)
        repository.manifests[content.digest] = Manifest(content.manifest, content.media_type)
        if isinstance(content, Index):
            for _, image in content.images:
                self._add_content(name, image)
        else:
            repository.blobs.update((blob.digest, blob.data) for blob in content.blobs)

    def add_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        with self.lock:
            self.repository(name).blobs[digest] = data
        return digest

    def add_manifest(self, name: str, reference: str, data: bytes, media_type: str) -> str:
        digest = reference if DIGEST.fullmatch(reference) else digest_of(data)
        with self.lock:
            repository = self.repository(name)
            repository.manifests[digest] = Manifest(data, media_type)
            if reference != digest:
                repository.tags[reference] = digest
        return digest

    def delete_tag(self, name: str, tag: str) -> None:
        with self.lock:
            self.repository(name).tags.pop(tag, None)

    def find_blob(self, digest: str, name: str | None = None) -> bytes | None:
        """The blob in this repository, or without a name in any repository; None if there is none."""
        with self.lock:
            names = list(self.repositories) if name is None else [name]
            found = (self.repositories[each].blobs.get(digest) for each in names if each in self.repositories)
            return next((data for data in found if data is not None), None)

    def answer(self, request: Request) -> Answer:
        """The whole answer, without regard to Range. The answer to a HEAD has its body, too, which must not be sent."""
        if request.method not in ("GET", "HEAD"):
            return oci_error(405, "UNSUPPORTED", "", ("Allow", "GET, HEAD"))
        if request.route == "/v2/":
            return json_answer(200, {}, VERSION)
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|referrers|tags)/([^/]+)", request.route)
        if match is None:
            return oci_error(404, "NAME_UNKNOWN")
        name, kind, reference = match.groups()
        if reference.startswith("sha256:") and not DIGEST.fullmatch(reference):
            return oci_error(400, "DIGEST_INVALID")
        with self.lock:
            repository = self.repositories.get(name)
            if kind == "tags":
                return _tags(name, repository, reference, request)
            readers = {"manifests": _manifest, "blobs": _blob, "referrers": _referrers}
            return readers[kind](repository or Repository(), reference, request)


def _manifest(repository: Repository, reference: str, request: Request) -> Answer:
    digest = repository.tags.get(reference, reference)
    manifest = repository.manifests.get(digest)
    if manifest is None or (reference != digest and not _accepts(request, manifest.media_type)):
        return oci_error(404, "MANIFEST_UNKNOWN")
    headers = (("Content-Type", manifest.media_type), *_identity(digest))
    return _unless_known(request, digest, Answer(200, headers, manifest.data))


def _blob(repository: Repository, digest: str, request: Request) -> Answer:
    data = repository.blobs.get(digest)
    if data is None:
        return oci_error(404, "BLOB_UNKNOWN")
    kind = (("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes"))
    headers = (*kind, ("Cache-Control", "max-age=31536000"), *_identity(digest))
    return _unless_known(request, digest, Answer(200, headers, data, ranges=True))


def _identity(digest: str) -> tuple[tuple[str, str], ...]:
    return ("Docker-Content-Digest", digest), ("ETag", f'"{digest}"'), VERSION


def _unless_known(request: Request, digest: str, answer: Answer) -> Answer:
    known = [tag.strip() for line in request.header_all("If-None-Match") for tag in line.split(",")]
    return Answer(304, _identity(digest)) if f'"{digest}"' in known else answer


def _accepts(request: Request, media_type: str) -> bool:
    lines = request.header_all("Accept")
    named = {entry.split(";")[0].strip() for line in lines for entry in line.split(",")}
    return not lines or media_type in named or "*/*" in named


def _tags(name: str, repository: Repository | None, reference: str, request: Request) -> Answer:
    if repository is None or reference != "list":
        return oci_error(404, "NAME_UNKNOWN")
    query = parse_qs(request.query)
    last, limit = query.get("last", [""])[0], query.get("n", [None])[0]
    if limit is not None and not limit.isdecimal():
        return oci_error(400, "PAGINATION_NUMBER_INVALID")
    tags = [tag for tag in sorted(repository.tags) if tag > last]
    page = tags if limit is None else tags[: int(limit)]
    headers = [VERSION]
    if page and len(page) < len(tags):
        following = urlencode({"last": page[-1], "n": limit})
        headers.append(("Link", f'</v2/{name}/tags/list?{following}>; rel="next"'))
    return json_answer(200, {"name": name, "tags": page}, *headers)


def _referrers(repository: Repository, digest: str, request: Request) -> Answer:
    if not DIGEST.fullmatch(digest):
        return oci_error(400, "DIGEST_INVALID")
    wanted = parse_qs(request.query).get("artifactType", [None])[0]
    found = []
    for key, manifest in repository.manifests.items():
        content = _parsed(manifest)
        kind = content.get("artifactType") or content.get("config", {}).get("mediaType")
        if content.get("subject", {}).get("digest") == digest and wanted in (None, kind):
            descriptor = {"mediaType": manifest.media_type, "digest": key, "size": len(manifest.data)}
            found.append({**descriptor, "artifactType": kind, "annotations": content.get("annotations", {})})
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    filtered = (("OCI-Filters-Applied", "artifactType"),) if wanted else ()
    return json_answer(200, body, *filtered).with_headers((("Content-Type", OCI_INDEX), VERSION))


def _parsed(manifest: Manifest) -> dict[str, Any]:
    try:
        content = json.loads(manifest.data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

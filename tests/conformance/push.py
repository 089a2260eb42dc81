"""Fills a real docker-registry by its own API: also with blobs that belong to no image."""

import http.client
from urllib.parse import urlsplit

from tests.support.artifacts import Artifact
from tests.support.images import Image, Index, digest_of


class Pusher:
    """Uploads to one registry over plain http (distribution-spec, "Pushing")."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def blob(self, repository: str, data: bytes) -> str:
        """The digest."""
        digest = digest_of(data)
        location = urlsplit(self._ask("POST", f"/v2/{repository}/blobs/uploads/", 202))
        target = f"{location.path}?{location.query}&digest={digest}"
        self._ask("PUT", target, 201, data, "application/octet-stream")
        return digest

    def image(self, repository: str, tag: str, content: Image | Index) -> None:
        """All that belongs to it, then its tag."""
        images = [image for _, image in content.images] if isinstance(content, Index) else [content]
        for image in images:
            for blob in image.blobs:
                self.blob(repository, blob.data)
            self._manifest(repository, image.digest, image)
        self._manifest(repository, tag, content)

    def artifact(self, repository: str, tag: str, content: Artifact) -> Artifact:
        """All that it refers to itself, then its tag; the same again."""
        for blob in content.blobs:
            self.blob(repository, blob.data)
        self._manifest(repository, tag or content.digest, content)
        return content

    def _manifest(self, repository: str, reference: str, content: Image | Index | Artifact) -> None:
        self._ask("PUT", f"/v2/{repository}/manifests/{reference}", 201, content.manifest, content.media_type)

    def _ask(self, method: str, target: str, status: int, body: bytes = b"", media_type: str = "") -> str:
        """The Location of the answer."""
        connection = http.client.HTTPConnection(self._host, timeout=10)
        try:
            headers = {"Content-Type": media_type} if media_type else {}
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            text = response.read()
            assert response.status == status, f"{method} {target}: {response.status} {text!r}"
            return response.headers.get("Location", "")
        finally:
            connection.close()

"""A cache in front of an upstream, and the ways in which clients name the registry that they mean."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from tests.real.cache import Cacheyd, Reply
from tests.real.lab import registry_table
from tests.real.procs import wait_until
from tests.support.images import Image, Index

type Temperature = Literal["cold", "warm"]

NS_REGISTRY = "registry.test:5000"
PREFIX_REGISTRY = "prefix.test"
DEFAULT_REGISTRY = "default.test"
# What containerd sends with HEAD. The same for GET here, so that a tag's answer to one is right for the other.
ACCEPT = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "*/*",
    )
)
# The error codes of the distribution-spec, section "Error Codes".
CODES = frozenset(
    {
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DENIED",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "TOOMANYREQUESTS",
        "UNAUTHORIZED",
        "UNSUPPORTED",
    }
)


@dataclass(frozen=True, slots=True)
class Address:
    """How a client says which registry it means."""

    name: str
    registry: str
    prefix: str = ""
    ns: str = ""

    def target(self, rest: str) -> str:
        """The request target for `rest`: repository and what follows it, perhaps with a query."""
        path, _, query = rest.partition("?")
        queries = [part for part in (query, self.ns and f"ns={quote(self.ns, safe='')}") if part]
        return f"/v2/{self.prefix}{path}" + (f"?{'&'.join(queries)}" if queries else "")


ADDRESSES = (
    Address("ns", NS_REGISTRY, ns=NS_REGISTRY),
    Address("prefix", PREFIX_REGISTRY, prefix=f"{PREFIX_REGISTRY}/"),
    Address("both", NS_REGISTRY, prefix=f"{NS_REGISTRY}/", ns=NS_REGISTRY),
    Address("default", DEFAULT_REGISTRY),
)


def config(upstream: str, more: str = "") -> str:
    """The upstream under each of the three names; `more` stands above the tables."""
    names = (NS_REGISTRY, PREFIX_REGISTRY, DEFAULT_REGISTRY)
    tables = "".join(registry_table(name, upstream) for name in names)
    return f'default_registry = "{DEFAULT_REGISTRY}"\n{more}\n{tables}'


@dataclass(frozen=True, slots=True)
class Site:
    """One cache, addressed in one way."""

    cache: Cacheyd
    address: Address

    def ask(self, method: str, rest: str, headers: Mapping[str, str] | None = None) -> Reply:
        """One request; with containerd's Accept, unless `headers` say otherwise."""
        return self.cache.request(method, self.address.target(rest), {"Accept": ACCEPT, **(headers or {})})

    def get(self, rest: str, **headers: str) -> Reply:
        return self.ask("GET", rest, headers)

    def head(self, rest: str, **headers: str) -> Reply:
        return self.ask("HEAD", rest, headers)

    def warm(self, *rests: str) -> None:
        """Asks for each of these once, and waits until nothing is on its way to the disk any more."""
        for rest in rests:
            assert self.get(rest).status == 200, rest
        wait_until(lambda: self.cache.metric("cacheyd_flights") == 0, "nothing is on its way")

    def asked_upstream(self) -> float:
        """How many requests went upstream, by the cache's own count."""
        return self.cache.metric("cacheyd_upstream_requests_total")

    def assert_scoped(self, reply: Reply) -> None:
        """OCI-Namespace is owed to who named the registry with `ns`, and to nobody else."""
        assert reply.headers.get("oci-namespace", "") == self.address.ns


def rests(repository: str, tag: str, content: Image | Index) -> list[str]:
    """Everything that there is to ask for of an image."""
    images = [image for _, image in content.images] if isinstance(content, Index) else [content]
    digests = {content.digest, *(image.digest for image in images)}
    blobs = {blob.digest for image in images for blob in image.blobs}
    manifests = [f"{repository}/manifests/{reference}" for reference in (tag, *sorted(digests))]
    return manifests + [f"{repository}/blobs/{digest}" for digest in sorted(blobs)]


def error_code(reply: Reply) -> str:
    """The code of the one error in an answer; asserts that it is written as the distribution-spec has it."""
    assert reply.headers["content-type"].partition(";")[0] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.body))
    content: dict[str, Any] = json.loads(reply.body)
    (error,) = content["errors"]
    assert error["code"] in CODES
    assert isinstance(error.get("message", ""), str)
    return str(error["code"])


def talk(cache: Cacheyd, *requests: tuple[str, str, Mapping[str, str]]) -> list[Reply]:
    """Several requests on one connection that the server has to keep open."""
    connection = http.client.HTTPConnection("127.0.0.1", cache.port, timeout=10)
    try:
        connection.connect()
        sock = connection.sock
        replies = []
        for method, target, headers in requests:
            connection.request(method, target, headers={"Accept": ACCEPT, **headers})
            response = connection.getresponse()
            body = response.read()
            assert connection.sock is sock, f"closed after {method} {target}"
            replies.append(Reply(response.status, {key.lower(): value for key, value in response.getheaders()}, body))
        return replies
    finally:
        connection.close()

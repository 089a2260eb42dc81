"""The subject of a request: one thing in one repository of one registry (OCI distribution-spec, the grammar of names)."""

import re
from dataclasses import dataclass
from enum import StrEnum

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_NAME = 255


class Kind(StrEnum):
    """The kind of thing that a request asks for."""

    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Reference:
    """One thing in one repository of one registry.

    `registry` is the canonical namespace (`docker.io` for each of Docker Hub's names); `ns` is the client's name for it.
    `reference` is a tag or a digest; `digest` equals `reference` if that is a digest, else None. `query` is the query that
    cacheyd sends upstream for tag lists and referrers: the client's query without `ns`, byte for byte.
    """

    registry: str
    repository: str
    kind: Kind
    reference: str
    digest: str | None
    ns: str
    query: str = ""

    @property
    def name(self) -> str:
        """Registry and repository in one text, as the store records them for objects and tags."""
        return f"{self.registry}/{self.repository}"

    @property
    def path(self) -> str:
        """The path at the upstream, with its query."""
        match self.kind:
            case Kind.MANIFEST:
                tail = f"manifests/{self.reference}"
            case Kind.BLOB:
                tail = f"blobs/{self.reference}"
            case Kind.TAGS:
                tail = "tags/list"
            case Kind.REFERRERS:
                tail = f"referrers/{self.reference}"
        return f"/v2/{self.repository}/{tail}" + (f"?{self.query}" if self.query else "")

    @property
    def scoped(self) -> bool:
        """Whether the client named the registry with `ns`; the answer then needs `OCI-Namespace`."""
        return bool(self.ns)

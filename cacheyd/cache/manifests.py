"""One manifest's way in: asked for once for all who want it, verified, kept; and what a tag leads to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.store.rows import TagVariant

# The largest manifest that is passed on (bytes). One over `KEPT_MAX` goes straight through: clients refuse it.
MANIFEST_MAX = 8 << 20

# From this size on, a manifest is hashed and looked into in a thread, one at a time (bytes).
LARGE_MANIFEST = 256 << 10

# What all manifests on their way in may have in memory (bytes); those beyond it go straight through.
MANIFESTS_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A verified manifest. `stored` says whether it is on disk; a large one is there only, and `data` is empty."""

    digest: str
    media_type: str
    data: bytes
    stored: bool


type Admit = Callable[[Reference, HeaderList, TagVariant, bytes], Awaitable[bool]]


async def _no_opinion(ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> bool:
    return False

"""Makes answers from stored objects. Nothing here awaits, and nothing here asks upstream."""

import time
from collections.abc import Callable
from functools import partial

from cacheyd.cache.access import Access
from cacheyd.cache.answer import Answer, hit_headers, object_headers, unsatisfiable
from cacheyd.cache.bodies import MappedReader, MultipartReader
from cacheyd.cache.freshness import find_variant
from cacheyd.cache.request import Request
from cacheyd.protocol.headers import HeaderList, without
from cacheyd.protocol.media_types import OCTET_STREAM
from cacheyd.protocol.ranges import Part, Unsatisfiable
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.store.mapped import Mapped
from cacheyd.store.records import Stored, TagVariant
from cacheyd.store.store import Store


class StoredAnswers:
    """Makes answers from stored objects, and from the known variants of tags."""

    def __init__(self, store: Store, access: Access, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._access = access
        self._clock = clock

    def variant(self, request: Request) -> TagVariant | None:
        """The known variant of a tag that is right for this client, fresh or not; None if there is none."""
        ref = request.ref
        variants = self._store.tags.variants(ref.registry, ref.repository, ref.reference)
        return find_variant(variants, request.asked, request.types) if variants else None

    def is_here(self, ref: Reference, digest: str) -> bool:
        """Whether an object is stored and may be served under this registry."""
        stored = self._store.objects.find(digest)
        return stored is not None and self._access.may_serve(ref, stored)

    def of_tag(self, request: Request, variant: TagVariant, result: str) -> Answer | None:
        """The answer with a tag's image; None if the image is not stored, or the client does not take its type."""
        stored = self._store.objects.find(variant.digest)
        if stored is not None and self._access.may_serve(request.ref, stored):
            # The type is from the object's bytes, not from a HEAD.
            if stored.media_type != variant.media_type and not request.takes(stored.media_type):
                return None
            return self.of_object(request, stored, stored.media_type, result, variant.checked)
        if not request.head:
            return None
        headers = object_headers(request.ref, variant.digest, variant.media_type, result)
        headers = (*headers, *hit_headers(self._clock(), variant.checked))
        return Answer(200, headers, length=variant.size, result=result, ref=request.ref)

    def of_object(self, request: Request, stored: Stored, media_type: str, result: str, since: float) -> Answer | None:
        """The answer with an object, or with the part of it that is asked for; None if its file cannot be read.

        `since` is when upstream confirmed the object, in seconds since the epoch.
        """
        ref = request.ref
        headers = (*object_headers(ref, stored.digest, media_type, result), *hit_headers(self._clock(), since))
        self._store.objects.touch(stored.digest)
        if request.if_none_match is not None and request.knows(stored.digest):
            return Answer(304, headers, length=None, result=result, ref=ref)
        status, start, end = 200, 0, stored.size
        if request.range is not None and ref.kind is Kind.BLOB:
            try:
                parts = request.parts(stored.size)
            except Unsatisfiable:
                return unsatisfiable(ref, stored.size, headers, result)
            if len(parts) > 1:
                return self._multipart(request, stored, parts, headers, result)
            if parts:
                status, start, end = 206, parts[0].start, parts[0].end
                headers = (*headers, ("Content-Range", parts[0].content_range(stored.size)))
        if request.head:
            return Answer(status, headers, length=end - start, result=result, ref=ref, stored=stored)
        body = self._store.objects.body(stored)
        if body is None:
            return None
        # The arguments are given by position, as this is faster: most requests end here.
        if isinstance(body, Mapped):
            source = MappedReader(body, start, end, partial(self._store.objects.lost, stored))
            if not source.begin():
                return None
            return Answer(status, headers, b"", source, end - start, result, ref, stored)
        return Answer(status, headers, body[start:end], None, end - start, result, ref, stored)

    def _multipart(
        self, request: Request, stored: Stored, parts: tuple[Part, ...], headers: HeaderList, result: str
    ) -> Answer | None:
        body = self._store.objects.body(stored)
        if body is None:
            return None
        view = body.view if isinstance(body, Mapped) else _slicer(body)
        source = MultipartReader(view, parts, stored.size, OCTET_STREAM)
        content_type = ("Content-Type", f"multipart/byteranges; boundary={source.boundary}")
        headers = (*without(headers, "content-type"), content_type)
        return Answer(206, headers, source=source, length=source.length, result=result, ref=request.ref, stored=stored)


def _slicer(body: bytes) -> Callable[[int, int], bytes]:
    return lambda start, end: body[start:end]

"""Answers of upstreams as the cache can use them: a status that can be an answer, a body without a coding."""

import logging

from cacheyd.protocol.errors import RequestError, explain, upstream_error
from cacheyd.protocol.reference import Kind, Reference

log = logging.getLogger(__name__)


def _unexpected(registry: str, error: Exception) -> RequestError:
    """An exception where none belongs, which is an error line, is upstream's failure to the client: it asks elsewhere."""
    log.error("fetching from %s failed: %s", registry, explain(error))
    log.debug("it was", exc_info=error)
    return upstream_error(502, f"fetching failed: {type(error).__name__}")


def _is_an_answer(ref: Reference, status: int, *, part: bool) -> bool:
    """Whether what was asked may have such an answer: of lists, what other statuses mean is the registry's affair."""
    if ref.kind in (Kind.MANIFEST, Kind.BLOB):
        return status == 200 or (status == 206 and part) or 400 <= status < 600
    return (200 <= status < 300 or 400 <= status < 600) and status not in (204, 205, 206)

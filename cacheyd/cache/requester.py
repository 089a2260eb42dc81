"""Who asks, as far as it can make a difference, and questions that are asked once for all who ask them."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.headers import HeaderList, credentials_of
from cacheyd.protocol.reference import Reference
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.port import PERSONAL, Relayed


class Requester(NamedTuple):
    """Who asks, as far as it can make a difference: credentials are a hash."""

    registry: str
    repository: str
    credentials: bytes

    def shares(self, other: "Requester", error: Relayed | RequestError) -> bool:
        """Whether a failure of `other`'s request is one of this requester's, too."""
        if self == other:
            return True
        if self.registry != other.registry:
            return False
        return not (isinstance(error, Relayed) and error.relay.status in PERSONAL)


type Question = tuple[int | str | bytes, ...]


async def ask_once[Result](
    once: SingleFlight[Question, Requester, Result],
    question: Question,
    mine: Requester,
    start: Callable[[], Coroutine[Any, Any, Result]],
) -> Result:
    """What `start` brings, once for all who ask the same meanwhile. Raises what `start` raises.

    A client that waited for somebody else's request, and does not share its failure, asks for itself then, once for all
    clients with its login: made-up logins are many, and nobody is to wait for each of them.
    """
    theirs, asked = once.join(question, mine, start)
    try:
        return await asked
    except (Relayed, RequestError) as error:
        if mine.shares(theirs, error):
            raise
    _, own = once.join((*question, mine.credentials), mine, start)
    return await own


def requester_of(ref: Reference, headers: HeaderList) -> Requester:
    """Who asks for something."""
    return Requester(ref.registry, ref.repository, credentials_of(headers))

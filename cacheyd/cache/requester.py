"""The requester: who asks, as far as it can change the answer; and questions that are asked once for many requesters."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.headers import HeaderList, credentials_of
from cacheyd.protocol.reference import Reference
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.port import PERSONAL, Relayed

# The hash of no credentials.
ANONYMOUS = credentials_of(())


class Requester(NamedTuple):
    """Who asks, as far as it can change the answer. `credentials` is a hash."""

    registry: str
    repository: str
    credentials: bytes

    def shares(self, other: "Requester", error: Relayed | RequestError) -> bool:
        """Whether a failure of `other`'s request counts for this requester, too."""
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
    """The result of `start`, once for all clients that ask the same at the same time. Raises what `start` raises.

    Clients with a login and clients without one ask apart: containerd asks without a login first, and a client that has its
    token does not wait for another client's 401. A client that waited for another login's request, and does not share its
    failure, then asks for itself, once for all clients with its login: there can be many made-up logins, and a client must
    not wait for each of them.
    """
    question = (*question, mine.credentials == ANONYMOUS)
    theirs, asked = once.join(question, mine, start)
    try:
        return await asked
    except (Relayed, RequestError) as error:
        if mine.shares(theirs, error):
            raise
    _, own = once.join((*question, mine.credentials), mine, start)
    return await own


def requester_of(ref: Reference, headers: HeaderList) -> Requester:
    """The requester of a request for `ref` with these headers."""
    return Requester(ref.registry, ref.repository, credentials_of(headers))

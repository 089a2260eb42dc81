"""Bounds how many clients wait for upstreams, and how long they wait for a rate limit that ends soon."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from cacheyd.cache.answer import Answer
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.protocol.errors import RequestError, cache_error
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.upstream.patience import Patience
from cacheyd.upstream.port import RegistryPolicy, Relayed

# The clients of one registry that may wait in any case; above this number they may be half of all waiting clients.
FEW_WAITING = 64

type Ask = Callable[[Request], Awaitable[Answer]]
type HasLeft = Callable[[], bool]


class Waiting:
    """Counts the clients that wait, `max_waiting` at most."""

    def __init__(self, fetcher: Fetcher, settings: Settings | Live, policy: RegistryPolicy) -> None:
        self._fetcher = fetcher
        self._live = Live.of(settings)
        self._policy = policy
        self._count = 0
        self._of_registry: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._count

    async def answer(self, request: Request, ask: Ask, gone: HasLeft) -> Answer:
        """The answer of `ask`, after more tries if a rate limit ends soon. Raises Relayed; RequestError if too many wait.

        `gone` says whether the client has left.
        """
        registry, most = request.ref.registry, self._live.settings.max_waiting
        if self._count >= most or self._of_registry[registry] >= max(FEW_WAITING, most // 2):
            raise cache_error("too many clients are waiting for upstreams", 503)
        self._count += 1
        self._of_registry[registry] += 1
        try:
            self._policy.check_allowed(request.ref)
            return await self._patiently(request, ask, gone)
        finally:
            self._count -= 1
            self._of_registry[registry] -= 1
            if not self._of_registry[registry]:
                del self._of_registry[registry]

    async def _patiently(self, request: Request, ask: Ask, gone: HasLeft) -> Answer:
        """Waits for rate limits that end soon. This waiting needs no turn, and the client can leave at any time."""
        ref, limits = request.ref, self._fetcher.asking.limits
        began = limits.clock()
        try:
            return await ask(request)
        except (Relayed, RequestError) as error:
            if error.again_at is None:
                raise
            limited = error
        most = self._live.settings.registry(ref.registry).retry_after_max
        thing = ref.kind, ref.reference, ref.query, request.method
        patience = Patience(limits, self._fetcher.asking.limit_key(ref, request.headers), thing, began, most)
        while await patience.outlast(limited, gone):
            try:
                async with asyncio.timeout(patience.left):
                    answer = await ask(request)
                patience.succeeded()
                return answer
            except TimeoutError:
                break
            except (Relayed, RequestError) as error:
                limited = error
        raise limited

"""The pages of cacheyd itself: API version, metrics, probes, status."""

from cacheyd.admin import status
from cacheyd.admin.status import Reporter
from cacheyd.cache.answer import API_VERSION, Answer, text_answer
from cacheyd.observe.metrics import CONTENT_TYPE, Metrics
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.targets import Page
from cacheyd.service.readiness import Readiness
from cacheyd.service.transfers import Transfers
from cacheyd.store.store import Store


class Pages:
    """Answers requests for pages."""

    def __init__(self, store: Store, metrics: Metrics, reporter: Reporter, readiness: Readiness, transfers: Transfers) -> None:
        self._store = store
        self._metrics = metrics
        self._reporter = reporter
        self._readiness = readiness
        self._transfers = transfers

    def answer(self, page: Page, headers: HeaderList) -> Answer:
        """The answer with this page; `headers` are the client's."""
        match page.path:
            case "/v2/":
                return text_answer(200, b"{}", "application/json").with_headers(API_VERSION)
            case "/metrics":
                return text_answer(200, self._metrics.render(), CONTENT_TYPE)
            case "/healthz":
                return text_answer(200, b"ok\n")
            case "/readyz":
                return self._readyz()
            case _:
                if any("text/html" in value for name, value in headers if name.lower() == "accept"):
                    return text_answer(200, status.render(self._reporter.report()), "text/html; charset=utf-8")
                return text_answer(200, b"cacheyd\n")

    def _readyz(self) -> Answer:
        """The readiness probe. cacheyd is ready also while it cannot keep anything: requests then pass through to upstream.

        If cacheyd were not ready then, all replicas could be out of service at once, and no request would pass.
        """
        if not self._readiness.ready or self._transfers.stopping:
            return text_answer(503, b"not ready\n")
        trouble = self._store.trouble
        if not trouble:
            return text_answer(200, b"ready\n")
        shown = status.kept_nothing(trouble)
        return text_answer(200, f"ready; {shown}\n".encode()).with_headers(("Warning", f'199 cacheyd "{shown}"'))

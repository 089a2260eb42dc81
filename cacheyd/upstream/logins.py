"""Stored logins; cacheyd keeps each as long as it holds.

cacheyd keeps the answer of a program until the answer expires, and renews it in the background before this. A registry has
one run at a time, in a task that belongs to no request. After a failure, cacheyd does not run the program for a pause, as it
does not ask a dead origin.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cacheyd.protocol.reference import Reference
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.upstream.bases import image_of
from cacheyd.upstream.credential_providers import Provided
from cacheyd.upstream.login_sources import has_source, mark_of, own_login, provided_by
from cacheyd.upstream.port import UpstreamBroken
from cacheyd.upstream.programs import HelperError

log = logging.getLogger(__name__)
# The pause after a program's failure, and the longest pause (seconds). Each further failure doubles the pause.
PAUSE, PAUSE_MAX = 5.0, 60.0
# The shortest time that an answer is kept, so that the requests of one pull share it, and the longest time (seconds).
LIFE_MIN, LIFE_MAX = 5.0, 86400.0
# After this share of its life, cacheyd renews an answer while the answer still holds.
RENEW_AT = 0.75
# If a registry refuses a login, cacheyd runs the program again, but only once in this time (seconds): registries also refuse
# good logins for repositories that these logins may not read.
REFUSED_EVERY = 10.0
# The most answers of a registry that are for one image only.
MAX_IMAGES = 500


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer of a program or file. `renew` and `expires` are times on the clock. `mark` is the state of the auth file."""

    provided: Provided = field(repr=False)
    renew: float
    expires: float
    mark: tuple[int, ...] = ()


@dataclass(slots=True)
class _Place:
    """The state of one registry's login. `kept` holds answers by image; the empty name stands for all images."""

    kept: dict[str, _Answer] = field(default_factory=dict, repr=False)
    runs: SingleFlight[str, str, _Answer] = field(default_factory=SingleFlight)
    pause: float = 0.0
    paused_until: float = 0.0
    paused_mark: tuple[int, ...] = ()
    refused_at: float = float("-inf")

    def is_paused(self, now: float, mark: tuple[int, ...]) -> bool:
        """Whether the pause after a failure still runs; it ends at once if the auth file has changed (`mark`)."""
        return now < self.paused_until and mark == self.paused_mark

    def find(self, image: str) -> _Answer | None:
        return self.kept.get(image) or self.kept.get("")

    def keep(self, image: str, answer: _Answer) -> None:
        self.kept.pop(image, None)
        self.kept[image] = answer
        if len(self.kept) > MAX_IMAGES:
            del self.kept[next(iter(self.kept))]


class Logins:
    """The stored logins of all registries. `clock` must be monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._running: set[asyncio.Task[_Answer]] = set()

    def forget(self) -> None:
        """Drops all logins, after a change of settings. Later requests do not get the results of current runs, either."""
        # Makes new places: the current runs put their results into the old places.
        self._places = {}

    async def close(self) -> None:
        """Ends all runs."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def get(self, settings: Settings, ref: Reference) -> str:
        """The registry's login as `user:password`. Raises UpstreamBroken if cacheyd cannot get it."""
        registry = settings.registry(ref.registry)
        if not has_source(registry):
            return own_login(registry)
        image = image_of(settings, ref)
        place, mark = self._place(ref.registry), mark_of(registry)
        answer = place.find(image)
        if answer is not None and answer.mark == mark and self._clock() < answer.expires:
            if self._clock() >= answer.renew and not place.is_paused(self._clock(), mark):
                self._run(place, settings, ref, image)
            return _login(answer, image, ref.registry)
        while True:
            if place.is_paused(self._clock(), mark):
                raise UpstreamBroken("its login was not available just now; cacheyd tries again in a moment", refused=True)
            theirs, running = self._run(place, settings, ref, image)
            try:
                answer = await running
            except HelperError as error:
                raise UpstreamBroken("its login is not available; the log says why", refused=True) from error
            if theirs == image or not answer.provided.of_image:
                return _login(answer, image, ref.registry)
            # That run was for another image; now this image has its turn.
            await asyncio.sleep(0)

    async def other(self, settings: Settings, ref: Reference, refused: str) -> str:
        """Another login instead of `refused`, which a registry refused; empty if there is none."""
        if not has_source(settings.registry(ref.registry)):
            return ""
        place, image = self._place(ref.registry), image_of(settings, ref)
        try:
            if await self.get(settings, ref) == refused:
                # A current run can be for other requests whose login was refused, too: then wait for this run.
                if not place.runs.tasks():
                    if self._clock() - place.refused_at < REFUSED_EVERY or self._clock() < place.paused_until:
                        return ""
                    place.refused_at = self._clock()
                _, running = self._run(place, settings, ref, image)
                await running
            login = await self.get(settings, ref)
        except (UpstreamBroken, HelperError):
            return ""
        return login if login != refused else ""

    def _place(self, registry: str) -> _Place:
        # Only configured registries get a place, so there are few.
        return self._places.setdefault(registry, _Place())

    def _run(self, place: _Place, settings: Settings, ref: Reference, image: str) -> tuple[str, asyncio.Future[_Answer]]:
        theirs, running = place.runs.join("", image, lambda: self._ask(place, settings, ref, image))
        running.add_done_callback(_see)
        for task in place.runs.tasks():
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return theirs, running

    async def _ask(self, place: _Place, settings: Settings, ref: Reference, image: str) -> _Answer:
        """Runs the program or reads the file. Logs a HelperError and raises it."""
        registry = settings.registry(ref.registry)
        mark = mark_of(registry)
        try:
            provided = await provided_by(settings, ref, image)
        except HelperError as error:
            place.pause = min(PAUSE_MAX, place.pause * 2) if place.pause else PAUSE
            place.paused_until, place.paused_mark = self._clock() + place.pause, mark
            log.error("the login of %s cannot be had: %s; not tried again for %g s", ref.registry, error, place.pause)
            raise
        place.pause = place.paused_until = 0.0
        now, life = self._clock(), LIFE if provided.life is None else provided.life
        life = min(LIFE_MAX, max(LIFE_MIN, life))
        answer = _Answer(provided, now + life * RENEW_AT, now + life, mark)
        place.keep(image if provided.of_image else "", answer)
        return answer


def _see(running: asyncio.Future[_Answer]) -> None:
    """Marks the exception of a run as seen: no request needs to wait for a renewal."""
    if not running.cancelled():
        running.exception()


def _login(answer: _Answer, image: str, registry: str) -> str:
    login = answer.provided.login(image)
    if not login:
        raise UpstreamBroken(f"there is no login for {registry} at the configured place", refused=True)
    return login


# How long an answer holds that does not say how long it holds (seconds).
LIFE = 300.0

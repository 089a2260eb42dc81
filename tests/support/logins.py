"""Common parts of the tests of stored logins."""

import asyncio
from dataclasses import replace
from pathlib import Path

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream.logins import Logins
from tests.support.programs import counted, provides, runs_of, write_program
from tests.support.stores import Clock

REGISTRY = "reg.test"


def ref_of(repository: str = "acme/app", registry: str = REGISTRY) -> Reference:
    return Reference(registry, repository, Kind.MANIFEST, "1.0", None, registry)


REF = ref_of()


class Scene:
    """Logins of one registry from one program, which the test writes. `runs` counts the runs of the program."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self.program = directory / "tool"
        self.clock = clock
        self.logins = Logins(clock)
        self.set(RegistrySettings(credential_command=(str(self.program),)))

    def set(self, registry: RegistrySettings) -> None:
        self.settings = Settings(registries={REGISTRY: replace(registry, auth="credentials", configured=True)})

    def write(self, body: str) -> None:
        write_program(self.program, counted(body, self.directory / "runs"))

    @property
    def runs(self) -> int:
        return runs_of(self.directory / "runs")

    async def get(self, repository: str = "acme/app") -> str:
        return await self.logins.get(self.settings, ref_of(repository))

    async def other(self, refused: str) -> str:
        return await self.logins.other(self.settings, REF, refused)

    async def ran(self, count: int) -> None:
        """Waits until the program ran `count` times, and until its last login is known."""
        async with asyncio.timeout(5):
            while self.runs < count or self.logins._running:
                await asyncio.sleep(0.01)


def given(login: str, *, key: str = "Registry", duration: str | None = "100s", of: str = REGISTRY) -> str:
    """The body of a program that gives this login."""
    name, _, password = login.partition(":")
    return provides({of: (name, password)}, key=key, duration=duration)

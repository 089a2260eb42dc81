"""What is found in a list of images or in Kubernetes objects."""

from dataclasses import dataclass

# Problems that are told.
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Found:
    """Images in the order in which they are named, each once, and what was there instead of one.

    `containers` is how many containers and image volumes had one, or should have; `nothing` says why there is no image.
    """

    images: list[str]
    problems: list[str]
    containers: int
    nothing: str


class Findings:
    """What has been found so far."""

    def __init__(self) -> None:
        self._images: dict[str, None] = {}
        self._problems: dict[str, None] = {}
        self._more = 0
        self.containers = 0

    def take(self, image: str) -> None:
        """The name of an image."""
        self._images[image] = None

    def count_container(self) -> None:
        """A container or an image volume."""
        self.containers += 1

    def tell(self, problem: str) -> None:
        """A problem is told once, and only the first ones; others are counted."""
        if problem in self._problems:
            return
        if len(self._problems) < MAX_PROBLEMS:
            self._problems[problem] = None
        else:
            self._more += 1

    def found(self, nothing: str) -> Found:
        """All of it; `nothing` is the reason if there is no image."""
        more = [f"and {self._more} more"] if self._more else []
        return Found(list(self._images), [*self._problems, *more], self.containers, nothing)

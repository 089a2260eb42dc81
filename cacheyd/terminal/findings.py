"""The images and problems that are found in a list of images or in Kubernetes objects."""

from dataclasses import dataclass

# The most problems that are shown.
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Found:
    """The images in the order in which they are named, each once, and the problems with values that are no image names.

    `containers` is the number of containers and image volumes. `nothing` says why there is no image.
    """

    images: list[str]
    problems: list[str]
    containers: int
    nothing: str


class Findings:
    """Collects images and problems."""

    def __init__(self) -> None:
        self._images: dict[str, None] = {}
        self._problems: dict[str, None] = {}
        self._more = 0
        self.containers = 0

    def take(self, image: str) -> None:
        """Takes the name of an image."""
        self._images[image] = None

    def count_container(self) -> None:
        """Counts a container or an image volume."""
        self.containers += 1

    def tell(self, problem: str) -> None:
        """Takes a problem: each one once, and only the first MAX_PROBLEMS. The other problems are only counted."""
        if problem in self._problems:
            return
        if len(self._problems) < MAX_PROBLEMS:
            self._problems[problem] = None
        else:
            self._more += 1

    def found(self, nothing: str) -> Found:
        """The result; `nothing` is the reason if there is no image."""
        more = [f"and {self._more} more"] if self._more else []
        return Found(list(self._images), [*self._problems, *more], self.containers, nothing)

"""Fixtures of the tests of settings."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of settings, and returns its path."""
    names = (tmp_path / f"cacheyd{n}.toml" for n in itertools.count())

    def write(content: str) -> str:
        path = next(names)
        path.write_text(content, "utf-8")
        return str(path)

    return write

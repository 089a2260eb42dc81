"""Fixtures of the tests of upstreams."""

import os
from pathlib import Path

import pytest

from tests.support.logins import Scene
from tests.support.stores import Clock


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def scene(tmp_path: Path, monotonic: Clock, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Scene(tmp_path, monotonic)

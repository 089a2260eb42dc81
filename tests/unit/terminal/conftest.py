"""Fixtures of the tests of layouts."""

from pathlib import Path

import pytest

from tests.support.layouts import Import


@pytest.fixture
def importing(tmp_path: Path) -> Import:
    return Import(tmp_path)

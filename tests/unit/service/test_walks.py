"""The walks in docs/architecture.md are those that requests take."""

import re
from pathlib import Path

import pytest

from tests.support.walks import WALKS, walked

PAGE = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text("utf-8")
STEP = re.compile(r"^\d+\. `([\w/]+\.py:[\w.]+)`", re.MULTILINE)


def on_the_page(name: str) -> list[str]:
    """The steps of a walk as the page has them."""
    (section,) = re.findall(rf"<!-- walk: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    return STEP.findall(section)


@pytest.mark.parametrize("name", WALKS)
async def test_a_request_takes_the_steps_of_the_page_in_this_order(name: str, tmp_path: Path) -> None:
    steps = on_the_page(name)
    assert len(steps) > 10
    taken = await walked(name, tmp_path)
    assert [step for step in steps if step not in taken] == []
    assert sorted(steps, key=taken.index) == steps


def test_every_walk_of_the_page_is_followed() -> None:
    assert re.findall(r"<!-- walk: (\w+) -->", PAGE) == list(WALKS)

"""The house keeps its measures: `python tools/figures.py` prints them."""

import pytest

from tools import figures


def test_no_module_function_or_class_is_over_its_limit() -> None:
    assert figures.over() == []


def test_every_public_name_is_documented() -> None:
    assert figures.undocumented() == []


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("module, median", figures.MODULE_MEDIAN),
        ("function, median", figures.FUNCTION_MEDIAN),
        ("function, 90th percentile", figures.FUNCTION_P90),
        ("arrows between rooms", figures.ARROWS),
    ],
)
def test_the_measures_hold(name: str, most: int) -> None:
    assert figures.summary()[name] <= most

"""The house keeps its measures: `python -m tools.figures` prints them."""

from tools import figures


def test_the_house_keeps_its_measures() -> None:
    assert figures.over() == []
    assert figures.undocumented() == []
    measured = figures.summary()
    assert measured["module, median"] <= figures.MODULE_MEDIAN
    assert measured["function, median"] <= figures.FUNCTION_MEDIAN
    assert measured["function, 90th percentile"] <= figures.FUNCTION_P90
    assert measured["arrows between rooms"] <= figures.ARROWS

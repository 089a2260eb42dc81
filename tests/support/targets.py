"""Common parts of the tests of request targets."""

from collections.abc import Callable

import pytest

from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target


def parsed(target: str, default_registry: str = "") -> Reference:
    """The reference that a target asks for."""
    reference = parse_target(target, default_registry)
    assert isinstance(reference, Reference)
    return reference


def refused(target: str, default_registry: str = "") -> tuple[int, Code]:
    """The status and the code of the error for a refused target."""
    with pytest.raises(RequestError) as caught:
        parse_target(target, default_registry)
    return caught.value.failure.status, caught.value.failure.code


def outcome[**P, T](function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """The value that a function returns, or the RequestError that it raises."""
    try:
        return function(*args, **kwargs)
    except RequestError as error:
        return error

"""Orders to warm images that make no sense."""

from typing import Any

import pytest

from cacheyd.admin.image_orders import Warm


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"images": []},
        {"images": "alpine"},
        {"images": ["UPPER/case"]},
        {"images": ["alpine"], "platforms": ["linux"]},
        {"images": ["alpine"], "layers": 0},
        {"images": ["alpine"], "referrers": "yes"},
        {"images": ["alpine"], "logins": {"alpine": 1}},
    ],
)
def test_an_order_that_makes_no_sense_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Warm.parse(args)

"""The file that `export` writes."""

from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin.orders import Order
from cacheyd.terminal.images import image_names
from cacheyd.terminal.transfer import export

HUB, GHCR = image_names(["alpine", "ghcr.io/acme/app:1.0"])


@pytest.mark.parametrize("target", ["none/x.tar", "."])
def test_an_output_that_cannot_be_made_is_named_as_it_was_given(tmp_path: Path, target: str) -> None:
    def call(order: Order) -> list[dict[str, Any]]:
        return [{"images": []}]

    with pytest.raises(OSError, match=r"No such file|Is a directory") as caught:
        export(call, tmp_path, [HUB], None, str(tmp_path / target))
    assert str(caught.value.filename) == str((tmp_path / target).parent if target != "." else tmp_path)
    assert list(tmp_path.iterdir()) == []

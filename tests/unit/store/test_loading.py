"""Rows of earlier versions are read as what they are."""

import json
import sqlite3
from contextlib import closing

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    StoppableStore,
    add,
    rows,
)

# Rows of earlier versions


@pytest.mark.parametrize(
    ("data", "stated", "expected"),
    [
        (MANIFEST, "application/evil+json", OCI_MANIFEST),
        (MANIFEST, OCI_INDEX, OCI_MANIFEST),
        (b"no manifest", "application/evil+json", ""),
        (LARGE, "", ""),
    ],
)
@pytest.mark.parametrize("read", [True, False], ids=["in the background", "asked for at once"])
async def test_a_type_that_some_upstream_said_is_looked_up_in_the_bytes(
    store: Store, data: bytes, stated: str, expected: str, read: bool
) -> None:
    await add(store, data, stated)
    await store.stop()
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        ((text,),) = connection.execute("SELECT value FROM Cache WHERE key = ?", (f"o:{digest_of(data)}",))
        row = json.loads(text)
        row.pop("own", None)
        connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (json.dumps(row), f"o:{digest_of(data)}"))

    again = StoppableStore(store.root, store.settings, clock=store.clock)
    if read:
        await again.start(background=False)
    else:
        await again.upkeep.threads.run(again.upkeep.index.open)
        assert stated == "" or again.objects.find(digest_of(data)) is None
        await again.objects.recover(digest_of(data))
    found = again.objects.find(digest_of(data))
    assert found is not None
    assert found.media_type == expected
    assert not read or found.within == (WITHIN,)
    await again.stop()
    assert rows(again)[f"o:{digest_of(data)}"]["type"] == expected

"""Tags that are gone, each for the logins that were told so."""

from cacheyd.cache.gone import Gone
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.protocol.reference import Kind, Reference

ALICE, BOB = "alice", "bob"
SECRET = "secret/img"


def authorized(*logins: str) -> HeaderList:
    return tuple(("Authorization", login) for login in logins)


def tag(name: str) -> Reference:
    return Reference("reg.test", SECRET, Kind.MANIFEST, name, None, "reg.test")


def test_gone_is_for_one_login_and_one_tag() -> None:
    gone = Gone()
    gone.add(tag("1.0"), authorized(BOB))
    gone.add(tag("1.0"), authorized(BOB))
    assert len(gone) == 1
    assert gone.has(tag("1.0"), authorized(BOB))
    assert not gone.has(tag("1.0"), authorized(ALICE))
    assert not gone.has(tag("1.0"), ())
    assert not gone.has(tag("1.1"), authorized(BOB))
    assert not gone.has(tag("1.0"), (("Accept", OCI_MANIFEST), *authorized(BOB)))
    gone.discard(tag("1.0"), authorized(ALICE))
    gone.discard(tag("1.1"), authorized(BOB))
    assert gone.has(tag("1.0"), authorized(BOB))
    gone.discard(tag("1.0"), authorized(BOB))
    assert not gone.has(tag("1.0"), authorized(BOB))
    assert not gone


def test_gone_is_bounded_whatever_strangers_ask_for() -> None:
    gone = Gone(limit=100)
    for number in range(1000):
        gone.add(tag("one"), authorized(str(number)))
        gone.add(tag(str(number)), ())
    assert len(gone) == 100
    assert gone.has(tag("999"), ())
    assert gone._count == sum(map(len, gone._logins.values()))

"""What is still to come: its room, and what must not go meanwhile."""

from cacheyd.store.reservations import Reservations

ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def test_an_object_is_expected_until_its_last_fetch_has_ended() -> None:
    reservations = Reservations()
    reservations.expect(ONE)
    reservations.expect(ONE)
    reservations.expect(OTHER)

    reservations.expect_no_more(ONE)
    assert set(reservations.expected()) == {ONE, OTHER}
    reservations.expect_no_more(ONE)
    assert set(reservations.expected()) == {OTHER}


def test_what_is_expected_is_as_it_was_when_somebody_asked() -> None:
    reservations = Reservations()
    reservations.expect(ONE)
    before = reservations.expected()
    reservations.expect_no_more(ONE)
    assert set(before) == {ONE}
    assert not reservations.expected()


def test_room_is_taken_while_something_is_written() -> None:
    reservations = Reservations()
    with reservations.writing(10), reservations.writing(5):
        assert reservations.being_written == 15
    assert reservations.being_written == 0


def test_what_was_promised_is_given_back_bit_by_bit() -> None:
    reservations = Reservations()
    reservations.promise(100)
    reservations.promise(-30)
    assert reservations.promised == 70

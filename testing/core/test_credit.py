"""Credit: both ends count the same bytes, and neither lets the window be passed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execnet._features.credit import Credit

pytestmark = pytest.mark.core

WINDOW = 400


def sent(size: int) -> Credit:
    credit = Credit(WINDOW)
    credit.sent = size
    return credit


@pytest.mark.parametrize(
    ("under_way", "size", "fits"),
    [(0, WINDOW * 9, True), (1, WINDOW - 1, True), (1, WINDOW, False), (WINDOW, 1, False)],
)
def test_what_fits_may_be_sent_and_anything_if_nothing_is_under_way(
    under_way: int, size: int, fits: bool
) -> None:
    assert sent(under_way).has_room(size) == fits


def test_a_piece_needs_room_for_a_byte() -> None:
    assert sent(WINDOW - 1).has_room()
    assert not sent(WINDOW).has_room()


def test_what_was_taken_is_reported_at_each_quarter_of_the_window() -> None:
    credit = Credit(WINDOW)
    assert [credit.take(60) for _ in range(5)] == [0, 120, 0, 120, 0]
    assert credit.take(WINDOW) == 60 + WINDOW


def test_what_is_taken_back_is_not_reported() -> None:
    credit = Credit(WINDOW)
    assert [credit.take(size) for size in (99, -99, 99, 1)] == [0, 0, 0, 100]
    assert credit.taken == 100


def test_bytes_that_an_interrupt_kept_from_being_counted_take_no_room_and_give_none() -> None:
    credit = sent(100)
    credit.taken = 150  # the other end has counted them
    assert credit.under_way == 0
    assert credit.has_room(WINDOW * 2)
    assert credit.sent == 150
    credit.sent += WINDOW
    assert not credit.has_room()


def test_the_receiving_end_sees_when_too_much_is_under_way() -> None:
    credit = sent(WINDOW + 50)
    assert [credit.is_exceeded(allowance) for allowance in (49, 50)] == [True, False]
    credit.take(1)
    assert not credit.is_exceeded(49)


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.sampled_from(["send", "arrive", "take", "report"]), st.integers(1, 300))),
)
def test_two_ends_agree_whatever_the_order(piece: int, steps: list[tuple[str, int]]) -> None:
    sender, receiver = Credit(WINDOW), Credit(WINDOW)
    pieces: list[int] = []
    reports: list[int] = []
    for step, size in steps:
        if step == "send" and sender.has_room():
            pieces.append(min(size, piece))
            sender.sent += pieces[-1]
        elif step == "arrive" and pieces:
            receiver.sent += pieces.pop(0)
        elif step == "take":
            reports.append(receiver.take(min(size, receiver.under_way)))
        elif reports:
            sender.taken += reports.pop(0)
        assert sender.under_way < WINDOW + piece
        assert not receiver.is_exceeded(piece)
        untold = receiver.taken - sum(reports) - sender.taken
        assert 0 <= untold < WINDOW // 4
        assert sender.sent == receiver.sent + sum(pieces)

"""When the next try is (F10)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipavolume.plan.backoff import due_s
from ipavolume.volume.attempts import Attempts

FAILED = Attempts(
    image="two",
    count=3,
    at="2026-11-28T12:00:00Z",
    run="0002-two",
    message="no",
    around=(("rights", "0"),),
    free=(900, 40_000),
)


@pytest.mark.parametrize(
    ("count", "minutes"), [(3, 1), (4, 5), (5, 15), (6, 30), (7, 60), (8, 60), (1000, 60)]
)
def test_each_failure_has_the_next_one_wait_longer(count: int, minutes: int) -> None:
    failed = replace(FAILED, count=count)
    due = failed.time_s + minutes * 60
    assert due_s(failed, now_s=failed.time_s) == due
    assert due_s(failed, now_s=due - 1) == due
    assert due_s(failed, now_s=due) is None


@pytest.mark.parametrize("count", [1, 2])
def test_two_failures_are_free(count: int) -> None:
    assert due_s(replace(FAILED, count=count), now_s=FAILED.time_s) is None


def test_nothing_recorded_is_nothing_to_wait_for() -> None:
    assert due_s(None, now_s=0) is None


def test_a_failure_of_the_future_is_not_waited_for() -> None:
    """The clock was set back, or somebody wrote it there; the next one has the right time."""
    assert due_s(FAILED, now_s=FAILED.time_s - 1) is None


def test_what_has_changed_is_counted_anew() -> None:
    again = replace(FAILED, count=1, run="0003-two")
    assert FAILED.followed_by(again) == replace(again, count=4)
    assert FAILED.followed_by(replace(again, image="three")).count == 1
    for around in ((("space", "10"),), ()):
        assert FAILED.followed_by(replace(again, around=around)).count == 1


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ((1023, 40_000), (1024, 40_000), True),
        ((1024, 65_536), (1023, 65_535), True),
        ((900, 40_000), (900, 80_000), False),
        ((900, 40_000), (900, 79_999), True),
        ((900, 40_000), (450, 40_000), False),
        ((0, 40_000), (1, 40_000), True),
        ((0, 40_000), (2, 40_000), False),
        ((900, 40_000), (900, 40_000, 7, 8), False),
    ],
)
def test_room_that_others_take_and_give_is_the_same_until_it_is_twice_as_much_or_half(
    then: tuple[int, ...], now: tuple[int, ...], *, same: bool
) -> None:
    """At a power of two, one MiB more or less had started the counting anew."""
    failed = replace(FAILED, free=then)
    assert failed.is_like("two", FAILED.around, now) is same
    assert failed.followed_by(replace(failed, count=1, free=now)).count == (4 if same else 1)

"""Priority and ageing."""

import pytest

from serve_paged.core.priority import effective_priority, place_in_line


def place(priority: int, arrival_time: float, serial: int = 0, choice: int = 0) -> tuple[float, int, int]:
    return place_in_line(priority, arrival_time, 10.0, serial=serial, choice=choice)


def test_the_place_in_line_is_in_the_order_of_effective_priority_at_any_time():
    sequences = [(0, 0.0), (0, 3.0), (-1, 8.0), (-1, 12.0), (2, 1.0), (5, 0.5)]
    by_place = sorted(sequences, key=lambda item: place(*item))
    for now in (12.0, 50.0, 1e6):
        assert by_place == sorted(sequences, key=lambda item: effective_priority(*item, now, 10.0))


def test_waiting_for_the_ageing_time_is_worth_one_priority():
    assert effective_priority(3, arrival_time=0.0, now=20.0, ageing_s=10.0) == pytest.approx(1.0)


def test_equal_priorities_are_served_in_order_of_arrival():
    assert place(0, 1.0) < place(0, 2.0)


def test_a_lower_number_comes_first():
    assert place(-1, 5.0) < place(0, 0.0)


def test_one_who_waited_long_enough_comes_before_higher_priorities():
    assert place(0, 0.0) < place(-1, 10.1)


def test_equal_arrivals_are_told_apart_by_serial_then_choice():
    assert place(0, 1.0, serial=1, choice=5) < place(0, 1.0, serial=2, choice=0)
    assert place(0, 1.0, serial=1, choice=0) < place(0, 1.0, serial=1, choice=1)

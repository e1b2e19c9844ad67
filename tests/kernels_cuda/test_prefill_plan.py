"""Which row tiles a step's prefill is cut into, and where its tiles lie in shared memory."""

import numpy as np
import pytest

from numba_kernels.cuda.prefill_plan import prefill_plan
from numba_kernels.cuda.prefill_variant import HEAD_DIMS, PrefillVariant

VARIANT = PrefillVariant(96)  # tiles of 128 rows and of 64 tokens


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_row_tiles_cover_every_row_once_and_those_with_the_most_keys_come_first() -> None:
    plan = prefill_plan(array(0, 1, 1, 101), array(70, 30, 300), 3, VARIANT)
    assert plan.work.tolist() == [[2, 128, 0, 5], [2, 256, 0, 5], [2, 0, 0, 4], [0, 0, 0, 2]]


def test_tiles_of_keys_before_the_window_are_left_out() -> None:
    plan = prefill_plan(array(0, 100), array(400), 2, VARIANT, window=100)
    assert plan.work.tolist() == [[0, 0, 3, 6], [0, 128, 4, 7]]  # positions 300 .. 363 see 201 .., then 364 .. 399


def test_only_selected_sequences_have_work() -> None:
    plan = prefill_plan(array(0, 5, 6), array(5, 9), 2, VARIANT, selected=np.array([True, False]))
    assert plan.work.tolist() == [[0, 0, 0, 1]]
    assert plan.padded(3)[1:].tolist() == [[0] * 4] * 2


def test_a_plan_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        prefill_plan(array(0, 5), array(4), 2, VARIANT)
    with pytest.raises(ValueError, match="cannot cut"):
        prefill_plan(array(0, 5), array(5), 2, VARIANT, window=0)
    with pytest.raises(ValueError, match="do not fit"):
        prefill_plan(array(0, 5), array(5), 2, VARIANT).padded(0)
    with pytest.raises(ValueError, match="row tiles"):
        prefill_plan(array(0, 2**17), array(2**17), 128, VARIANT)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_what_ships_fits_into_shared_memory(head_dim: int) -> None:
    variant = PrefillVariant(head_dim)
    assert variant.shared_bytes <= 163 * 1024  # the most of a block on sm_80; 227 KB on sm_90 and sm_100

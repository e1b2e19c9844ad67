"""The cheaper way to preempt."""

import pytest

from serve_paged.core.preemption import PreemptionCosts, PreemptionKind


def test_before_any_measurement_swapping_is_taken_for_cheaper():
    assert PreemptionCosts().cheaper(num_tokens=160, num_blocks=20) is PreemptionKind.SWAP


def test_the_first_measurement_replaces_the_prior():
    costs = PreemptionCosts()
    costs.record_swap(10, 5.0)
    costs.record_compute(100, 2.0)
    assert costs.block_s == 0.5
    assert costs.token_s == 0.02


def test_later_measurements_are_averaged_in():
    costs = PreemptionCosts(smoothing=0.25)
    costs.record_compute(1, 1.0)
    costs.record_compute(2, 4.0)
    assert costs.token_s == pytest.approx(1.25)


def test_measured_slow_copies_make_recomputing_cheaper():
    costs = PreemptionCosts()
    costs.record_swap(1, 1.0)
    costs.record_compute(1, 0.01)
    assert costs.cheaper(num_tokens=160, num_blocks=20) is PreemptionKind.RECOMPUTE
    assert costs.cheaper(num_tokens=160, num_blocks=1) is PreemptionKind.SWAP


def test_empty_measurements_change_nothing():
    costs = PreemptionCosts()
    before = (costs.block_s, costs.token_s)
    costs.record_swap(0, 1.0)
    costs.record_compute(0, 1.0)
    assert (costs.block_s, costs.token_s) == before

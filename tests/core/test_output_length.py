"""Learning how long outputs get, and the peak of blocks they will need."""

from random import Random

import pytest

from serve_paged.core.output_length import MIN_SAMPLES, OutputLengths, peak_growth


def lengths_of(samples: list[int], max_samples: int = 512) -> OutputLengths:
    lengths = OutputLengths(max_samples)
    for sample in samples:
        lengths.record(sample)
    return lengths


def test_few_samples_are_not_knowledge():
    assert not lengths_of([5] * (MIN_SAMPLES - 1)).known
    assert lengths_of([5] * MIN_SAMPLES).known


def test_the_expectation_is_the_mean_at_the_start():
    assert lengths_of([10, 20, 30]).expected_remaining(0) == 20


def test_the_expectation_looks_only_at_outputs_that_got_longer():
    lengths = lengths_of([10, 10, 10, 100, 200])
    assert lengths.expected_remaining(50) == 100
    assert lengths.expected_remaining(10) == 140


def test_an_output_longer_than_all_seen_is_expected_to_double():
    assert lengths_of([10, 20]).expected_remaining(70) == 70


def test_old_lengths_are_forgotten():
    lengths = lengths_of([1000] * 20 + [10] * 20, max_samples=20)
    assert lengths.expected_remaining(0) == 10


def test_a_window_of_lengths_agrees_with_a_plain_mean():
    random = Random(3)
    samples = [random.randrange(1, 50) for _ in range(200)]
    lengths = lengths_of(samples, max_samples=64)
    for produced in range(45):
        longer = [sample for sample in samples[-64:] if sample > produced]
        assert lengths.expected_remaining(produced) == sum(longer) // len(longer) - produced


def test_one_sequence_peaks_at_its_end():
    assert peak_growth([(33, 10)], 16) == 3


def test_blocks_given_back_early_are_used_by_the_others():
    assert peak_growth([(16, 10), (160, 1)], 16) == 2  # 10 more for the second, which the first has given back


def test_sequences_that_end_together_need_the_sum():
    assert peak_growth([(32, 5), (32, 5), (32, 5)], 16) == 6


def test_nobody_needs_nothing():
    assert peak_growth([], 16) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_peak_is_that_of_a_simulation(seed: int):
    random = Random(seed)
    sequences = [(random.randrange(1, 60) * 4, random.randrange(0, 20)) for _ in range(12)]
    peak = 0
    for now in range(0, 240, 4):  # before those that end at `now` have gone
        growth = sum(now // 4 if remaining >= now else -held for remaining, held in sequences)
        peak = max(peak, growth)
    assert peak_growth(sequences, 4) == peak

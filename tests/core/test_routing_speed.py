"""A decision stands before every request: the targets are 0.3 ms at 100 replicas and 1 ms at 1,000, on one core.

`python -m loadtests.bench_routing` measures; the limits here are several times the targets, for busy machines, and
catch what costs an order of magnitude.
"""

import pytest

from loadtests.bench_routing import measure


@pytest.mark.slow
@pytest.mark.parametrize(("num_replicas", "limit_us"), [(100, 1000), (1000, 3000)])
def test_a_decision_over_a_million_blocks_is_cheap(num_replicas: int, limit_us: float):
    timing = measure(num_replicas, 1_000_000, num_requests=500)
    assert timing.num_blocks > 990_000
    assert timing.median_us < limit_us


def test_a_decision_over_a_hundred_replicas_is_cheap():
    assert measure(100, 20_000, num_requests=200).median_us < 2000

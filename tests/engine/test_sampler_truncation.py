import numpy as np
import pytest
import torch

from serve_paged.engine import truncation as module
from serve_paged.engine.truncation import Truncation

ALMOST_ONE = 1.0 - 2.0**-53


def truncation(num_rows: int, vocab_size: int, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Truncation:
    return Truncation(
        temperature=torch.ones(num_rows),
        top_k=torch.full((num_rows,), top_k or vocab_size),
        top_p=torch.full((num_rows,), top_p, dtype=torch.float64),
        log_min_p=torch.full((num_rows,), float(np.log(min_p)) if min_p else -torch.inf),
    )


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return module.draw(logits.clone(), logits.amax(dim=-1), torch.ones(len(logits)), uniform)


def draw_truncated(logits: torch.Tensor, params: Truncation, uniform: torch.Tensor) -> torch.Tensor:
    return module.draw_truncated(logits, logits.amax(dim=-1), params, uniform)


def reachable(logits: torch.Tensor, params: Truncation, num_draws: int) -> set[int]:
    """Tokens that evenly spread random numbers fall on."""
    rows = logits.expand(num_draws, -1)
    return set(draw_truncated(rows, params, torch.linspace(0.0, ALMOST_ONE, num_draws, dtype=torch.float64)).tolist())


@pytest.mark.parametrize("vocab_size", [20, 90, 2000])
def test_top_k_keeps_all_that_equal_the_last_kept(vocab_size: int) -> None:
    logits = torch.full((vocab_size,), -3.0)
    logits[[4, 7, 11, 19]] = torch.tensor([-1.0, 0.0, -1.0, -1.0])
    assert reachable(logits, truncation(500, vocab_size, top_k=2), 500) == {4, 7, 11, 19}


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    weights = torch.full((100,), 0.9)
    weights[[50, 3, 99, 20]] = torch.tensor([8.0, 4.0, 2.0, 1.0])
    logits = (weights / 8.0).log()
    assert reachable(logits, truncation(500, 100, top_k=4, top_p=0.5), 500) == {50}  # 8 of 15
    assert reachable(logits, truncation(500, 100, top_k=4, top_p=0.6), 500) == {50, 3}
    assert reachable(logits, truncation(500, 100, top_p=0.13), 500) == {50, 3, 99}  # 14 of 101.4


@pytest.mark.parametrize("num_equal", [10, 64, 65, 1024, 1025, 3000])
def test_a_nucleus_of_equals_is_kept_whole_at_every_size(num_equal: int) -> None:
    logits = torch.full((4000,), -40.0)
    logits[500 : 500 + num_equal] = 0.0
    index = torch.arange(0, num_equal, max(num_equal // 50, 1))
    uniform = ((index + 0.5) / num_equal).double()
    tokens = draw_truncated(logits.expand(len(index), -1), truncation(len(index), 4000, top_p=0.5), uniform)
    assert torch.equal(tokens, 500 + index)


@pytest.mark.parametrize("top_k", [63, 64, 65, 1023, 1024, 1025, 3999])
def test_top_k_is_exact_around_the_candidate_counts(top_k: int) -> None:
    values = -torch.arange(4000) / 4000.0
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    logits = values[order]
    uniform = torch.tensor([0.0, 0.25, 0.5, ALMOST_ONE], dtype=torch.float64)
    tokens = draw_truncated(logits.expand(4, -1), truncation(4, 4000, top_k=top_k), uniform)
    weights = np.where(values.numpy() > values[top_k - 1].item() - 1e-6, values.double().exp().numpy(), 0.0)
    edges = np.cumsum(weights[order.numpy()])
    expected = [min(int(np.searchsorted(edges, u * edges[-1], side="right")), 3999) for u in uniform.tolist()[:3]]
    assert tokens.tolist()[:3] == expected
    assert tokens[3] == int(np.nonzero(weights[order.numpy()])[0][-1])


def test_rows_that_need_few_many_or_all_candidates_mix() -> None:
    logits = torch.full((3, 5000), -60.0)
    for row, num_kept in enumerate((3, 300, 3000)):
        logits[row, 100 : 100 + num_kept] = 0.0
    uniform = torch.full((3,), 0.5, dtype=torch.float64)
    tokens = draw_truncated(logits, truncation(3, 5000, top_p=0.9), uniform)
    assert tokens.tolist() == [101, 250, 1600]


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 5000])
def test_a_token_without_probability_is_never_drawn(vocab_size: int) -> None:
    logits = torch.full((2, vocab_size), -torch.inf)
    logits[:, vocab_size // 2] = 0.0
    uniform = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    expected = [vocab_size // 2] * 2
    assert draw(logits, uniform).tolist() == expected
    assert draw_truncated(logits, truncation(2, vocab_size, top_p=0.3), uniform).tolist() == expected


def test_the_draw_over_a_large_vocabulary_inverts_the_cumulative_distribution() -> None:
    logits = torch.randn(1, 49_152, generator=torch.Generator().manual_seed(3)) * 2
    logits -= logits.max()
    uniform = torch.linspace(0.0, 0.999, 400, dtype=torch.float64)
    edges = logits[0].exp().double().cumsum(0)
    expected = torch.searchsorted(edges, uniform * edges[-1], right=True)
    assert torch.equal(draw(logits.expand(400, -1), uniform), expected)

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from serve_paged.core.outputs import TokenLogprobs
from serve_paged.engine import logprobs
from serve_paged.engine.logprobs import LogprobsCopy, NonFiniteLogits, prompt_logprobs, token_logprobs


def test_log_probabilities_and_alternatives_equal_log_softmax() -> None:
    logits = torch.randn(7, 400, generator=torch.Generator().manual_seed(0)) * 4
    token_ids = [0, 399, 17, 5, 250, 1, 88]
    exact = torch.log_softmax(logits.double(), dim=-1)
    for row, found in enumerate(prompt_logprobs(logits, token_ids, 5)):
        assert found.token_id == token_ids[row]
        assert found.logprob == pytest.approx(exact[row, token_ids[row]].item(), abs=1e-5)
        assert found.rank == (exact[row] > exact[row, token_ids[row]]).sum().item() + 1
        best = exact[row].topk(5)
        assert [token_id for token_id, _ in found.top] == best.indices.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]]).repeat(3, 1)
    found = token_logprobs(logits, [0, 1, 2], [0, 1, 20])
    assert [[token_id for token_id, _ in row.top] for row in found] == [[], [1], [1, 2, 0]]


def test_equal_alternatives_come_in_order_of_id_and_share_a_rank() -> None:
    logits = torch.zeros(1, 3000)
    logits[0, 10] = 1.0
    [found] = token_logprobs(logits, [2999], [3])
    assert [token_id for token_id, _ in found.top] == [10, 0, 1]
    assert found.rank == 2


def test_logits_are_left_as_they_are() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    prompt_logprobs(logits, [1, 2, 3], 4)
    assert torch.equal(logits, before)


def test_no_rows_give_no_log_probabilities() -> None:
    assert prompt_logprobs(torch.zeros(0, 10), [], 3) == []


def test_nan_is_a_fault() -> None:
    logits = torch.zeros(2, 10)
    logits[1, 3] = torch.nan
    with pytest.raises(NonFiniteLogits):
        prompt_logprobs(logits, [1, 1], 0)


class _Largest(TorchDispatchMode):
    """The most numbers in any result of an operation."""

    num_numbers = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not func.is_view:
            self.num_numbers = max(self.num_numbers, found.numel())
        return found


def on_gpu(logits: torch.Tensor) -> list[TokenLogprobs]:
    """Of the last token in each row, with alternatives, some of them equal."""
    rows, vocab_size = logits.shape
    ids = torch.full((rows,), vocab_size - 1)
    return LogprobsCopy(logits, ids, [20] * rows, CudaKernels(SimulatedLauncher())).read()


def test_a_gpu_computes_many_rows_in_chunks_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.round(torch.randn(40, 2000, generator=torch.Generator().manual_seed(3)) * 8) / 4
    whole = on_gpu(logits)
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 6)
    with _Largest() as largest:
        chunked = on_gpu(logits)
    assert chunked == whole == token_logprobs(logits, [1999] * 40, [20] * 40)
    assert largest.num_numbers == 6 * 2000, "one prompt's log probabilities take no more memory than a chunk's"


def test_a_gpu_s_logits_are_free_before_anybody_reads_the_result() -> None:
    logits = torch.randn(3, 50)
    copy = LogprobsCopy(logits, torch.tensor([1, 2, 3]), [1, 1, 1], CudaKernels(SimulatedLauncher()))
    alive = weakref.ref(logits)
    del logits
    assert alive() is None
    assert len(copy.read()) == 3

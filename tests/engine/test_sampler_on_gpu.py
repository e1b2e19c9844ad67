"""What the sampler launches on a GPU: the tokens are the CPU's, and nothing on the way asks for a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from numba_kernels import CpuKernels, Kernels
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.device import empty_logits
from serve_paged.engine.logprobs import NonFiniteLogits
from serve_paged.engine.model_runner import StepLogits
from serve_paged.engine.sampler import SampledToken, Sampler
from tests.engine.test_sampler import EOS, make_sequence

# Operations whose answer the host needs; indexing with a mask is among them, as `nonzero`.
LOOKS = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


def gpu() -> CudaKernels:
    return CudaKernels(SimulatedLauncher())


def laid_out(logits: torch.Tensor) -> torch.Tensor:
    """A copy, as the engine's runners keep logits."""
    return empty_logits(*logits.shape, logits.device).copy_(logits)


class _NoLooking(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in LOOKS, f"the host would wait for {func._schema.name}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails whatever would make the host wait for a GPU."""

    def tolist(tensor: torch.Tensor) -> None:
        raise AssertionError("the host would wait for tolist")

    with monkeypatch.context() as patch, _NoLooking():
        patch.setattr(torch.Tensor, "tolist", tolist)
        yield


def sample(logits: torch.Tensor, seqs: list[Sequence], kernels: Kernels) -> list[SampledToken]:
    return Sampler(logits.shape[1], EOS, kernels).sample(laid_out(logits), seqs)


EVERY_KIND = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=0.8, top_p=0.9, logprobs=4),
    SamplingParams(temperature=0.0, logprobs=0, min_tokens=3, stop_token_ids=(7,)),
    SamplingParams(repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={3: 2.0}),
]


@pytest.mark.parametrize("vocab_size", [300, 97, 50, 1503])  # in whole 16 bytes, and with every rest
def test_its_tokens_are_the_cpu_s_for_every_kind_of_row(vocab_size: int) -> None:
    params = [
        *EVERY_KIND,
        SamplingParams(top_p=5e-324),
        SamplingParams(temperature=5e-324),
        SamplingParams(top_k=10**20),
    ]
    seqs = [make_sequence(kind, output=[4, 4, 9][:row], seed=row) for row, kind in enumerate(params)]
    logits = torch.randn(len(seqs), vocab_size, generator=torch.Generator().manual_seed(4)) * 3
    assert sample(logits, seqs, gpu()) == sample(logits, seqs, CpuKernels())


def test_nothing_is_looked_at_before_the_samples_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seqs = [make_sequence(params, output=[4, 4, 9][:row], seed=row) for row, params in enumerate(EVERY_KIND)]
    logits = torch.randn(len(seqs), 300, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(300, EOS, gpu())
    for num_seqs in (len(seqs), len(seqs), 2):  # a new batch, the same again, and a smaller one
        with no_looking(monkeypatch):
            samples = sampler.launch(logits[:num_seqs].clone(), seqs[:num_seqs])
        found = samples.read()
        assert [token.token_id for token in found] == samples.token_ids.tolist()
        for seq, token in zip(seqs, found, strict=False):
            seq.output_token_ids.append(token.token_id)


def test_the_cpu_s_way_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(300, EOS, CpuKernels())
    with pytest.raises(AssertionError, match="the host would wait"), no_looking(monkeypatch):
        sampler.launch(torch.zeros(1, 300), [make_sequence(EVERY_KIND[2])])


def test_log_probabilities_are_the_cpu_s_with_equals_in_order_of_id() -> None:
    logits = torch.round(torch.randn(4, 500, generator=torch.Generator().manual_seed(1)) * 2) / 2  # many equals
    logits[0, 7] = -0.0
    seqs = [make_sequence(SamplingParams(temperature=0.0, logprobs=count)) for count in (20, 0, 3, 1)]
    for ours, theirs in zip(sample(logits, seqs, gpu()), sample(logits, seqs, CpuKernels()), strict=True):
        assert ours == theirs


@pytest.mark.parametrize("params", EVERY_KIND[:3], ids=["greedy", "drawn", "cut"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_fault_is_found_when_the_samples_are_read(params: SamplingParams, bad: float) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    logits[1, slice(None) if bad < 0 else 42] = bad
    seqs = [make_sequence(params, request_id=name) for name in ("good", "bad", "fine")]
    samples = Sampler(300, EOS, gpu()).launch(logits, seqs)
    assert 0 <= int(samples.token_ids.min()) <= int(samples.token_ids.max()) < 300, "the next step would read outside"
    with pytest.raises(NonFiniteLogits, match=r"request bad$"):
        samples.read()


def test_rows_that_are_picked_out_of_a_step_s_logits_can_be_sampled_too() -> None:
    logits = torch.randn(4, 97, generator=torch.Generator().manual_seed(5))
    picked = StepLogits(laid_out(logits), {0: 1, 1: 3}, {}).to_sample([0, 1])
    seqs = [make_sequence(SamplingParams(temperature=0.0)) for _ in range(2)]
    tokens = Sampler(97, EOS, gpu()).sample(picked, seqs)
    assert [token.token_id for token in tokens] == logits[[1, 3]].argmax(dim=-1).tolist()

"""The decoder against transformers in fp32: tiny random models of every supported architecture and feature."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from numba_kernels import CpuKernels, KVLayout, KVScales, paged_attention, rope_and_write_kv
from serve_paged.model.loader import LoadedModel, load_model
from tests.model.checkpoints import CHECKPOINTS, VOCAB_SIZE, save_model
from tests.model.paged import PagedCache, run_in_chunks

NUM_TOKENS = 45


@dataclass(frozen=True, slots=True)
class Case:
    """A model of ours, tokens, and the logits that transformers computes for them."""

    model: LoadedModel
    tokens: list[int]
    expected: torch.Tensor  # [NUM_TOKENS, VOCAB_SIZE]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_model(folder, request.param)
    tokens = torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0]
    return Case(load_model(str(folder), torch.float32), tokens.tolist(), expected)


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("chunk_size", [NUM_TOKENS, 7, 1], ids=["whole", "chunks", "token-by-token"])
def test_logits_equal_those_of_transformers(case: Case, chunk_size: int) -> None:
    assert_same(run_in_chunks(case.model, case.tokens, chunk_size), case.expected)


def test_a_sequence_is_unmoved_by_its_neighbours_in_the_batch(case: Case) -> None:
    other = [(token * 7 + 3) % VOCAB_SIZE for token in case.tokens]
    cache = PagedCache(case.model, num_seqs=2, max_len=NUM_TOKENS)
    alone = cache.step({1: other[:30]})[0]
    decoding, prefilling = cache.step({1: other[30:31], 0: case.tokens[:20]})
    rest = cache.step({0: case.tokens[20:], 1: other[31:33]})[0]
    assert_same(torch.cat([prefilling, rest]), case.expected)
    assert_same(torch.cat([alone, decoding]), run_in_chunks(case.model, other[:31], 31))


def test_a_shorter_table_of_positions_gives_the_same_logits(case: Case) -> None:
    model = load_model(str(case.model.folder), torch.float32, max_model_len=NUM_TOKENS)
    assert model.decoder.max_positions == NUM_TOKENS
    assert_same(run_in_chunks(model, case.tokens, NUM_TOKENS), case.expected)


def test_bfloat16_logits_are_close_to_those_of_float32(tmp_path: Path) -> None:
    theirs = save_model(tmp_path, "llama-tied")
    model = load_model(str(tmp_path), torch.bfloat16)
    tokens = list(range(40))
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
        rounded = theirs.bfloat16()(torch.tensor([tokens])).logits[0].float()
    ours = run_in_chunks(model, tokens, 13)
    assert (ours - expected).norm() <= 2 * (rounded - expected).norm()


class Scales(CpuKernels):
    """Notes by which scales the cache is written, and read."""

    def __init__(self) -> None:
        self.written: list[KVScales] = []
        self.read: list[KVScales] = []

    def rope_and_write_kv(self, *args: Any, kv_scales: KVScales, **options: Any) -> None:  # type: ignore[override]
        self.written.append(kv_scales)
        rope_and_write_kv(*args, **options)

    def paged_attention(self, *args: Any, kv_scales: KVScales, **options: Any) -> torch.Tensor:  # type: ignore[override]
        self.read.append(kv_scales)
        return paged_attention(*args, **options)


def test_every_layer_writes_and_reads_the_cache_by_its_scales(tmp_path: Path) -> None:
    save_model(tmp_path, "llama-tied")
    kernels, scales = Scales(), KVScales(0.5, 0.25)
    model = load_model(str(tmp_path), torch.float32, kernels=kernels)
    config = model.config
    cache = torch.zeros(2, config.num_layers, 2, config.num_kv_heads, 16, config.head_dim)
    one, first = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    metadata = kernels.attention_metadata(one[None], first + 16, torch.tensor([0, 1], dtype=torch.int32), one)
    with torch.inference_mode():
        model.decoder.forward(first, first, cache, metadata, KVLayout.STANDARD, scales)
    assert kernels.written == kernels.read == [scales] * config.num_layers

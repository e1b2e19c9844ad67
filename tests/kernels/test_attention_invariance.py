"""A row of attention depends, to the bit, on its sequence alone."""

import itertools

import pytest
import torch

from numba_kernels import set_num_threads
from numba_kernels.cpu.attention import AttentionPath
from tests.kernels.attention_batches import Batch, Shape, part_of, random_batch

SHAPE = Shape(9, 3, 64)


def rows_of(batch: Batch, out: torch.Tensor, seq: int) -> torch.Tensor:
    bounds = batch.metadata.cu_seqlens_q
    return out[int(bounds[seq]) : int(bounds[seq + 1])]


@pytest.mark.parametrize("window", [None, 90])
def test_a_sequence_comes_out_the_same_alone_and_in_a_batch(path: AttentionPath, window: int | None) -> None:
    shape = Shape(9, 3, 64, window=window)
    num_queries = [1, 60, 0, 1, 7]
    batch = random_batch(shape, [700, 60, 4, 333, 270], num_queries, torch.bfloat16)
    together = batch.run(path)
    for seq, n in enumerate(num_queries):
        assert torch.equal(part_of(batch, seq, 0, n).run(path), rows_of(batch, together, seq))


@pytest.mark.parametrize("window", [None, 75])
@pytest.mark.parametrize("chunks", [[0, 1, 300], [0, 64, 65, 200, 256, 300], [0, 297, 298, 299, 300]])
def test_a_prompt_comes_out_the_same_in_any_chunks(path: AttentionPath, chunks: list[int], window: int | None) -> None:
    batch = random_batch(Shape(9, 3, 64, window=window), [300], [300], torch.bfloat16)
    parts = [part_of(batch, 0, begin, end).run(path) for begin, end in itertools.pairwise(chunks)]
    assert torch.equal(torch.cat(parts), batch.run(path))


def test_float32_chunks_and_decode_steps_give_the_bits_of_the_whole() -> None:
    batch = random_batch(Shape(8, 2, 32), [290], [290], torch.float32)
    for path in (AttentionPath.PLAIN, AttentionPath.VECTOR_FLOAT32):
        parts = [part_of(batch, 0, 0, 285).run(path)]
        parts += [part_of(batch, 0, n, n + 1).run(path) for n in range(285, 290)]
        assert torch.equal(torch.cat(parts), batch.run(path))


def test_the_number_of_threads_changes_no_bit(path: AttentionPath) -> None:
    results = []
    for threads in (1, 2):
        set_num_threads(threads)
        batch = random_batch(SHAPE, [1500, 40], [2, 40], torch.bfloat16)
        results.append(batch.run(path))
    assert torch.equal(*results)


def test_a_second_call_with_the_same_metadata_gives_the_same_bits(path: AttentionPath) -> None:
    batch = random_batch(SHAPE, [1500], [1], torch.bfloat16)
    assert torch.equal(batch.run(path), batch.run(path))

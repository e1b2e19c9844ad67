"""Every attention path against float64, over caches whose unused slots are NaN."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numba_kernels import AttentionMetadata, KVLayout, KVScales, attention_metadata, paged_attention
from numba_kernels.cpu.attention import AttentionPath
from tests.kernels.attention_batches import Batch, Shape, layout_of, random_batch

SHAPES = {
    "smollm2": (Shape(9, 3, 64), [5, 700, 64, 1, 256], [1, 1, 1, 1, 1]),
    "chunked-prefill": (Shape(9, 3, 64), [300, 130], [150, 130]),
    "mixed-and-empty": (Shape(8, 2, 128, 32), [150, 513, 70, 65], [150, 100, 0, 1]),
    "sliding-window": (Shape(4, 1, 96, 16, window=100), [750], [3]),
    "narrow-window": (Shape(16, 1, 32, 48, window=5), [200, 33], [90, 33]),
    "one-head-per-kv-head": (Shape(2, 2, 256), [128, 8], [128, 1]),
    "odd-group": (Shape(10, 2, 16), [400], [7]),
    "window-of-one": (Shape(3, 3, 32, window=1), [70], [70]),
}


def dtypes_of(path: AttentionPath) -> list[torch.dtype]:
    return [torch.bfloat16] if layout_of(path) is KVLayout.AMX_PACKED else [torch.float32, torch.bfloat16]


def relative_error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


def renewed(metadata: AttentionMetadata) -> AttentionMetadata:
    """The same batch, planned anew."""
    return attention_metadata(metadata.block_tables, metadata.slot_mapping, metadata.cu_seqlens_q, metadata.seq_lens)


def assert_close(batch: Batch, path: AttentionPath) -> None:
    exact, out = batch.exact(), batch.run(path)
    floor = torch.finfo(out.dtype).eps / 4  # a batch of a few numbers can suit torch's rounding by luck
    assert relative_error(out, exact) <= 2 * relative_error(batch.by_torch(), exact) + floor


@pytest.mark.parametrize("name", SHAPES)
def test_error_is_at_most_twice_that_of_torch_in_the_same_dtype(path: AttentionPath, name: str) -> None:
    for dtype in dtypes_of(path):
        assert_close(random_batch(*SHAPES[name], dtype), path)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_batches_have_the_error_of_torch(path: AttentionPath, data: st.DataObject) -> None:
    draw = data.draw
    num_kv_heads = draw(st.integers(1, 3))
    shape = Shape(
        num_heads=num_kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([16, 32, 64, 96, 128])),
        block_size=draw(st.sampled_from([16, 32, 64])),
        window=draw(st.none() | st.integers(1, 200)),
    )
    seq_lens = draw(st.lists(st.integers(1, 330), min_size=1, max_size=4))
    num_queries = [draw(st.integers(0, min(n, 40))) for n in seq_lens]
    num_queries[0] = max(1, num_queries[0])
    for dtype in dtypes_of(path):
        assert_close(random_batch(shape, seq_lens, num_queries, dtype, seed=draw(st.integers(0, 99))), path)


def test_a_strided_query_view_and_a_given_output_are_used_in_place(path: AttentionPath) -> None:
    batch = random_batch(Shape(6, 2, 64), [70, 9], [3, 1], torch.bfloat16)
    wide = torch.full((4, 10, 64), float("nan"), dtype=torch.bfloat16)
    wide[:, 2:8] = batch.q
    target = torch.zeros(4, 10, 64, dtype=torch.bfloat16)
    view = Batch(batch.shape, wide[:, 2:8], batch.kv_cache, batch.metadata)
    result = view.run(path, out=target[:, 3:9])
    assert result.data_ptr() == target[:, 3:9].data_ptr()
    assert torch.equal(target[:, 3:9], batch.run(path))
    assert not target[:, :3].any()
    assert not target[:, 9:].any()


def test_blocks_before_the_sliding_window_are_never_read(path: AttentionPath) -> None:
    batch = random_batch(Shape(3, 1, 64, window=20), [310], [2], torch.bfloat16)  # it sees 289 and later: block 18
    wanted = batch.run(path)
    batch.kv_cache[batch.metadata.block_tables[0, :18].long()] = float("nan")
    assert torch.equal(batch.run(path), wanted)
    batch.metadata.block_tables[0, :18] = 1 << 30  # reading there would end the process
    assert torch.equal(Batch(batch.shape, batch.q, batch.kv_cache, renewed(batch.metadata)).run(path), wanted)


def test_the_padding_of_a_block_table_and_the_null_block_are_never_read(path: AttentionPath) -> None:
    batch = random_batch(Shape(3, 1, 64), [17, 1], [1, 1], torch.bfloat16)
    wanted = batch.run(path)
    batch.kv_cache[0] = torch.inf
    batch.metadata.block_tables[0, 2:] = 1 << 30  # reading there would end the process
    batch.metadata.block_tables[1, 1:] = 1 << 30
    assert torch.equal(Batch(batch.shape, batch.q, batch.kv_cache, renewed(batch.metadata)).run(path), wanted)


def test_large_scores_neither_overflow_nor_lose_the_greatest(path: AttentionPath) -> None:
    batch = random_batch(Shape(3, 1, 64), [200], [4], torch.bfloat16)
    loud = Batch(batch.shape, batch.q * 100, batch.kv_cache, batch.metadata)
    assert_close(loud, path)


def test_a_nan_that_a_query_sees_comes_out_as_nan(path: AttentionPath) -> None:
    batch = random_batch(Shape(3, 1, 64), [80], [1], torch.bfloat16)
    batch.q[0, 1] = float("nan")
    out = batch.run(path)
    assert out[0, 1].isnan().all()
    assert not out[0, [0, 2]].isnan().any()


def test_a_step_without_queries_returns_an_empty_tensor(path: AttentionPath) -> None:
    assert random_batch(Shape(3, 1, 64), [20], [0], torch.bfloat16).run(path).shape == (0, 3, 64)


def _batch_with(tables: list[list[int]], bounds: list[int], seq_lens: list[int]) -> tuple[torch.Tensor, ...]:
    int32 = torch.int32
    slots = torch.full((max(bounds),), -1, dtype=torch.int64)
    return (
        torch.tensor(tables, dtype=int32),
        slots,
        torch.tensor(bounds, dtype=int32),
        torch.tensor(seq_lens, dtype=int32),
    )


@pytest.mark.parametrize(
    ("tables", "bounds", "seq_lens", "message"),
    [
        ([[9]], [0, 1], [5], "outside the cache"),
        ([[-1]], [0, 1], [5], "outside the cache"),
        ([[1]], [0, 1], [17], "fewer columns"),
        ([[1]], [0, 2], [1], "more queries"),
        ([[1], [2]], [0, 3, 1], [5, 5], "must not fall"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(
    tables: list[list[int]], bounds: list[int], seq_lens: list[int], message: str
) -> None:
    metadata = attention_metadata(*_batch_with(tables, bounds, seq_lens))
    q = torch.zeros(metadata.num_query_tokens, 2, 16)
    with pytest.raises(ValueError, match=message):
        paged_attention(q, torch.zeros(4, 1, 2, 2, 16, 16), 0, metadata, scale=1.0, layout=KVLayout.STANDARD)


@pytest.mark.parametrize(
    ("q", "kv_cache", "options", "message"),
    [
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16, dtype=torch.float64), {}, "float32 or bfloat16"),
        (torch.zeros(1, 2, 16).bfloat16(), torch.zeros(4, 1, 2, 2, 16, 16), {}, "cache's dtype"),
        (torch.zeros(1, 3, 16), torch.zeros(4, 1, 2, 2, 16, 16), {}, "multiple of the cache's"),
        (torch.zeros(1, 2, 20), torch.zeros(4, 1, 2, 2, 16, 20), {}, "16 \\* n"),
        (torch.zeros(2, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {}, "as many rows"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"layer": 1}, "layer"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"sliding_window": 0}, "sliding_window"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"scale": 0.0}, "scale"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"layout": KVLayout.AMX_PACKED}, "packed"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"out": torch.zeros(1, 2, 8)}, "out must"),
        (torch.zeros(1, 2, 16), torch.zeros(4, 1, 2, 2, 16, 16), {"kv_scales": KVScales(2.0)}, "kv_scales must be 1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    q: torch.Tensor, kv_cache: torch.Tensor, options: dict[str, object], message: str
) -> None:
    metadata = attention_metadata(*_batch_with([[1]], [0, 1], [5]))
    arguments = {"layer": 0, "metadata": metadata, "scale": 1.0, "layout": KVLayout.STANDARD} | options
    with pytest.raises(ValueError, match=message):
        paged_attention(q, kv_cache, **arguments)  # type: ignore[arg-type]


def test_metadata_of_the_wrong_type_is_refused() -> None:
    tables, slots, bounds, seq_lens = _batch_with([[1]], [0, 1], [5])
    with pytest.raises(ValueError, match="seq_lens must be"):
        attention_metadata(tables, slots, bounds, seq_lens.long())
    with pytest.raises(ValueError, match="cu_seqlens_q must be"):
        attention_metadata(tables, slots, torch.tensor([0, 1, 2], dtype=torch.int32), seq_lens)

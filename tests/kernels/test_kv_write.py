"""Keys and values land in their slots, in both layouts, and nowhere else."""

import math

import pytest
import torch

from numba_kernels import KVLayout, KVScales, reference_ops, rope_and_write_kv, write_kv
from numba_kernels.layout import pack, unpack

DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = list(KVLayout)
NUM_LAYERS, LAYER = 3, 1


def poisoned_cache(num_blocks: int, heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((num_blocks, NUM_LAYERS, 2, heads, block_size, head_dim), math.nan, dtype=dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.dtype is torch.bfloat16 else torch.int32)


def fused_qkv(num_tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Views of one matrix [num_tokens, (heads + 2 * kv_heads) * head_dim], as a fused projection gives them."""
    generator = torch.Generator().manual_seed(num_tokens)
    fused = torch.randn(num_tokens, (heads + 2 * kv_heads) * head_dim, generator=generator).to(dtype)
    parts = fused.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    return [part.view(num_tokens, -1, head_dim) for part in parts]


def random_slots(num_tokens: int, num_slots: int) -> torch.Tensor:
    slots = torch.randperm(num_slots, generator=torch.Generator().manual_seed(7))[:num_tokens]
    slots[1::5] = -1
    return slots


def rope_tables(max_positions: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(max_positions), 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("num_tokens", "kv_heads", "head_dim", "block_size"),
    [(1, 3, 64, 16), (7, 2, 16, 32), (33, 1, 96, 16), (200, 3, 64, 32), (140, 2, 128, 48)],  # two run by all cores
)
def test_write_kv_fills_its_slots_and_leaves_every_other_bit(
    num_tokens: int, kv_heads: int, head_dim: int, block_size: int, layout: KVLayout, dtype: torch.dtype
) -> None:
    _, k, v = fused_qkv(num_tokens, 1, kv_heads, head_dim, dtype)
    cache = poisoned_cache(9, kv_heads, block_size, head_dim, dtype)
    expected = cache.clone()
    slots = random_slots(num_tokens, 9 * block_size)
    write_kv(k, v, cache, LAYER, slots, layout=layout)
    reference_ops.write_kv(k, v, expected, LAYER, slots, layout=layout)
    assert torch.equal(bits(cache), bits(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_kv_of_consecutive_tokens_over_several_blocks(layout: KVLayout) -> None:
    _, k, v = fused_qkv(70, 1, 3, 64, torch.bfloat16)
    cache = torch.zeros(8, NUM_LAYERS, 2, 3, 16, 64, dtype=torch.bfloat16)
    write_kv(k, v, cache, LAYER, torch.arange(21, 91), layout=layout)
    plain = unpack(cache) if layout is KVLayout.AMX_PACKED else cache
    stored = plain[:, LAYER].permute(1, 0, 3, 2, 4).flatten(1, 2)  # [2, slots, kv_heads, head_dim]
    assert torch.equal(stored[0, 21:91], k)
    assert torch.equal(stored[1, 21:91], v)
    assert not stored[:, :21].any()
    assert not stored[:, 91:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slot_minus_one_writes_nothing(layout: KVLayout) -> None:
    q, k, v = fused_qkv(4, 2, 2, 32, torch.bfloat16)
    cache = poisoned_cache(3, 2, 16, 32, torch.bfloat16)
    before = cache.clone()
    nowhere = torch.full((4,), -1)
    write_kv(k, v, cache, LAYER, nowhere, layout=layout)
    cos, sin = rope_tables(8, 32)
    rope_and_write_kv(q, k, v, cos, sin, torch.arange(4), cache, LAYER, nowhere, layout=layout)
    assert torch.equal(bits(cache), bits(before))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("num_tokens", "heads", "kv_heads", "head_dim"), [(1, 9, 3, 64), (6, 4, 4, 16), (17, 6, 1, 96), (80, 9, 3, 64)]
)
def test_rope_and_write_is_as_exact_as_torch(
    num_tokens: int, heads: int, kv_heads: int, head_dim: int, layout: KVLayout, dtype: torch.dtype
) -> None:
    q, k, v = fused_qkv(num_tokens, heads, kv_heads, head_dim, dtype)
    cos, sin = rope_tables(500, head_dim)
    positions = torch.randint(0, 500, (num_tokens,), generator=torch.Generator().manual_seed(3))
    exact_q, exact_k = (reference_ops.rotate(x.double(), cos, sin, positions) for x in (q, k))
    torch_q, torch_k = (reference_ops.rotate(x, cos, sin, positions) for x in (q, k))
    k_before, v_before = k.clone(), v.clone()
    cache = poisoned_cache(7, kv_heads, 16, head_dim, dtype)
    slots = torch.randperm(7 * 16, generator=torch.Generator().manual_seed(7))[:num_tokens]
    rope_and_write_kv(q, k, v, cos, sin, positions, cache, LAYER, slots, layout=layout)
    plain = unpack(cache) if layout is KVLayout.AMX_PACKED else cache
    stored = plain[:, LAYER].permute(1, 0, 3, 2, 4).flatten(1, 2)[:, slots]  # [2, num_tokens, kv_heads, head_dim]
    assert (q.double() - exact_q).norm() <= 2 * (torch_q.double() - exact_q).norm()
    assert (stored[0].double() - exact_k).norm() <= 2 * (torch_k.double() - exact_k).norm()
    assert torch.equal(stored[1], v)
    assert torch.equal(k, k_before)
    assert torch.equal(v, v_before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_write_touches_only_its_slots_and_q(layout: KVLayout, dtype: torch.dtype) -> None:
    q, k, v = fused_qkv(40, 9, 3, 64, dtype)
    cache = poisoned_cache(9, 3, 32, 64, dtype)
    cos, sin = rope_tables(64, 64)
    slots = random_slots(40, 9 * 32)
    rope_and_write_kv(q, k, v, cos, sin, torch.arange(40), cache, LAYER, slots, layout=layout)
    plain = unpack(cache) if layout is KVLayout.AMX_PACKED else cache
    untouched = torch.ones(9 * 32, dtype=torch.bool)
    untouched[slots[slots >= 0]] = False
    by_slot = plain.permute(1, 2, 0, 4, 3, 5).flatten(2, 3)  # [layers, 2, slots, kv_heads, head_dim]
    assert by_slot[LAYER][:, untouched].isnan().all()
    assert not by_slot[LAYER][:, ~untouched].isnan().any()
    assert by_slot[[layer for layer in range(NUM_LAYERS) if layer != LAYER]].isnan().all()


def test_position_zero_leaves_q_unchanged() -> None:
    q, k, v = fused_qkv(3, 2, 2, 16, torch.bfloat16)
    before = q.clone()
    cos, sin = rope_tables(4, 16)
    cache = poisoned_cache(1, 2, 16, 16, torch.bfloat16)
    rope_and_write_kv(q, k, v, cos, sin, torch.zeros(3).long(), cache, LAYER, torch.arange(3), layout=KVLayout.STANDARD)
    assert torch.equal(q, before)


def test_scales_are_refused_for_a_cache_that_needs_none() -> None:
    q, k, v = fused_qkv(1, 1, 1, 16, torch.float32)
    cache, (cos, sin), first = torch.zeros(1, 2, 2, 1, 16, 16), rope_tables(4, 16), torch.zeros(1).long()
    arguments = (q, k, v, cos, sin, first, cache, LAYER, first)
    with pytest.raises(ValueError, match=r"kv_scales must be 1 for a cache of torch.float32, not 1\.0 and 0\.5"):
        rope_and_write_kv(*arguments, layout=KVLayout.STANDARD, kv_scales=KVScales(1.0, 0.5))
    assert not cache.any()
    rope_and_write_kv(*arguments, layout=KVLayout.STANDARD, kv_scales=KVScales(1.0, 1.0))


@pytest.mark.parametrize("slot", [-2, 48, 1 << 40])
def test_a_slot_outside_the_cache_raises_and_writes_nothing(slot: int) -> None:
    q, k, v = fused_qkv(2, 1, 1, 16, torch.float32)
    cache = poisoned_cache(3, 1, 16, 16, torch.float32)
    q_before = q.clone()
    cos, sin = rope_tables(4, 16)
    slots = torch.tensor([5, slot])
    with pytest.raises(IndexError, match="slot_mapping"):
        write_kv(k, v, cache, LAYER, slots, layout=KVLayout.STANDARD)
    with pytest.raises(IndexError, match="slot_mapping"):
        rope_and_write_kv(q, k, v, cos, sin, torch.arange(2), cache, LAYER, slots, layout=KVLayout.STANDARD)
    assert cache.isnan().all()
    assert torch.equal(q, q_before)


@pytest.mark.parametrize("position", [-1, 4])
def test_a_position_outside_the_table_raises_and_writes_nothing(position: int) -> None:
    q, k, v = fused_qkv(2, 1, 1, 16, torch.float32)
    cache = poisoned_cache(3, 1, 16, 16, torch.float32)
    cos, sin = rope_tables(4, 16)
    positions = torch.tensor([0, position])
    with pytest.raises(IndexError, match="positions"):
        rope_and_write_kv(q, k, v, cos, sin, positions, cache, LAYER, torch.arange(2), layout=KVLayout.STANDARD)
    assert cache.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": NUM_LAYERS}, "no layer 3"),
        ({"slots": torch.arange(2)}, "slot_mapping must be"),
        ({"slots": torch.arange(3, dtype=torch.int32)}, "slot_mapping must be"),
        ({"slots": torch.arange(6)[::2]}, "slot_mapping must be"),
        ({"v": torch.zeros(3, 2, 32)}, "write_kv takes no"),
        ({"k": torch.zeros(3, 3, 32)}, "no layer 1 of 3 heads"),
        ({"k": torch.zeros(3, 32, 2).transpose(1, 2)}, "write_kv takes no"),
        ({"cache": torch.zeros(2, 3, 2, 2, 24, 32), "layout": KVLayout.AMX_PACKED}, "multiple of 16"),
    ],
)
def test_write_kv_refuses_what_does_not_fit(change: dict, message: str) -> None:
    _, k, v = fused_qkv(3, 1, 2, 32, torch.float32)
    cache = change.get("cache", poisoned_cache(2, 2, 16, 32, torch.float32))
    layout = change.get("layout", KVLayout.STANDARD)
    v = change["v"].bfloat16() if "v" in change else v
    with pytest.raises(ValueError, match=message):
        write_kv(
            change.get("k", k),
            v,
            cache,
            change.get("layer", LAYER),
            change.get("slots", torch.arange(3)),
            layout=layout,
        )


def test_packing_is_undone_by_unpacking() -> None:
    cache = torch.randn(2, 3, 2, 2, 32, 48)
    assert torch.equal(unpack(pack(cache)), cache)

"""The order of elements inside a block."""

import pytest
import torch

from numba_kernels import KVLayout, preferred_layout
from numba_kernels.layout import pack, to_layout, unpack


def test_unpacking_undoes_packing() -> None:
    cache = torch.randn(3, 2, 2, 2, 32, 16).bfloat16()
    assert torch.equal(unpack(pack(cache)), cache)


def test_packed_keys_are_pairs_along_head_dim_and_values_pairs_of_tokens() -> None:
    block_size, head_dim = 32, 16
    cache = torch.arange(2 * block_size * head_dim).float().view(1, 1, 2, 1, block_size, head_dim)
    k, v = pack(cache)[0, 0, :, 0]
    token, d = 21, 7
    assert k.view(2, head_dim // 2, 16, 2)[token // 16, d // 2, token % 16, d % 2] == token * head_dim + d
    assert v.view(block_size // 2, head_dim, 2)[token // 2, d, token % 2] == (block_size + token) * head_dim + d


@pytest.mark.parametrize("layout", KVLayout)
def test_a_layout_converts_to_itself_without_a_copy(layout: KVLayout) -> None:
    cache = torch.randn(1, 1, 2, 1, 16, 16)
    assert to_layout(cache, layout, layout) is cache


def test_converting_between_layouts_keeps_the_elements() -> None:
    cache = torch.randn(2, 1, 2, 3, 16, 32).bfloat16()
    packed = to_layout(cache, KVLayout.STANDARD, KVLayout.AMX_PACKED)
    assert torch.equal(packed, pack(cache))
    assert torch.equal(to_layout(packed, KVLayout.AMX_PACKED, KVLayout.STANDARD), cache)


def test_float32_is_never_packed() -> None:
    assert preferred_layout(torch.float32, 64) is KVLayout.STANDARD
    assert preferred_layout(torch.bfloat16, 24) is KVLayout.STANDARD

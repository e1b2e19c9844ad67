"""Matrix products in the packed layout and in the plain one."""

import pytest
import torch
from torch.nn import functional as F

from serve_paged.model.linear import Linear


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 64, 200])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_weight_serves_any_number_of_rows(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    weight, x = random(96, 64, dtype=dtype), random(num_rows, 64, dtype=dtype)
    bias = random(96, dtype=dtype) if with_bias else None
    with torch.inference_mode():
        y = Linear(weight, bias)(x)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (y.dtype, tuple(y.shape)) == (dtype, (num_rows, 96))
    terms = x.double().abs() @ weight.double().abs().T  # sums are kept in float32 at least, whatever the dtype
    bound = torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * terms
    assert bool(((y.double() - exact).abs() <= bound).all())


def test_a_change_of_the_weight_given_does_not_reach_a_packed_copy() -> None:
    weight, x = torch.ones(32, 32), torch.ones(1, 32)
    with torch.inference_mode():
        linear = Linear(weight)
        before = linear(x).clone()
        if linear.packed:
            weight.zero_()
        assert torch.equal(linear(x), before)

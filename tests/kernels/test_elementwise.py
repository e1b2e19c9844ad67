"""RMS norm and gated SiLU against float64, at sizes and strides that do not divide evenly."""

import math

import pytest
import torch

from numba_kernels import reference_ops, rms_norm, silu_and_mul

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 576), (3, 7), (5, 33), (120, 577), (1100, 64), (2, 1)]  # (rows, width); two are run by all cores


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def columns(rows: int, width: int, *, dtype: torch.dtype) -> torch.Tensor:
    """A slice of a wider matrix: rows are far apart, and no row starts on a round address."""
    return random(rows, width + 11, dtype=dtype)[:, 3 : 3 + width]


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return (result.double() - exact).norm().item() / max(exact.norm().item(), 1e-30)


def assert_no_worse_than_twice(result: torch.Tensor, torch_result: torch.Tensor, exact: torch.Tensor) -> None:
    unit = torch.finfo(result.dtype).eps / 4  # torch may happen to be exact
    assert error(result, exact) <= max(2 * error(torch_result, exact), unit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_rms_norm_is_as_exact_as_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = columns(rows, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    exact = reference_ops.rms_norm(x.double(), weight.double(), 1e-5)
    assert_no_worse_than_twice(rms_norm(x, weight, 1e-5), reference_ops.rms_norm(x, weight, 1e-5), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_rms_norm_adds_to_the_residual_in_place_and_norms_the_sum(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = columns(rows, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    residual = random(rows, width, dtype=dtype, seed=2)
    expected_sum, before = residual + x, x.clone()
    out = rms_norm(x, weight, 1e-5, residual=residual)
    assert torch.equal(residual, expected_sum)
    assert torch.equal(x, before)
    assert torch.equal(out, rms_norm(expected_sum, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_per_head_takes_a_slice_of_a_fused_product(dtype: torch.dtype) -> None:
    fused, weight = random(37, 12 * 64, dtype=dtype), random(64, dtype=dtype, seed=1)
    q = fused[:, 64 : 10 * 64].view(37, 9, 64)
    out = rms_norm(q, weight, 1e-6)
    assert out.is_contiguous()
    assert torch.equal(out, rms_norm(q.reshape(-1, 64), weight, 1e-6).view(37, 9, 64))


def test_rms_norm_rounds_as_transformers_does() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = llama.LlamaRMSNorm(576, eps=1e-5).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(random(576, dtype=torch.bfloat16, seed=1))
    x = random(8, 576, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, norm.weight.detach(), 1e-5), norm(x).detach())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [*SIZES, (48, 1536)])
def test_silu_and_mul_is_as_exact_as_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = columns(rows, 2 * width, dtype=dtype) * 4
    exact = reference_ops.silu_and_mul(gate_up.double())
    out = silu_and_mul(gate_up)
    assert out.shape == (rows, width)
    assert_no_worse_than_twice(out, reference_ops.silu_and_mul(gate_up), exact)


def test_silu_keeps_its_precision_over_the_whole_range_of_gates() -> None:
    gate = torch.linspace(-86.0, 86.0, 40_001)
    out = silu_and_mul(torch.cat((gate, torch.ones_like(gate)))[None])[0]
    exact = torch.nn.functional.silu(gate.double())
    assert ((out.double() - exact).abs() <= 5e-7 * exact.abs()).all()


def test_silu_of_gates_beyond_the_range_of_exp_is_zero_or_the_gate() -> None:
    out = silu_and_mul(torch.tensor([[-1000.0, -90.0, 90.0, 1000.0, 1.0, 1.0, 1.0, 1.0]]))[0]
    assert torch.allclose(out, torch.tensor([0.0, 0.0, 90.0, 1000.0]), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    x = random(4, 40, dtype=dtype)
    x[2, 5] = math.nan
    assert rms_norm(x, random(40, dtype=dtype, seed=1), 1e-5).isnan().any(dim=1).tolist() == [False, False, True, False]
    assert silu_and_mul(x).isnan().nonzero().tolist() == [[2, 5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_give_no_rows(dtype: torch.dtype) -> None:
    x = torch.empty(0, 32, dtype=dtype)
    assert rms_norm(x, torch.ones(32, dtype=dtype), 1e-5, residual=x.clone()).shape == (0, 32)
    assert silu_and_mul(x).shape == (0, 16)


def test_bfloat16_results_are_rounded_to_nearest_even() -> None:
    """1 + 1/256 lies between two bfloat16 numbers and goes to the even one, 1; 1 + 3/256 goes up to 1 + 4/256."""
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    residual = torch.tensor([[1 / 256, 3 / 256]], dtype=torch.bfloat16)
    rms_norm(x, torch.ones(2, dtype=torch.bfloat16), 1e-5, residual=residual)
    assert residual.tolist() == [[1.0, 1.015625]]


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(2, 8), torch.zeros(7)),
        (torch.zeros(2, 8), torch.zeros(8, dtype=torch.bfloat16)),
        (torch.zeros(8, 2).T, torch.zeros(8)),
        (torch.zeros(8), torch.zeros(8)),
        (torch.zeros(2, 8), torch.zeros(16)[::2]),
    ],
    ids=["width", "dtype", "not contiguous", "one dimension", "strided weight"],
)
def test_rms_norm_refuses_what_it_cannot_take(x: torch.Tensor, weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rms_norm takes no x"):
        rms_norm(x, weight, 1e-5)


def test_rms_norm_refuses_a_residual_of_another_shape() -> None:
    with pytest.raises(ValueError, match="with residual"):
        rms_norm(torch.zeros(2, 8), torch.zeros(8), 1e-5, residual=torch.zeros(3, 8))


def test_silu_and_mul_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="silu_and_mul takes no"):
        silu_and_mul(torch.zeros(2, 7))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float16"):
        silu_and_mul(torch.zeros(2, 8, dtype=torch.float16))

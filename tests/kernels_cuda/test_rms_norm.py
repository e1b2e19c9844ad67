"""rms_norm, the kernel's own source in the simulator, against the reference and float64."""

from typing import Any

import pytest
import torch

from numba_kernels import reference_ops
from numba_kernels.cuda import reduction, rms_norm
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.rms_norm import RmsNormVariant, make_rms_norm
from numba_kernels.cuda.simulator import Index3, Simulator
from tests.kernels_cuda.decode_batches import DTYPES, bits, storage_of
from tests.kernels_cuda.planted import planted

EPS = 1e-5


def run(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None, *, seed: int = 0, make: Any = None
) -> torch.Tensor:
    """The kernel's result for x [num_tokens, width] or [num_tokens, num_heads, width]; NaN at first."""
    num_groups, rows = (1, x.shape[0]) if x.dim() == 2 else x.shape[:2]
    group_stride, row_stride = (0, x.stride(0)) if x.dim() == 2 else x.stride()[:2]
    element = {dtype: name for name, dtype in DTYPES.items()}[x.dtype]
    variant = RmsNormVariant(x.shape[-1], element, residual is not None)
    out = torch.full(x.shape, float("nan"), dtype=x.dtype)
    inputs = [storage_of(x), bits(weight)]
    for array in inputs:
        array.flags.writeable = False
    written = [bits(out)] + ([] if residual is None else [storage_of(residual)])
    Simulator([*inputs, *written], seed).launch(
        lambda target: (make or make_rms_norm)(variant, target),
        Index3(-(-rows // variant.rows_per_block), num_groups), variant.num_threads,
        x.data_ptr(), 0 if residual is None else residual.data_ptr(), weight.data_ptr(), out.data_ptr(),
        2 * group_stride, 2 * row_stride, 0 if residual is None else 2 * residual.stride(0), rows, EPS,
    )  # fmt: skip
    return out


def random_rows(*shape: int, element: str = "bf16") -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(sum(shape))
    return torch.randn(shape).to(DTYPES[element]) * 3, torch.randn(shape[-1]).to(DTYPES[element])


def assert_as_reference(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Nearly every element to the bit: sums in another order may round to the neighbour."""
    assert (out == expected).float().mean() > 0.98
    torch.testing.assert_close(out, expected, rtol=2**-7 if out.dtype is torch.bfloat16 else 2**-9, atol=0)


# One and several rows to a warp, with and without idle lanes; one and several warps to a row, the widest included.
@pytest.mark.parametrize("width", [8, 64, 96, 128, 256, 512, 576, 1032, 4096, 16384])
def test_every_width_matches_the_reference(width: int) -> None:
    x, weight = random_rows(2, width)
    assert_as_reference(run(x, weight), reference_ops.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("width", [64, 576, 2048])
@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_a_residual_is_added_in_place_and_the_sum_normed(width: int, element: str) -> None:
    x, weight = random_rows(5, width, element=element)
    residual = x.flip(0).contiguous()
    expected = residual.clone()
    normed = reference_ops.rms_norm(x, weight, EPS, residual=expected)
    assert_as_reference(run(x, weight, residual), normed)
    assert torch.equal(residual, expected)


def test_heads_are_normed_where_they_lie_in_a_fused_projection() -> None:
    projected, weight = random_rows(3, 12, 64)
    projected[:, :4] = float("nan")
    keys = projected[:, 4:9]
    assert_as_reference(run(keys, weight), reference_ops.rms_norm(keys, weight, EPS))


def test_rows_may_lie_apart_and_so_may_the_residuals() -> None:
    x, weight = random_rows(3, 192)
    wide = torch.full((3, 256), float("nan"), dtype=x.dtype)
    wide[:, :128] = x[:, :128]
    expected = wide[:, :128].clone()
    normed = reference_ops.rms_norm(x[:, 64:], weight[:128], EPS, residual=expected)
    assert_as_reference(run(x[:, 64:], weight[:128].clone(), wide[:, :128]), normed)
    assert torch.equal(wide[:, :128], expected)
    assert wide[:, 128:].isnan().all()


def test_it_is_as_exact_as_the_reference() -> None:
    x, weight = random_rows(4, 2048)
    exact = reference_ops.rms_norm(x.double(), weight.double(), EPS)
    errors = [
        (out.double() - exact).norm() / exact.norm() for out in (run(x, weight), reference_ops.rms_norm(x, weight, EPS))
    ]
    assert errors[0] < 1.01 * errors[1]


def test_a_row_gives_the_same_bits_alone_in_any_batch_and_in_any_order_of_lanes() -> None:
    x, weight = random_rows(6, 256)
    together = run(x, weight)
    assert torch.equal(run(x, weight, seed=1), together)
    assert torch.equal(run(x[4:5].clone(), weight)[0], together[4])


def test_zeros_and_large_rows_stay_finite() -> None:
    x, weight = random_rows(2, 128, element="f16")
    x[0], x[1] = 0, 60000
    out = run(x, weight)
    assert not out[0].any()
    assert_as_reference(out[1:], reference_ops.rms_norm(x[1:], weight, EPS))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("shared[lane] if lane < num_warps else", "shared[lane] if lane < 1 else", id="one warp's sum"),
        pytest.param("cuda.syncthreads()", "pass", id="missing barrier"),
        pytest.param("x = x + ptx.shfl_xor_f32(x, 1 << i)", "x = x + ptx.shfl_xor_f32(x, 1)", id="wrong lanes"),
        pytest.param("held[c * 4 + i] = uint32(0)", "pass", id="idle lanes hold what they held"),
        pytest.param("unpack(pack(low * factor, high * factor))", "low * factor, high * factor", id="one rounding"),
        pytest.param("held[i] = added(before[i], held[i])", "held[i] = before[i]", id="residual alone"),
        pytest.param("inverse_width) + eps", "inverse_width)", id="no eps"),
    ],
)
def test_a_planted_bug_is_caught(old: str, new: str) -> None:
    make = planted(old, new, reduction, rms_norm)["make_rms_norm"]
    x, weight = random_rows(2, 1032)
    x *= 0.002
    residual = x.flip(0).contiguous()
    expected = reference_ops.rms_norm(x, weight, EPS, residual=residual.clone())
    with pytest.raises(AssertionError):
        assert_as_reference(run(x, weight, residual, make=make), expected)


def test_a_thread_without_a_row_that_reads_one_is_caught() -> None:
    names = planted("row = int64(min(own, int32(rows_per_group - 1)))", "row = int64(own)", reduction, rms_norm)
    x, weight = random_rows(3, 64)
    with pytest.raises(MemoryFault, match="outside every array"):
        run(x, weight, make=names["make_rms_norm"])


@pytest.mark.parametrize("width", [0, 12, 16392])
def test_a_width_without_a_kernel_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"no norm of {width}"):
        RmsNormVariant(width)

"""silu_and_mul, the kernel's own source in the simulator, against float64."""

from typing import Any

import pytest
import torch

from numba_kernels.cuda import silu_and_mul
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.silu_and_mul import NUM_THREADS, make_silu_and_mul, num_chunks
from numba_kernels.cuda.simulator import Index3, Simulator
from tests.kernels_cuda.decode_batches import DTYPES, bits, storage_of
from tests.kernels_cuda.planted import planted


def run(gate_up: torch.Tensor, *, make: Any = make_silu_and_mul) -> torch.Tensor:
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    element = {dtype: name for name, dtype in DTYPES.items()}[gate_up.dtype]
    out = torch.full((num_tokens, width), float("nan"), dtype=gate_up.dtype)
    inputs = storage_of(gate_up)
    inputs.flags.writeable = False
    Simulator([inputs, bits(out)]).launch(
        lambda target: make(element, target), Index3(num_tokens, num_chunks(width)), NUM_THREADS,
        gate_up.data_ptr(), out.data_ptr(), gate_up.stride(0) * 2, width,
    )  # fmt: skip
    return out


def exact(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def assert_exact(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Rounded once: nearly every element is float64's result rounded, the others its neighbour."""
    expected = exact(gate_up)
    assert (out == expected).float().mean() > 0.99
    torch.testing.assert_close(out, expected, rtol=2**-7 if out.dtype is torch.bfloat16 else 2**-10, atol=1e-36)


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("width", [8, 1536, 2056, 4104])
def test_every_width_is_exact_but_for_one_rounding(width: int, element: str) -> None:
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(2, 2 * width)).to(DTYPES[element])
    assert_exact(run(gate_up), gate_up)


def test_large_gates_go_to_zero_and_to_the_gate_itself() -> None:
    gate_up = torch.ones(1, 16).bfloat16()
    gate_up[0, :8] = torch.tensor([-3e38, -1000, -100, -87, 87, 100, 1000, 3e38])
    assert_exact(run(gate_up), gate_up)


def test_rows_may_lie_apart() -> None:
    torch.manual_seed(0)
    wide = torch.full((3, 80), float("nan")).bfloat16()
    wide[:, 8:40] = torch.randn(3, 32)
    assert_exact(run(wide[:, 8:40]), wide[:, 8:40])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("at < width", "at <= width", id="one thread too many"),
        pytest.param("int64(width) * 2", "int64(width) * 2 + 16", id="up in the wrong place"),
        pytest.param("float32(1.0) + ptx.ex2", "ptx.ex2", id="exp for silu"),
        pytest.param("pair(g1, u1)", "pair(g1, u2)", id="words swapped"),
    ],
)
def test_a_planted_bug_is_caught(old: str, new: str) -> None:
    make = planted(old, new, silu_and_mul)["make_silu_and_mul"]
    torch.manual_seed(0)
    gate_up = torch.randn(1, 48).bfloat16()
    with pytest.raises((AssertionError, MemoryFault)):
        assert_exact(run(gate_up, make=make), gate_up)

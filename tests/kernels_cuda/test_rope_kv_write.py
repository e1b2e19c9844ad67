"""rope_kv_write, the kernel's own source in the simulator, against the reference in float64, rounded once."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from numba_kernels import reference_ops, rope_and_write_kv
from numba_kernels.cuda import reduction, rms_norm, rope_kv_write
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.rope_kv_write import NUM_THREADS, RopeVariant, make_rope_kv_write
from numba_kernels.cuda.simulator import Simulator
from numba_kernels.cuda.target import Index3
from numba_kernels.layout import KVLayout
from tests.kernels_cuda.decode_batches import DTYPES, bits, storage_of
from tests.kernels_cuda.planted import planted

LAYER, NUM_LAYERS, NUM_BLOCKS, MAX_POSITIONS = 1, 2, 4, 50
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Heads:
    """A step's projected heads, q, k and v views of one tensor, and a cache of NaN."""

    variant: RopeVariant
    q: torch.Tensor  # [num_tokens, num_heads, head_dim]
    k: torch.Tensor  # [num_tokens, num_kv_heads, head_dim]
    v: torch.Tensor
    norms: torch.Tensor  # [2, head_dim]
    cos: torch.Tensor  # float32 [MAX_POSITIONS, head_dim / 2]
    sin: torch.Tensor
    positions: torch.Tensor
    kv_cache: torch.Tensor
    slot_mapping: torch.Tensor
    scales: tuple[float, float] = (1.0, 1.0)  # of K and V in a cache of e4m3

    def run(self, *, make: Any = make_rope_kv_write, seed: int = 0) -> None:
        """The kernel: q and the cache are written, k and v are in the same memory as q, the rest is read-only."""
        num_tokens, num_heads, num_kv_heads = self.q.shape[0], self.q.shape[1], self.k.shape[1]
        inputs = [bits(self.norms), *(x.numpy() for x in (self.cos, self.sin, self.positions, self.slot_mapping))]
        for array in inputs:
            array.flags.writeable = False
        addresses = [x.data_ptr() for x in (self.q, self.k, self.v, self.norms[0], self.norms[1], self.cos, self.sin)]
        addresses += [x.data_ptr() for x in (self.positions, *self.kv_cache[0, LAYER], self.slot_mapping)]
        strides = [2 * s for x in (self.q, self.k, self.v) for s in x.stride()[:2]]
        strides += [self.kv_cache.element_size() * self.kv_cache.stride(d) for d in (0, 4, 3)]
        inverse_scales = [np.float32(1 / scale) for scale in self.scales]
        cache = self.kv_cache.view(torch.uint8).numpy()
        Simulator([*inputs, storage_of(self.q), cache], seed).launch(
            lambda target: make(self.variant, target),
            Index3(num_tokens, self.variant.num_blocks(num_heads, num_kv_heads)), NUM_THREADS,
            *addresses, *strides, num_heads, num_kv_heads, EPS, *inverse_scales,
        )  # fmt: skip

    def assert_right_after(self, **arguments: Any) -> None:
        """Run, and compare q and the whole cache with float64's result, rounded once; k and v must be as before."""
        exact = self._exact()
        k_v = torch.cat((self.k, self.v))
        self.run(**arguments)
        assert torch.equal(torch.cat((self.k, self.v)), k_v)
        for out, expected in ((self.q, exact[0]), (self.kv_cache, exact[1])):
            written = ~expected.isnan()
            assert torch.equal(out.isnan(), ~written)
            assert_nearly_equal(out[written], expected[written].to(out.dtype))

    def _exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = self.q.clone(), self.k.clone()
        if self.variant.norm:
            q, k = (reference_ops.rms_norm(x, w, EPS) for x, w in zip((q, k), self.norms, strict=True))
        q, k, cos, sin, cache = (x.double() for x in (q, k, self.cos, self.sin, self.kv_cache))
        reference_ops.rope_and_write_kv(
            q, k, self.v.double(), cos, sin, self.positions, cache, LAYER, self.slot_mapping, layout=KVLayout.STANDARD
        )
        return q, cache


def assert_nearly_equal(out: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit but for a neighbour here and there, and where two products cancel."""
    assert (out == expected).float().mean() > 0.98
    torch.testing.assert_close(out, expected, rtol=2**-7 if out.dtype is torch.bfloat16 else 2**-9, atol=1e-3)


def random_heads(
    variant: RopeVariant, slots: list[int], *, num_heads: int = 3, num_kv_heads: int = 2, spare_heads: int = 0
) -> Heads:
    """`spare_heads`: heads of the projection that belong to nobody, NaN, at its end."""
    torch.manual_seed(len(slots))
    head_dim, dtype = variant.head_dim, DTYPES[variant.element]
    heads = num_heads + 2 * num_kv_heads
    projected = torch.full((len(slots), heads + spare_heads, head_dim), float("nan"), dtype=dtype)
    projected[:, :heads] = torch.randn(len(slots), heads, head_dim)
    q, k, v = projected[:, :heads].split_with_sizes((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = torch.rand(MAX_POSITIONS, head_dim // 2) * 6.28
    cache = torch.full((NUM_BLOCKS, NUM_LAYERS, 2, num_kv_heads, variant.block_size, head_dim), float("nan"))
    positions = torch.randint(MAX_POSITIONS, (len(slots),))
    norms = torch.randn(2, head_dim).to(dtype)
    return Heads(
        variant, q, k, v, norms, angles.cos(), angles.sin(), positions, cache.to(dtype), torch.tensor(slots)
    )  # fmt: skip


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_heads_are_rotated_and_stored_and_nothing_else_is_written(head_dim: int, element: str) -> None:
    random_heads(RopeVariant(head_dim, element), [17, 63, 30], spare_heads=1).assert_right_after()


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (32, 8)])
def test_heads_fill_one_block_of_threads_or_several(num_heads: int, num_kv_heads: int) -> None:
    heads = random_heads(RopeVariant(64), [16], num_heads=num_heads, num_kv_heads=num_kv_heads)
    heads.assert_right_after()


@pytest.mark.parametrize("norm", [False, True])
def test_a_slot_of_minus_one_writes_nothing_but_the_query(norm: bool) -> None:
    heads = random_heads(RopeVariant(64, norm=norm), [-1, 20, -1])
    heads.assert_right_after()
    assert int((~heads.kv_cache.isnan()).sum()) == 2 * 2 * 64


def test_blocks_may_hold_any_number_of_tokens() -> None:
    random_heads(RopeVariant(64, block_size=48), [47, 48, 191]).assert_right_after()


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_heads_are_normed_before_they_turn(head_dim: int, element: str) -> None:
    random_heads(RopeVariant(head_dim, element, norm=True), [17, 40]).assert_right_after()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_a_cache_of_e4m3_gets_what_another_would_hold_divided_by_the_scales(
    head_dim: int, element: str, norm: bool
) -> None:
    wide = random_heads(RopeVariant(head_dim, element, norm=norm), [17, -1, 40])
    narrow = random_heads(RopeVariant(head_dim, element, norm=norm, kv_element="e4m3"), [17, -1, 40])
    narrow = dataclasses.replace(
        narrow, kv_cache=torch.full(wide.kv_cache.shape, float("nan")).to(torch.float8_e4m3fn), scales=(0.25, 0.005)
    )
    wide.run()
    narrow.run()
    inverse = torch.tensor([1 / scale for scale in narrow.scales]).view(2, 1, 1, 1)
    expected = (wide.kv_cache.float() * inverse).clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(narrow.kv_cache.float(), expected.float())  # NaN where nothing was written
    assert torch.equal(narrow.q, wide.q)


def test_it_agrees_with_the_cpu_kernel() -> None:
    heads = random_heads(RopeVariant(64), [17, -1, 40])
    q, cache = heads.q.clone(), heads.kv_cache.clone()
    rope_and_write_kv(
        q, heads.k, heads.v, heads.cos, heads.sin, heads.positions, cache, LAYER, heads.slot_mapping,
        layout=KVLayout.STANDARD,
    )  # fmt: skip
    heads.run()
    assert (heads.q == q).float().mean() > 0.99  # the CPU's kernel fuses one product with its sum
    assert (bits(heads.kv_cache) == bits(cache)).mean() > 0.99


def test_the_order_in_which_lanes_run_does_not_show() -> None:
    results = []
    for seed in range(2):
        heads = random_heads(RopeVariant(128, norm=True), [17])
        heads.run(seed=seed)
        results.append(heads)
    assert torch.equal(results[0].q, results[1].q)
    assert (bits(results[0].kv_cache) == bits(results[1].kv_cache)).all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("or slot >= 0", "or slot > -2", id="padding is written"),
        pytest.param(
            "min(int32(item // lanes), int32(first_v + num_kv_heads - 1))", "item // lanes", id="no such head"
        ),
        pytest.param("head < num_heads or slot", "slot", id="a padded query is not turned"),
        pytest.param("b0 * c0 + a0 * s0", "b0 * c0 - a0 * s0", id="turned the other way"),
        pytest.param("unpack(x[i + 4])", "unpack(x[i + 3])", id="wrong partner"),
        pytest.param("+ at * 2", "+ at", id="angles of another element"),
        pytest.param("(head - first_v) * head_stride", "(head - num_heads) * head_stride", id="another head's place"),
        pytest.param("(slot - block * block_size)", "slot", id="another token's place"),
        pytest.param("            if head < first_v:\n", "            if True:\n", id="values are normed"),
        pytest.param("(q_norm if head < num_heads else k_norm)", "q_norm", id="keys with the queries' weights"),
    ],
)
def test_a_planted_bug_is_caught(old: str, new: str) -> None:
    make = planted(old, new, reduction, rms_norm, rope_kv_write)["make_rope_kv_write"]
    heads = random_heads(RopeVariant(64, norm=True), [17, -1, 40])
    with pytest.raises((AssertionError, MemoryFault)):
        heads.assert_right_after(make=make)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 80}, "head_dim 80"),
        ({"head_dim": 64, "block_size": 0}, "blocks of 0"),
        ({"head_dim": 96, "norm": True}, "norm of heads of 96"),
    ],
)
def test_what_has_no_kernel_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeVariant(**arguments)

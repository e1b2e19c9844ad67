"""The operations that are no attention, each over enough buffers that no cache holds them all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from numba_kernels import reference_ops
from numba_kernels.bench.ceilings import Ceilings
from numba_kernels.bench.shapes import BLOCK_SIZE, ModelShape
from numba_kernels.bench.timing import Step
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.layout import KVLayout

MAX_BUFFERS = 256
NUM_POSITIONS = 8192
MAX_SAMPLED = 256  # rows: as many as sequences in a step
# Largest error of an element, relative to the result's largest, against the same in float32 from the same inputs:
# two roundings to bfloat16, of 2^-9 each.
TOLERANCE = 2.0**-7


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one shape, ready to be checked and timed."""

    kind: str
    model: str
    case: str
    num_bytes: int
    ceiling: float  # bytes per second
    num_buffers: int
    ours: Step
    error: Callable[[], float]
    tolerance: float = TOLERANCE
    rivals: dict[str, Step] = field(default_factory=dict)
    can_be_captured: bool = True

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.case}"


def operations(
    kernels: CudaKernels,
    model: ModelShape,
    rows: tuple[int, ...],
    dtype: torch.dtype,
    min_bytes: int,
    ceilings: Ceilings,
) -> Iterator[Operation]:
    """What stands between the matrix products of one model, for steps of so many tokens."""
    for num_rows in rows:
        make = _Maker(kernels, model, num_rows, dtype, min_bytes, ceilings.device_copy)
        yield make.rms_norm()
        yield make.add_and_norm()
        yield make.silu_and_mul()
        yield make.rope_and_write()
        if num_rows <= MAX_SAMPLED:
            yield make.sample()


@dataclass(frozen=True, slots=True)
class _Maker:
    kernels: CudaKernels
    model: ModelShape
    num_rows: int
    dtype: torch.dtype
    min_bytes: int
    ceiling: float

    def rms_norm(self) -> Operation:
        width = self.model.hidden_size
        x, weight = self._random(2 * self.num_rows * width, self.num_rows, width), self._weight(width)
        rms_norm = self.kernels.rms_norm
        return self._operation(
            "rms_norm", 2 * self.num_rows * width, x,
            ours=lambda i: rms_norm(x[i], weight, 1e-5),
            error=lambda: _error(
                rms_norm(x[0], weight, 1e-5), reference_ops.rms_norm(x[0].float(), weight.float(), 1e-5)
            ),
            torch_step=lambda i: torch.nn.functional.rms_norm(x[i], (width,), weight, 1e-5),
        )  # fmt: skip

    def add_and_norm(self) -> Operation:
        width = self.model.hidden_size
        x, weight = self._random(4 * self.num_rows * width, self.num_rows, width), self._weight(width)
        residual = torch.zeros_like(x)
        rms_norm = self.kernels.rms_norm

        def error() -> float:
            mine, sums = torch.randn_like(x[0]), x[0].float()
            sums += mine.float()
            normed = rms_norm(x[0], weight, 1e-5, residual=mine)
            exact = reference_ops.rms_norm(sums.to(self.dtype).float(), weight.float(), 1e-5)
            return max(_error(normed, exact), _error(mine, sums))

        return self._operation(
            "rms_norm residual", 4 * self.num_rows * width, x,
            ours=lambda i: rms_norm(x[i], weight, 1e-5, residual=residual[i]),
            error=error,
            torch_step=lambda i: reference_ops.rms_norm(x[i], weight, 1e-5, residual=residual[i]),
        )  # fmt: skip

    def silu_and_mul(self) -> Operation:
        width = self.model.intermediate_size
        x = self._random(3 * self.num_rows * width, self.num_rows, 2 * width)
        return self._operation(
            "silu_and_mul", 3 * self.num_rows * width, x,
            ours=lambda i: self.kernels.silu_and_mul(x[i]),
            error=lambda: _error(self.kernels.silu_and_mul(x[0]), reference_ops.silu_and_mul(x[0].float())),
            torch_step=lambda i: reference_ops.silu_and_mul(x[i]),
        )  # fmt: skip

    def rope_and_write(self) -> Operation:
        model, device = self.model, self.kernels.device
        heads = model.num_heads + 2 * model.num_kv_heads
        num_elements = self.num_rows * model.head_dim * (2 * model.num_heads + 4 * model.num_kv_heads)
        x = self._random(num_elements, self.num_rows, heads, model.head_dim)
        positions = torch.randint(0, NUM_POSITIONS, (self.num_rows,), device=device)
        angles = torch.rand(NUM_POSITIONS, model.head_dim // 2, device=device) * 6.28
        cos, sin = angles.cos(), angles.sin()
        size = (self.num_rows // BLOCK_SIZE + 2, 1, 2, model.num_kv_heads, BLOCK_SIZE, model.head_dim)
        cache = torch.zeros(size, dtype=self.dtype, device=device)
        slots = torch.randperm(self.num_rows, device=device) + BLOCK_SIZE
        layout = KVLayout.STANDARD

        def split(i: int) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = x[i].split((model.num_heads, model.num_kv_heads, model.num_kv_heads), dim=1)
            return q, k, v

        def ours(i: int) -> None:
            self.kernels.rope_and_write_kv(*split(i), cos, sin, positions, cache, 0, slots, layout=layout)

        def theirs(i: int) -> None:
            q, k, v = split(i)
            q.copy_(reference_ops.rotate(q, cos, sin, positions))
            block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
            cache[block, 0, 0, :, offset] = reference_ops.rotate(k, cos, sin, positions)
            cache[block, 0, 1, :, offset] = v

        def error() -> float:
            q, k, v = (part.clone().float() for part in split(0))
            cache.fill_(float("nan"))
            ours(0)
            block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
            rotated = (reference_ops.rotate(part, cos, sin, positions) for part in (q, k))
            found = (split(0)[0], cache[block, 0, 0, :, offset], cache[block, 0, 1, :, offset])
            return max(_error(mine, exact) for mine, exact in zip(found, (*rotated, v), strict=True))

        return self._operation("rope_and_write_kv", num_elements, x, ours=ours, error=error, torch_step=theirs)

    def sample(self) -> Operation:
        """Half of the rows greedy, half drawn with a temperature alone; float32 logits, as the engine has them."""
        num_rows, width, device = self.num_rows, self.model.vocab_size, self.kernels.device
        x = self._random(2 * num_rows * width, num_rows, width).float() * 4
        columns = {
            "temperature": (torch.arange(num_rows, device=device) % 2).float(),
            "top_k": torch.zeros(num_rows, dtype=torch.int32, device=device),
            "top_p": torch.ones(num_rows, device=device),
            "log_min_p": torch.full((num_rows,), -torch.inf, device=device),
            "uniform": torch.rand(num_rows, device=device) * 0.999,
        }

        def theirs(i: int) -> Tensor:
            return torch.multinomial(torch.softmax(x[i], dim=-1), 1)

        def error() -> float:
            greedy = self.kernels.sample(x[0], **columns).token_ids[::2]
            return float((greedy != x[0][::2].argmax(dim=-1)).sum())

        return self._operation("sample", 2 * num_rows * width, x, ours=lambda i: self.kernels.sample(x[i], **columns),
                               error=error, torch_step=theirs)  # fmt: skip

    def _operation(
        self,
        kind: str,
        num_elements: int,
        buffers: Tensor,
        *,
        ours: Step,
        error: Callable[[], float],
        torch_step: Step,
    ) -> Operation:
        num_bytes = num_elements * self.dtype.itemsize
        case = f"{self.num_rows} tokens"
        return Operation(
            kind,
            self.model.name,
            case,
            num_bytes,
            self.ceiling,
            len(buffers),
            ours,
            error,
            rivals={"torch": torch_step},
        )

    def _random(self, num_elements: int, *shape: int) -> Tensor:
        """Enough buffers of a shape that calls which move so many elements each go past the cache."""
        wanted = -(-self.min_bytes // (num_elements * self.dtype.itemsize))
        return torch.randn(min(max(wanted, 1), MAX_BUFFERS), *shape, device=self.kernels.device).to(self.dtype)

    def _weight(self, width: int) -> Tensor:
        return torch.rand(width, device=self.kernels.device).to(self.dtype) + 0.5


def copies(
    kernels: CudaKernels, models: tuple[ModelShape, ...], dtype: torch.dtype, min_bytes: int, ceilings: Ceilings
) -> Iterator[Operation]:
    """Whole blocks of each model: within the device, out to pinned memory, and back."""
    for model in models:
        row = (model.num_layers, 2, model.num_kv_heads, BLOCK_SIZE, model.head_dim)
        row_bytes = model.num_layers * model.kv_bytes_per_token * BLOCK_SIZE
        num_pairs = max(4, -(-min_bytes // row_bytes))
        cache = torch.randn(2 * num_pairs, *row, device=kernels.device).to(dtype)
        host = torch.zeros(num_pairs, *row, dtype=dtype, pin_memory=kernels.device.type == "cuda")
        yield from _copies_of(kernels, model, cache, host, ceilings)


def _copies_of(
    kernels: CudaKernels, model: ModelShape, cache: Tensor, host: Tensor, ceilings: Ceilings
) -> Iterator[Operation]:
    num_pairs, num_bytes = len(host), host.nbytes
    order = torch.randperm(2 * num_pairs)
    source, target = order[:num_pairs], order[num_pairs:]
    on_host = torch.randperm(num_pairs)
    within, out, back = (torch.stack(p, dim=1) for p in ((source, target), (source, on_host), (on_host, target)))
    case = f"{num_pairs} x {num_bytes // num_pairs // 1024} KiB"

    def same(mine: Tensor, at: Tensor, exact: Tensor, of: Tensor) -> float:
        kernels.synchronize()  # before either is read
        return 0.0 if torch.equal(mine.cpu()[at], exact.cpu()[of]) else float("nan")

    def copied() -> float:
        kernels.copy_blocks(cache, within)
        return same(cache, target, cache, source)

    def swapped_out() -> float:
        kernels.swap_blocks(cache, host, out)
        return same(host, on_host, cache, source)

    def swapped_in() -> float:
        kernels.swap_blocks(host, cache, back)
        return same(cache, target, host, on_host)

    indices = [x.to(kernels.device) for x in (source, target)]
    rows = (
        ("copy_blocks", 2 * num_bytes, ceilings.device_copy, lambda _: kernels.copy_blocks(cache, within), copied),
        ("swap out", num_bytes, ceilings.device_to_host, lambda _: kernels.swap_blocks(cache, host, out), swapped_out),
        ("swap in", num_bytes, ceilings.host_to_device, lambda _: kernels.swap_blocks(host, cache, back), swapped_in),
    )
    for kind, moved, ceiling, ours, error in rows:
        rivals: dict[str, Step] = {}
        if kind == "copy_blocks":
            rivals["torch indexing"] = lambda _: cache.index_copy_(0, indices[1], cache.index_select(0, indices[0]))
        yield Operation(
            kind, model.name, case, moved, ceiling, 1, ours, error, 0.0, rivals, can_be_captured=False
        )  # fmt: skip


def _error(mine: Tensor, exact: Tensor) -> float:
    """The largest of an element, relative to the largest there is; NaN where anything is NaN."""
    return float((mine.float() - exact).abs().max() / exact.abs().max())

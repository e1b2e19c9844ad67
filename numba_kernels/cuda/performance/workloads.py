"""What each kernel has to do for a real model's step: the least bytes, the operations, the launch's shape."""

from dataclasses import dataclass

from numba_kernels.cuda.block_copy import copy_blocks_kernel, num_chunks
from numba_kernels.cuda.decode import DecodeVariant, decode_kernel, grid_blocks
from numba_kernels.cuda.decode_merge import HEADS, WARPS, merge_splits_kernel
from numba_kernels.cuda.decode_plan import SPLIT_TOKENS
from numba_kernels.cuda.performance.machine import Machine
from numba_kernels.cuda.performance.pipes import WARP
from numba_kernels.cuda.prefill import prefill_kernel
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.rms_norm import RmsNormVariant, rms_norm_kernel
from numba_kernels.cuda.rope_kv_write import RopeVariant, rope_kv_write_kernel
from numba_kernels.cuda.silu_and_mul import num_chunks as silu_chunks
from numba_kernels.cuda.silu_and_mul import silu_and_mul_kernel
from numba_kernels.cuda.target import Kernel

PREFILL_CHUNK = 2048
BATCHES = (1, 8, 64, 256)
CONTEXTS = (128, 1024, 8192, 32768)
_ELEMENT_BYTES = 2
_TOKENS_PER_TILE = 16
_COPIED_BLOCKS = 64
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes, from its published configuration."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norms_heads: bool = False  # of q and k

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """In one layer."""
        return 2 * self.num_kv_heads * self.head_dim * _ELEMENT_BYTES

    @property
    def layer_weight_bytes(self) -> int:
        """Of the products of one layer."""
        qkv = self.hidden_size * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        out = self.num_heads * self.head_dim * self.hidden_size
        return (qkv + out + 3 * self.hidden_size * self.intermediate_size) * _ELEMENT_BYTES

    @property
    def step_weight_bytes(self) -> int:
        """What a decode step reads: every layer, and the product with the vocabulary."""
        return self.num_layers * self.layer_weight_bytes + self.vocab_size * self.hidden_size * _ELEMENT_BYTES


SHAPES = (
    ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, norms_heads=True),
    ModelShape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256),
    ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One launch. A unit of work is what a block of threads does between two looks at what is next."""

    kernel: Kernel
    model: str
    batch: int
    context: int  # 0 where it does not matter
    calls: int  # in a step
    num_bytes: int  # that have to be read and written, each once
    num_flops: int  # on tensor cores
    num_blocks: int  # of threads, in the grid
    num_units: int
    loop_bytes: float  # that a warp loads in the main loop for a unit; how many iterations that is, the code tells
    l2_bytes: int = 0  # that are loaded, again and again, from the second-level cache
    from_l2: bool = False  # whether most of what it reads is in the second-level cache


def fits(shape: ModelShape, batch: int, context: int, machine: Machine) -> bool:
    """Whether weights and cache fit into the GPU's memory."""
    return (
        shape.step_weight_bytes + shape.num_layers * batch * context * shape.kv_bytes_per_token < machine.memory_bytes
    )


def attention(shape: ModelShape, batch: int, context: int, machine: Machine) -> list[Workload]:
    """A decode step's launches whose work grows with the context."""
    merge = [_merge(shape, batch, context)] if context > SPLIT_TOKENS else []
    return [_decode(shape, batch, context, machine), *merge]


def between(shape: ModelShape, batch: int) -> list[Workload]:
    """A decode step's other launches of ours, between the matrix products."""
    return [_norm(shape, batch), _rope(shape, batch), _silu(shape, batch)]


def prefill(shape: ModelShape, context: int) -> Workload:
    """One chunk of a prompt: the last `PREFILL_CHUNK` tokens of `context`."""
    variant = PrefillVariant(shape.head_dim)
    rows = PREFILL_CHUNK * shape.group_size
    units = -(-rows // variant.tile_rows) * shape.num_kv_heads
    keys = context - PREFILL_CHUNK // 2  # that a query sees, on average
    key_bytes = shape.kv_bytes_per_token // shape.num_kv_heads  # with its value, in one head
    query = PREFILL_CHUNK * shape.num_heads * shape.head_dim
    return Workload(
        prefill_kernel(variant),
        shape.name,
        1,
        context,
        shape.num_layers,
        context * shape.kv_bytes_per_token + 2 * query * _ELEMENT_BYTES,
        4 * query * keys,
        units,
        units,
        keys * key_bytes / variant.work_shape.num_warps,
        l2_bytes=units * keys * key_bytes,
        from_l2=True,  # a kv head's row tiles go through the same keys at about the same time
    )


def copies(shape: ModelShape) -> Workload:
    """Copy-on-write of some blocks."""
    kernel, row = copy_blocks_kernel(), shape.num_layers * _BLOCK_SIZE * shape.kv_bytes_per_token
    blocks = num_chunks(row) * _COPIED_BLOCKS
    return Workload(kernel, shape.name, _COPIED_BLOCKS, 0, 1, 2 * row * _COPIED_BLOCKS, 0, blocks, blocks, 0)


def _norm(shape: ModelShape, batch: int) -> Workload:
    variant = RmsNormVariant(shape.hidden_size, residual=True)
    blocks = -(-batch // variant.rows_per_block)
    moved = 4 * batch * shape.hidden_size * _ELEMENT_BYTES  # x and residual read, both written
    calls = 2 * shape.num_layers
    return Workload(rms_norm_kernel(variant), shape.name, batch, 0, calls, moved, 0, blocks, blocks, 0, from_l2=True)


def _rope(shape: ModelShape, batch: int) -> Workload:
    variant = RopeVariant(shape.head_dim, norm=shape.norms_heads)
    blocks = batch * variant.num_blocks(shape.num_heads, shape.num_kv_heads)
    moved = 2 * batch * (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim * _ELEMENT_BYTES
    calls = shape.num_layers
    return Workload(
        rope_kv_write_kernel(variant), shape.name, batch, 0, calls, moved, 0, blocks, blocks, 0, from_l2=True
    )


def _decode(shape: ModelShape, batch: int, context: int, machine: Machine) -> Workload:
    variant = DecodeVariant(shape.head_dim, wide_group=shape.group_size > HEADS)
    num_work = batch * -(-context // SPLIT_TOKENS)
    grid = grid_blocks(variant, num_work, shape.num_kv_heads, machine.num_sms)
    query = batch * shape.num_heads * shape.head_dim
    partial = num_work * shape.num_heads * shape.head_dim * 4 if context > SPLIT_TOKENS else 0
    tile_bytes = _TOKENS_PER_TILE * shape.kv_bytes_per_token // shape.num_kv_heads
    units = num_work * shape.num_kv_heads * (2 if variant.wide_group else 1)
    return Workload(
        decode_kernel(variant),
        shape.name,
        batch,
        context,
        shape.num_layers,
        batch * context * shape.kv_bytes_per_token + 2 * query * _ELEMENT_BYTES + partial,
        4 * query * context,
        grid * shape.num_kv_heads,
        units,
        -(-min(context, SPLIT_TOKENS) // (_TOKENS_PER_TILE * WARPS)) * (tile_bytes + WARP * 4),  # and a block id
    )


def _merge(shape: ModelShape, batch: int, context: int) -> Workload:
    splits = -(-context // SPLIT_TOKENS)
    query, units = batch * shape.num_heads * shape.head_dim, batch * shape.num_heads
    kernel, moved = merge_splits_kernel(shape.head_dim, "bf16"), query * (4 * splits + _ELEMENT_BYTES)
    return Workload(
        kernel, shape.name, batch, context, shape.num_layers, moved, 0, units, units, splits * WARP * 12, from_l2=True
    )


def _silu(shape: ModelShape, batch: int) -> Workload:
    blocks = batch * silu_chunks(shape.intermediate_size)
    moved = 3 * batch * shape.intermediate_size * _ELEMENT_BYTES
    kernel = silu_and_mul_kernel("bf16")
    return Workload(kernel, shape.name, batch, 0, shape.num_layers, moved, 0, blocks, blocks, 0, from_l2=True)

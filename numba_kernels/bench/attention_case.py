"""One batch over a paged cache on a device, and everyone who can attend to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from numba_kernels.bench.shapes import BLOCK_SIZE, AttentionCase
from numba_kernels.bench.timing import Step
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.layout import KVLayout

NUM_WORKSPACE_BYTES = 256 << 20  # FlashInfer's
MAX_LAYERS = 512


@dataclass(frozen=True, slots=True, eq=False)
class AttentionData:
    """Random keys and values in scattered blocks of several layers; a call uses one layer, as a model does."""

    case: AttentionCase
    q: Tensor  # [num_tokens, num_heads, head_dim]
    kv_cache: Tensor
    blocks: Tensor  # int64 [num_seqs, blocks per sequence], beside the cache
    block_tables: Tensor  # the same as int32, on the CPU, as are those below
    slot_mapping: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor

    @property
    def num_layers(self) -> int:
        return self.kv_cache.shape[1]

    @property
    def scale(self) -> float:
        return float(self.case.model.head_dim**-0.5)

    def gather(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of every sequence, each [num_seqs, num_kv_heads, seq_len, head_dim]."""
        blocks = self.kv_cache[:, layer][self.blocks]
        k, v = (blocks[:, :, i].transpose(1, 2).flatten(2, 3)[:, :, : self.case.seq_len] for i in (0, 1))
        return k, v

    def sdpa(self, k: Tensor, v: Tensor) -> Tensor:
        """torch's attention over gathered keys and values: [num_seqs, num_heads, num_queries, head_dim]."""
        case = self.case
        q = self.q.view(case.num_seqs, case.num_queries, case.model.num_heads, case.model.head_dim).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(
            q.to(k.dtype), k, v, attn_mask=self._mask(q.device), is_causal=case.num_queries == case.seq_len,
            scale=self.scale, enable_gqa=True,
        )  # fmt: skip

    def _mask(self, device: torch.device) -> Tensor | None:
        case = self.case
        if case.num_queries in (1, case.seq_len):
            return None
        position = torch.arange(case.seq_len, device=device)
        return position <= position[case.seq_len - case.num_queries :, None]

    def rows(self, attended: Tensor) -> Tensor:
        """`sdpa`'s result in the order of q."""
        return attended.transpose(1, 2).reshape(self.q.shape)

    def rows_of(self, x: Tensor, s: int) -> Tensor:
        """One sequence's part of q or of its like."""
        return x[s * self.case.num_queries : (s + 1) * self.case.num_queries]


def make_attention_data(
    case: AttentionCase, device: torch.device, dtype: torch.dtype, *, min_bytes: int, seed: int = 0
) -> AttentionData:
    """As many layers as it takes to hold `min_bytes` of keys and values, at least two."""
    num_layers = min(max(2, -(-min_bytes // case.kv_bytes)), MAX_LAYERS)
    generator = torch.Generator(device).manual_seed(seed)
    per_seq = case.num_blocks // case.num_seqs
    size = (case.num_blocks + 1, num_layers, 2, case.model.num_kv_heads, BLOCK_SIZE, case.model.head_dim)
    kv_cache = torch.empty(size, dtype=dtype, device=device).normal_(generator=generator)
    num_tokens = case.num_seqs * case.num_queries
    q = torch.randn(
        num_tokens, case.model.num_heads, case.model.head_dim, generator=generator, device=device, dtype=torch.float32
    ).to(dtype)
    order = torch.randperm(case.num_blocks, generator=torch.Generator().manual_seed(seed))
    tables = 1 + order.view(case.num_seqs, per_seq).int()
    last = torch.arange(case.seq_len - case.num_queries, case.seq_len)
    slots = tables[:, last // BLOCK_SIZE].long() * BLOCK_SIZE + last % BLOCK_SIZE
    bounds = torch.arange(0, num_tokens + 1, case.num_queries, dtype=torch.int32)
    lens = torch.full((case.num_seqs,), case.seq_len, dtype=torch.int32)
    return AttentionData(case, q, kv_cache, tables.long().to(device), tables, slots.flatten(), bounds, lens)


def one_sequence(data: AttentionData, s: int) -> AttentionData:
    """The same with one of its sequences."""
    return replace(data, case=replace(data.case, num_seqs=1), q=data.rows_of(data.q, s))


def ours(data: AttentionData, kernels: CudaKernels) -> tuple[Step, Tensor]:
    """Our kernels, and where they put their result."""
    metadata = kernels.attention_metadata(data.block_tables, data.slot_mapping, data.cu_seqlens_q, data.seq_lens)
    out = torch.full_like(data.q, float("nan"))

    def step(layer: int) -> None:
        kernels.paged_attention(
            data.q, data.kv_cache, layer, metadata, scale=data.scale, layout=KVLayout.STANDARD, out=out
        )

    return step, out


def _sdpa(data: AttentionData, _kernels: CudaKernels) -> Step:
    gathered = data.gather(0)
    return lambda _: data.sdpa(*gathered)


def _gather_and_sdpa(data: AttentionData, _kernels: CudaKernels) -> Step:
    return lambda layer: data.sdpa(*data.gather(layer))


def _triton(data: AttentionData, kernels: CudaKernels) -> Step:
    if data.case.num_queries != 1:
        raise NotImplementedError("the Triton baseline is for decode only")
    # Here, not at the top: where Triton is not installed, everyone else still runs.
    from numba_kernels.bench.triton_decode import TritonDecode

    tables, lens = (x.to(data.q.device) for x in (data.block_tables, data.seq_lens))
    num_sms = kernels.launcher.properties.num_sms
    attend = TritonDecode(data.q, data.kv_cache, tables, lens, data.case.seq_len, num_sms)
    out = torch.empty_like(data.q)
    return lambda layer: attend(data.q, data.kv_cache, layer, data.scale, out)


def _flashinfer(data: AttentionData, _kernels: CudaKernels) -> Step:
    import flashinfer

    case, device = data.case, data.q.device
    workspace = torch.empty(NUM_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    per_seq = case.num_blocks // case.num_seqs
    bounds = torch.arange(0, case.num_blocks + 1, per_seq, dtype=torch.int32, device=device)
    blocks = data.block_tables.flatten().to(device)
    last = torch.full((case.num_seqs,), (case.seq_len - 1) % BLOCK_SIZE + 1, dtype=torch.int32, device=device)
    heads = (case.model.num_heads, case.model.num_kv_heads, case.model.head_dim, BLOCK_SIZE)
    wrapper: Any
    if case.num_queries == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        wrapper.plan(bounds, blocks, last, *heads, q_data_type=data.q.dtype, kv_data_type=data.q.dtype)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        queries = data.cu_seqlens_q.to(device)
        wrapper.plan(queries, bounds, blocks, last, *heads, causal=True, q_data_type=data.q.dtype)
    return lambda layer: wrapper.run(data.q, (data.kv_cache[:, layer, 0], data.kv_cache[:, layer, 1]))


RIVALS: dict[str, Callable[[AttentionData, CudaKernels], Step]] = {
    "torch SDPA, gathered": _sdpa,
    "torch gather + SDPA": _gather_and_sdpa,
    "triton": _triton,
    "flashinfer": _flashinfer,
}

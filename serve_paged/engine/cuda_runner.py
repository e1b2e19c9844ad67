"""Decode steps as captured graphs, one per bucket of sequences; everything else operation by operation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from numba_kernels.cuda.decode_buffers import DecodeBuffers
from numba_kernels.cuda.decode_plan import SPLIT_TOKENS
from numba_kernels.cuda.kernels import CudaKernels
from serve_paged.core.schedule_output import SchedulerOutput
from serve_paged.engine.decode_inputs import DecodeInputs, decode_inputs, is_decode
from serve_paged.engine.device import empty_logits
from serve_paged.engine.graphs import Graphs, Replay
from serve_paged.engine.kv_cache import KVCache
from serve_paged.engine.model_runner import EagerRunner, StepLogits
from serve_paged.model.decoder import Decoder

PROGRESS_AFTER_S = 2.0  # shorter captures show no bar


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of sequences that a graph is captured for, ascending; the largest is `max_num_seqs`.

    A decode step's time is that of reading weights and keys: up to 7 rows of padding add next to nothing.
    """
    sizes = (1, 2, 4, *range(8, max_num_seqs, 8))
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A captured step of up to so many sequences, and where it reads which ones."""

    buffers: DecodeBuffers
    replay: Replay


class CudaRunner:
    """A `ModelRunner` on a GPU, or on a simulated one. Owns the memory that its graphs read and write.

    A replay gives to the bit what the same operations give one by one over the same padded batch. The last bits of a
    sequence's logits may depend on the bucket, and on whether a token went through a graph or through a mixed step:
    cuBLAS chooses how to add up a matrix product by its number of rows. Attention and the other kernels do not.
    """

    @torch.inference_mode()
    def __init__(
        self,
        eager: EagerRunner,
        decoder: Decoder,
        kv_cache: KVCache,
        graphs: Graphs,
        *,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """Capture every bucket, the largest first: `max_num_seqs` of at most `max_model_len` tokens.

        `eager`, which is warm, runs all other steps.
        """
        kernels = decoder.kernels
        assert isinstance(kernels, CudaKernels)
        self._eager, self._decoder, self._kernels, self._kv_cache = eager, decoder, kernels, kv_cache
        self._max_model_len = max_model_len
        self._logits = empty_logits(max_num_seqs, decoder.config.vocab_size, kernels.device)
        self._samples = torch.zeros(max_num_seqs, dtype=torch.int64, device=kernels.device)
        self._sizes = decode_buckets(max_num_seqs)
        progress = tqdm(self._sizes[::-1], desc="capturing decode graphs", unit="graph", delay=PROGRESS_AFTER_S)
        self._buckets = {num_seqs: self._capture(num_seqs, graphs) for num_seqs in progress}

    @torch.inference_mode()
    def run(self, output: SchedulerOutput, samples: Tensor | None = None) -> StepLogits:
        """As in `ModelRunner`."""
        if is_decode(output):
            inputs = decode_inputs(output.scheduled, self._kv_cache.block_size)
            bucket = self._bucket_of(inputs)
            if bucket is not None:
                return self._replay(bucket, inputs, output, samples)
        return self._eager.run(output, samples)

    def _replay(
        self, bucket: _Bucket, inputs: DecodeInputs, output: SchedulerOutput, samples: Tensor | None
    ) -> StepLogits:
        if samples is not None:
            self._samples[: len(samples)].copy_(samples)
        bucket.buffers.update(
            inputs.block_tables,
            inputs.slot_mapping,
            inputs.seq_lens,
            inputs.positions,
            inputs.input_ids,
            inputs.sampled_rows,
        )
        bucket.replay()
        rows = {row: row for row, scheduled in enumerate(output.scheduled) if scheduled.needs_token}
        return StepLogits(self._logits[: len(output.scheduled)], rows, {})

    def _bucket_of(self, inputs: DecodeInputs) -> _Bucket | None:
        """The smallest that has room. None: together the sequences are longer than a graph has room for."""
        num_seqs = len(inputs.seq_lens)
        bucket = self._buckets[next(size for size in self._sizes if size >= num_seqs)]
        return bucket if bucket.buffers.fits(inputs.seq_lens) else None

    def _capture(self, num_seqs: int, graphs: Graphs) -> _Bucket:
        """A step of `num_seqs` sequences, captured while none of them is there."""
        blocks, block_size = self._kv_cache.blocks, self._kv_cache.block_size
        most_per_seq = -(-self._max_model_len // SPLIT_TOKENS)
        most_in_cache = blocks.shape[0] * block_size // SPLIT_TOKENS + num_seqs  # unless they share blocks
        buffers = self._kernels.decode_buffers(
            num_seqs,
            self._max_model_len,
            block_size,
            windows=set(self._decoder.config.sliding_windows),
            max_splits=min(num_seqs * most_per_seq, most_in_cache),
        )
        nobody = decode_inputs([], block_size)
        buffers.update(nobody.block_tables, nobody.slot_mapping, nobody.seq_lens, nobody.positions, nobody.input_ids)

        def step() -> None:
            buffers.take_sampled(self._samples)
            hidden = self._decoder.forward(
                buffers.input_ids,
                buffers.positions,
                blocks,
                buffers.metadata,
                self._kv_cache.layout,
                self._kv_cache.scales,
            )
            self._decoder.logits(hidden, out=self._logits[:num_seqs])

        return _Bucket(buffers, graphs.capture(step))

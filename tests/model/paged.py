"""Running a decoder over a paged cache whose blocks are in random order."""

import torch

from numba_kernels import KVLayout, attention_metadata
from serve_paged.model.loader import LoadedModel

BLOCK_SIZE = 16


class PagedCache:
    """A KV cache and the block tables of some sequences, all of the same longest length."""

    def __init__(self, model: LoadedModel, *, num_seqs: int, max_len: int) -> None:
        config = model.config
        blocks_per_seq = -(-max_len // BLOCK_SIZE)
        num_blocks = 1 + num_seqs * blocks_per_seq
        shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(7)) + 1
        self._model = model
        self._kv_cache = torch.zeros(shape, dtype=model.decoder.dtype)
        self._block_tables = order.view(num_seqs, blocks_per_seq).int()
        self._lengths = [0] * num_seqs

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]]) -> list[torch.Tensor]:
        """Append tokens to sequences in one batch; return each one's logits, [num_tokens, vocab_size]."""
        seqs, counts = list(chunks), [len(chunk) for chunk in chunks.values()]
        positions = [torch.arange(self._lengths[s], self._lengths[s] + n) for s, n in zip(seqs, counts, strict=True)]
        slots = [
            self._block_tables[s].long()[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE
            for s, where in zip(seqs, positions, strict=True)
        ]
        for s, n in zip(seqs, counts, strict=True):
            self._lengths[s] += n
        metadata = attention_metadata(
            self._block_tables[seqs],
            torch.cat(slots),
            torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32),
            torch.tensor([self._lengths[s] for s in seqs], dtype=torch.int32),
        )
        tokens = torch.tensor([token for chunk in chunks.values() for token in chunk])
        decoder = self._model.decoder
        hidden = decoder.forward(tokens, torch.cat(positions), self._kv_cache, metadata, KVLayout.STANDARD)
        return list(decoder.logits(hidden).split(counts))


def run_in_chunks(model: LoadedModel, tokens: list[int], chunk_size: int) -> torch.Tensor:
    """Feed one sequence `chunk_size` tokens at a time: logits [len(tokens), vocab_size]."""
    cache = PagedCache(model, num_seqs=1, max_len=len(tokens))
    starts = range(0, len(tokens), chunk_size)
    return torch.cat([cache.step({0: tokens[start : start + chunk_size]})[0] for start in starts])

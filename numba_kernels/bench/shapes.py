"""What is measured on a GPU: layers of published models, batches of decode and prefill, how many bytes each moves.

Figures of the models: their config.json on Hugging Face (named in serve_paged/model/named_shapes.py).
"""

from dataclasses import dataclass

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One layer of a model, as the kernels see it."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def group_size(self) -> int:
        """Heads that share a kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one layer, 16-bit elements."""
        return 2 * self.num_kv_heads * self.head_dim * 2


MODELS = (
    ModelShape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256),
    ModelShape("llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256),
    ModelShape("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936),
    ModelShape("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152),
)


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Equal sequences, each with the last `num_queries` of its `seq_len` tokens as queries."""

    model: ModelShape
    num_seqs: int
    seq_len: int
    num_queries: int

    @property
    def name(self) -> str:
        kind = "decode" if self.num_queries == 1 else f"prefill {self.num_queries} of"
        return f"{kind} {self.num_seqs} x {self.seq_len}"

    @property
    def num_blocks(self) -> int:
        """Of all sequences together."""
        return self.num_seqs * -(-self.seq_len // BLOCK_SIZE)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one layer that have to be read."""
        return self.num_seqs * self.seq_len * self.model.kv_bytes_per_token

    @property
    def num_bytes(self) -> int:
        """The fewest that one call can move: keys and values, queries, results."""
        rows = self.num_seqs * self.num_queries * self.model.num_heads * self.model.head_dim
        return self.kv_bytes + 2 * rows * 2

    @property
    def num_flops(self) -> int:
        """Of both products over what causal queries see."""
        hidden = self.num_queries * (self.num_queries - 1) // 2
        seen = self.num_seqs * (self.num_queries * self.seq_len - hidden)
        return 4 * seen * self.model.num_heads * self.model.head_dim


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    models: tuple[ModelShape, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prefills: tuple[tuple[int, int, int], ...]  # num_seqs, seq_len, num_queries
    rows: tuple[int, ...]  # tokens of the operations between the matrix products
    max_kv_bytes: int  # of one layer


FULL = Extent(
    MODELS,
    (1, 8, 32, 64, 128, 256),
    (128, 1024, 4096, 8192, 32768),
    ((1, 512, 512), (1, 2048, 2048), (1, 8192, 8192), (1, 8192, 512), (4, 2048, 512), (16, 512, 512)),
    (1, 64, 256, 2048),
    4 << 30,
)
QUICK = Extent(
    (MODELS[0], MODELS[3]),
    (1, 64, 256),
    (128, 1024, 8192),
    ((1, 2048, 2048), (1, 8192, 512), (4, 2048, 512)),
    (1, 64, 2048),
    2 << 30,
)


def attention_cases(extent: Extent) -> list[AttentionCase]:
    """Decode, smallest first, then prefill; without those whose keys and values are larger than the extent allows."""
    decode = [
        AttentionCase(model, num_seqs, seq_len, 1)
        for model in extent.models
        for num_seqs in extent.batches
        for seq_len in extent.contexts
    ]
    prefill = [AttentionCase(model, *batch) for model in extent.models for batch in extent.prefills]
    return [case for case in (*decode, *prefill) if case.kv_bytes <= extent.max_kv_bytes]

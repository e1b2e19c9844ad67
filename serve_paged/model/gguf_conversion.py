"""Converting a GGUF file into a model folder: the tokenizer by transformers, config and weights here.

transformers itself reads GGUF weights only through another package (accelerate) and all at once; here they pass one by
one. Imports transformers: import it only to convert.
"""

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import GenerationConfig

from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.gguf_config import ROPE_FACTORS, read_gguf_config, read_gguf_field
from serve_paged.model.gguf_tokenizer import end_token_ids, load_gguf_tokenizer
from serve_paged.model.weight_files import INDEX_FILE

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MAX_SHARD_BYTES = 4 * 1024**3


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 weights (exactly those that the quantised ones stand for) into `folder`.

    Raises `UnsupportedModel` for an architecture or a tensor that the decoder does not have.
    """
    with tqdm(desc=f"converting {gguf_file.name}, once: reading", unit="tensor") as progress:
        reader = GGUFReader(gguf_file)
        config = read_gguf_config(reader)
        progress.set_description(f"converting {gguf_file.name}, once: tokenizer")
        tokenizer = load_gguf_tokenizer(gguf_file, reader, model_max_length=config.max_position_embeddings)
        tokenizer.save_pretrained(folder)
        config.eos_token_id = end_token_ids(tokenizer, read_gguf_field(reader, "tokenizer.ggml.eot_token_id"))
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        progress.set_description(f"converting {gguf_file.name}, once: weights")
        _write_weights(reader, config, folder, progress)


def _write_weights(reader: GGUFReader, config: Any, folder: Path, progress: Any) -> None:
    """Dequantise tensor by tensor into shards, so that memory holds one shard at most."""
    writer = _ShardWriter(folder)
    tensors = [tensor for tensor in reader.tensors if tensor.name != ROPE_FACTORS]
    progress.reset(total=len(tensors))
    for tensor in tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if config.model_type == "llama" and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
            num_heads = config.num_attention_heads if ".attn_q." in tensor.name else config.num_key_value_heads
            weight = _halves_first(weight, num_heads)
        writer.add(_weight_name(tensor.name), weight)
        progress.update()
    writer.close()


class _ShardWriter:
    """Writes weights to safetensors files of limited size, and the index that names the file of each weight."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: dict[str, torch.Tensor] = {}
        self._num_bytes = 0
        self._file_of: dict[str, str] = {}

    def add(self, name: str, weight: torch.Tensor) -> None:
        """Take one weight, writing the shard if it is full."""
        self._shard[name] = weight
        self._num_bytes += weight.nbytes
        if self._num_bytes > MAX_SHARD_BYTES:
            self._write_shard()

    def close(self) -> None:
        """Write what is left, and the index."""
        if self._shard:
            self._write_shard()
        index = {"metadata": {}, "weight_map": self._file_of}
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _write_shard(self) -> None:
        file_name = f"model-{len(set(self._file_of.values())) + 1:05d}.safetensors"
        save_file(self._shard, self._folder / file_name, metadata={"format": "pt"})
        self._file_of |= dict.fromkeys(self._shard, file_name)
        self._shard = {}
        self._num_bytes = 0


def _halves_first(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of rows for Llama, which pairs dimension i of a head with i + 1, not i + head_dim / 2."""
    by_pair = weight.view(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return by_pair.transpose(1, 2).reshape(weight.shape)


def _weight_name(gguf_name: str) -> str:
    """Translate a tensor's name into that of transformers."""
    if gguf_name in TOP_NAMES:
        return TOP_NAMES[gguf_name]
    block, _, rest = gguf_name.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    if not gguf_name.startswith("blk.") or part not in BLOCK_NAMES:
        raise UnsupportedModel(f"unsupported tensor in a GGUF file: {gguf_name}")
    return f"model.layers.{block}.{BLOCK_NAMES[part]}.{kind}"

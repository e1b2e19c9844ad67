"""Tiny GGUF files, written the way llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from serve_paged.model.gguf_conversion import BLOCK_NAMES, TOP_NAMES
from tests.model.checkpoints import VOCAB_SIZE
from tests.tiny_models import byte_level_tokenizer


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    *,
    pre: str = "smollm",
    rope_factors: list[float] | None = None,
    architecture: str | None = None,
    eos_token: str | None = "<|endoftext|>",
    bos_token: str | None = None,
    rope_scaling: tuple[gguf.RopeScalingType, float, int] | None = None,
) -> None:
    """Write a model of `checkpoints` with a byte-level tokenizer, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture or config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_vocab_size(VOCAB_SIZE)
    if rope_scaling is not None:
        kind, factor, original_length = rope_scaling
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(original_length)
    tokens = _write_tokenizer(writer, pre)
    if eos_token is not None:
        writer.add_eos_token_id(tokens.index(eos_token))
    if bos_token is not None:
        writer.add_bos_token_id(tokens.index(bos_token))
        writer.add_add_bos_token(True)
    _write_weights(writer, model)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, pre: str) -> list[str]:
    tokenizer = byte_level_tokenizer()
    by_id = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    tokens = by_id + [f"<extra_{i}>" for i in range(VOCAB_SIZE - len(by_id))]
    special = [token.startswith("<") and len(token) > 1 for token in tokens]
    kinds = [gguf.TokenType.CONTROL if is_special else gguf.TokenType.NORMAL for is_special in special]
    tokens[-1], kinds[-1] = "ĠĠ", gguf.TokenType.NORMAL  # one merge: two spaces
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_chat_template("{{ messages[0]['content'] }}")
    return tokens


def _write_weights(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    names = {ours: theirs for theirs, ours in (TOP_NAMES | BLOCK_NAMES).items()}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name in names:
            gguf_name = names[name]
        else:
            _, _, block, rest = name.split(".", 3)
            part, kind = rest.rsplit(".", 1)
            gguf_name = f"blk.{block}.{names[part]}.{kind}"
        if model.config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = _pairs_first(weight, model.config, "q_proj" in name)
        writer.add_tensor(gguf_name, weight.float().contiguous().numpy())


def _pairs_first(weight: torch.Tensor, config: object, queries: bool) -> torch.Tensor:
    """Order rows as llama.cpp's `permute` does for Llama: dimension i of a head next to i + head_dim / 2."""
    num_heads = getattr(config, "num_attention_heads" if queries else "num_key_value_heads")
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)

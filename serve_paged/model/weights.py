"""The weights of a model folder: safetensors files, memory-mapped, checked against the config, read by name."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open

from serve_paged.model.config import ModelConfig
from serve_paged.model.errors import InvalidWeights
from serve_paged.model.weight_files import some, weight_files


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name every weight that a model of this config has, with its shape. Names are those of transformers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    products = (
        ("self_attn.q_proj", q_size, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q_size, config.o_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    )
    for name, num_out, num_in, bias in products:
        layer[f"{name}.weight"] = (num_out, num_in)
        if bias:
            layer[f"{name}.bias"] = (num_out,)
    if config.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (config.head_dim,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


class WeightReader:
    """Reads weights by name from memory-mapped files, straight into tensors of the wanted dtype and device."""

    def __init__(self, folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Open the files and compare names and shapes with the config. Raises `InvalidWeights`."""
        self._dtype = dtype
        self._device = device
        self._files = [safe_open(file, framework="pt") for file in weight_files(folder)]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118  (not a dict)
        _check(self._file_of, weight_shapes(config), folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file_of.clear()
        self._files.clear()  # unmaps

    def read(self, *names: str) -> torch.Tensor:
        """Return the named weights, joined along the first dimension: a copy, no view of the file."""
        parts = [self._file_of[name].get_tensor(name) for name in names]
        num_rows = sum(part.shape[0] for part in parts)
        joined = torch.empty((num_rows, *parts[0].shape[1:]), dtype=self._dtype, device=self._device)
        for target, part in zip(joined.split([part.shape[0] for part in parts]), parts, strict=True):
            target.copy_(part)
        return joined


def _check(file_of: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    missing = [name for name in expected if name not in file_of]
    unexpected = [name for name in file_of if name not in expected and not _is_redundant(name)]
    wrong = []
    for name in expected.keys() & file_of.keys():
        shape = tuple(file_of[name].get_slice(name).get_shape())
        if shape != expected[name]:
            wrong.append(f"{name} is {list(shape)}, not {list(expected[name])}")
    problems = {"missing": missing, "unexpected": unexpected, "mis-shaped": sorted(wrong)}
    found = [f"{kind}: {some(names)}" for kind, names in problems.items() if names]
    if found:
        raise InvalidWeights(f"weights in {folder} do not fit config.json; {'; '.join(found)}")


def _is_redundant(name: str) -> bool:
    """Old Llama files hold the RoPE frequencies too; a tied head may be stored a second time."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"

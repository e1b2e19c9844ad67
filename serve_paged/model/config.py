"""The shape of a model, read from its config.json and generation_config.json. Knows no tensor.

The files are read directly, since importing transformers takes longer than loading a small model. Defaults of absent
keys are those of the transformers config classes; a test compares the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_paged.model.errors import UnsupportedModel

REQUIRED_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What distinguishes one supported architecture from the others where config.json does not say."""

    model_type: str
    defaults: Mapping[str, Any]  # of keys that config.json leaves out
    always_qkv_bias: bool = False
    qk_norm: bool = False


_QWEN_DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "max_window_layers": 28}
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", {"max_position_embeddings": 2048, "eos_token_id": 2}),
    "MistralForCausalLM": Architecture(
        "mistral",
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
    ),
    "Qwen2ForCausalLM": Architecture("qwen2", {**_QWEN_DEFAULTS, "sliding_window": 4096}, always_qkv_bias=True),
    "Qwen3ForCausalLM": Architecture(
        "qwen3", {**_QWEN_DEFAULTS, "sliding_window": 4096, "head_dim": 128}, qk_norm=True
    ),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the decoder needs to know besides the weights."""

    architecture: str  # a key of ARCHITECTURES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]  # per layer; None attends to everything before
    rope_parameters: Mapping[str, Any]  # rope_type, rope_theta and what the type needs, as in transformers
    eos_token_ids: tuple[int, ...]  # any of them ends a text


def read_config(folder: Path) -> ModelConfig:
    """Read config.json and, if there, generation_config.json. Raises `UnsupportedModel` or `FileNotFoundError`."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation_file = folder / "generation_config.json"
    generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
    return parse_config(raw, generation)


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Make a `ModelConfig` of the two files' contents. Raises `UnsupportedModel` for what the decoder cannot run."""
    name = _architecture_name(raw)
    architecture = ARCHITECTURES[name]
    values = {**architecture.defaults, **raw}
    _refuse_unsupported(values)
    num_heads = values["num_attention_heads"]
    llama_bias = bool(values.get("attention_bias", False)) and architecture.model_type in ("llama", "qwen3")
    config = ModelConfig(
        architecture=name,
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=values.get("num_key_value_heads") or num_heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // num_heads,
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        max_position_embeddings=values["max_position_embeddings"],
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        qkv_bias=architecture.always_qkv_bias or llama_bias,
        o_bias=llama_bias,
        mlp_bias=bool(values.get("mlp_bias", False)) and architecture.model_type == "llama",
        qk_norm=architecture.qk_norm,
        sliding_windows=_sliding_windows(architecture.model_type, values),
        rope_parameters=_rope_parameters(values),
        eos_token_ids=_eos_token_ids(generation, values),
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UnsupportedModel(
            f"{config.num_heads} heads over {config.num_kv_heads} KV heads of {config.head_dim} dimensions: "
            "heads must be a multiple of KV heads, and dimensions even"
        )
    return config


def _architecture_name(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    if not names:  # a config saved without its model names only the model type
        names = [name for name, known in ARCHITECTURES.items() if known.model_type == raw.get("model_type")]
    if len(names) == 1 and names[0] in ARCHITECTURES:
        return str(names[0])
    found = ", ".join(names) or raw.get("model_type") or "no architecture named in config.json"
    raise UnsupportedModel(f"unsupported architecture: {found}; supported: {', '.join(ARCHITECTURES)}")


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    missing = [key for key in REQUIRED_KEYS if values.get(key) is None]
    if missing:
        raise UnsupportedModel(f"config.json lacks {', '.join(missing)}")
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"unsupported hidden_act: {activation}; supported: silu")
    if values.get("quantization_config") is not None:
        method = values["quantization_config"].get("quant_method", "unnamed")
        raise UnsupportedModel(f"unsupported quantised weights ({method}); supported: float weights, and GGUF files")


def _sliding_windows(model_type: str, values: Mapping[str, Any]) -> tuple[int | None, ...]:
    num_layers = values["num_hidden_layers"]
    window = values.get("sliding_window")
    if model_type == "mistral":
        return (window,) * num_layers
    if model_type == "llama" or not values.get("use_sliding_window", False):
        return (None,) * num_layers
    layer_types = values.get("layer_types") or [
        "sliding_attention" if layer >= values["max_window_layers"] else "full_attention" for layer in range(num_layers)
    ]
    unknown = set(layer_types) - {"sliding_attention", "full_attention"}
    if unknown or len(layer_types) != num_layers:
        raise UnsupportedModel(f"unsupported layer_types: {len(layer_types)} of {sorted(set(layer_types))}")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope_parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge the older keys (rope_theta, rope_scaling) and the newer one (rope_parameters) into the newer form."""
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    rope_type = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    parameters["rope_type"] = rope_type
    parameters["rope_theta"] = float(parameters.get("rope_theta") or values.get("rope_theta") or 10000.0)
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModel(f"unsupported rope_type: {rope_type}; supported: {', '.join(ROPE_TYPES)}")
    if rope_type == "longrope" and parameters["long_factor"] != parameters["short_factor"]:
        raise UnsupportedModel("unsupported rope_type: longrope whose factors depend on the current length")
    if values.get("partial_rotary_factor", 1.0) != 1.0 or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("unsupported partial_rotary_factor: only whole heads are rotated")
    if rope_type in ("llama3", "yarn", "longrope"):
        outer = values.get("original_max_position_embeddings")
        inner = parameters.get("original_max_position_embeddings")
        parameters["original_max_position_embeddings"] = outer or inner or values["max_position_embeddings"]
    return parameters


def _eos_token_ids(generation: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[int, ...]:
    found: list[int] = []
    for source in (generation, values):
        ids = source.get("eos_token_id")
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))

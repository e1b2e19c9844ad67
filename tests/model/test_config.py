"""Reading config.json: the same values as transformers' config classes, and clear refusals."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from serve_paged.model.config import ARCHITECTURES, parse_config, read_config
from serve_paged.model.errors import UnsupportedModel
from tests.model.checkpoints import save_model

BARE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}


def llama(**settings: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **BARE, **settings}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_absent_keys_take_the_defaults_of_transformers(name: str) -> None:
    model_type = ARCHITECTURES[name].model_type
    ours = parse_config({"architectures": [name], **BARE}, {})
    theirs = AutoConfig.for_model(model_type, **BARE)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 256 // 32)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope_parameters == {"rope_type": "default", "rope_theta": theirs.rope_parameters["rope_theta"]}
    assert ours.sliding_windows == (theirs.sliding_window if model_type == "mistral" else None,) * 4
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


def test_the_older_keys_of_rope_mean_the_same_as_the_newer_one() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    older = parse_config(llama(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling}), {})
    newer = parse_config(llama(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling}), {})
    oldest = parse_config(llama(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling}), {})
    assert older.rope_parameters == newer.rope_parameters == oldest.rope_parameters
    assert newer.rope_parameters["rope_theta"] == 5e5


def test_yarn_without_an_original_length_scales_from_the_models_own() -> None:
    config = parse_config(llama(max_position_embeddings=4096, rope_scaling={"type": "yarn", "factor": 4.0}), {})
    assert config.rope_parameters["original_max_position_embeddings"] == 4096


def test_every_end_token_of_both_files_counts_once() -> None:
    config = parse_config(llama(eos_token_id=[7, 8]), {"eos_token_id": [9, 7]})
    assert config.eos_token_ids == (9, 7, 8)


def test_generation_config_is_read_where_there_is_one(tmp_path: Path) -> None:
    model = save_model(tmp_path, "llama-untied")
    model.generation_config.eos_token_id = [2, 5]
    model.generation_config.save_pretrained(tmp_path)
    assert read_config(tmp_path).eos_token_ids == (2, 5)


def test_a_disabled_sliding_window_of_qwen_is_none() -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], **BARE, "sliding_window": 128, "max_window_layers": 2}
    assert parse_config({**qwen, "use_sliding_window": False}, {}).sliding_windows == (None,) * 4
    assert parse_config({**qwen, "use_sliding_window": True}, {}).sliding_windows == (None, None, 128, 128)


def test_a_config_without_architectures_is_known_by_its_model_type() -> None:
    raw = {key: value for key, value in llama().items() if key != "architectures"}
    assert parse_config(raw, {}).architecture == "LlamaForCausalLM"


def test_another_architecture_is_refused_with_the_list_of_supported_ones() -> None:
    with pytest.raises(UnsupportedModel) as error:
        parse_config({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **BARE}, {})
    assert "MixtralForCausalLM" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}}, "longrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"num_key_value_heads": 5}, "KV heads"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_the_decoder_cannot_run_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        parse_config(llama(**settings), {})

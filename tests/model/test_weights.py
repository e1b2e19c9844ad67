"""Weights from safetensors: sharded or not, checked by name and shape before any is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_paged.model.errors import InvalidWeights
from serve_paged.model.identity import fingerprint
from serve_paged.model.loader import load_model
from tests.model.checkpoints import make_model, save_model
from tests.model.paged import run_in_chunks

TOKENS = list(range(20))


def load(folder: Path) -> None:
    load_model(str(folder), torch.float32)


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace (or with None: remove) weights of a saved model."""
    file = folder / "model.safetensors"
    weights = load_file(file) | {name: weight for name, weight in change.items() if weight is not None}
    save_file({name: w.clone() for name, w in weights.items() if change.get(name, w) is not None}, file)


def test_shards_and_a_single_file_give_the_same_model(tmp_path: Path) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = (load_model(str(tmp_path / name), torch.float32) for name in ("whole", "shards"))
    assert torch.equal(run_in_chunks(whole, TOKENS, 20), run_in_chunks(shards, TOKENS, 20))


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, "llama-untied")
    rewrite(tmp_path, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(InvalidWeights, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


def test_an_unexpected_weight_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, "mistral-full")
    rewrite(tmp_path, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(InvalidWeights, match=r"unexpected: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(tmp_path)


def test_a_mis_shaped_weight_is_named_with_both_shapes(tmp_path: Path) -> None:
    save_model(tmp_path, "llama-untied")
    rewrite(tmp_path, {"model.norm.weight": torch.zeros(32)})
    with pytest.raises(InvalidWeights, match=r"mis-shaped: model\.norm\.weight is \[32\], not \[64\]"):
        load(tmp_path)


def test_a_stored_copy_of_a_tied_head_is_no_error(tmp_path: Path) -> None:
    model = save_model(tmp_path, "llama-tied")
    rewrite(tmp_path, {"lm_head.weight": model.get_input_embeddings().weight.detach().clone()})
    load(tmp_path)


def test_an_index_that_names_an_absent_file_is_an_error(tmp_path: Path) -> None:
    save_model(tmp_path, "llama-untied")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidWeights, match="model-00001-of-00002"):
        load(tmp_path)


def test_a_folder_without_safetensors_is_an_error(tmp_path: Path) -> None:
    save_model(tmp_path, "llama-untied")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidWeights, match="no safetensors file"):
        load(tmp_path)


def test_the_fingerprint_follows_the_contents_and_not_the_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        save_model(tmp_path / name, "llama-untied")
    same = fingerprint(tmp_path / "here")
    assert fingerprint(tmp_path / "there") == same
    weights = load_file(tmp_path / "there" / "model.safetensors")
    rewrite(tmp_path / "there", {"model.norm.weight": weights["model.norm.weight"] + 1})
    assert fingerprint(tmp_path / "there") != same

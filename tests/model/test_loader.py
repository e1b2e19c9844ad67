"""What is refused before any weight is read."""

import json
from pathlib import Path

import pytest
import torch

from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.loader import load_model


def test_heads_that_no_kernel_takes_are_refused_by_their_size(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "intermediate_size": 64, "num_hidden_layers": 1}
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 3200, "num_attention_heads": 32, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="heads of 100 dimensions"):
        load_model(str(tmp_path), torch.float32)

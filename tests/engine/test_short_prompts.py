"""Steps of one or two tokens, where rows are padded: the answer is that of transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.offline import generate
from tests.engine.conftest import EngineFactory


@pytest.mark.parametrize("num_prompt", [1, 2, 3])
def test_a_prompt_of_few_tokens_is_answered_from_its_last(
    num_prompt: int, tiny_engine: EngineFactory, tiny_model_folder: Path
) -> None:
    prompt = list(range(40, 40 + num_prompt))
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    [completion] = generate(tiny_engine(), [prompt], params)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    ids = torch.tensor([prompt + completion.token_ids])
    with torch.inference_mode():
        expected = theirs(ids).logits[0, num_prompt - 1 : -1].argmax(-1).tolist()
    assert completion.token_ids == expected

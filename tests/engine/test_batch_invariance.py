"""In bfloat16, too, a seed gives the same text whatever the batch, the chunks and the cache."""

import pytest
import torch

from serve_paged.config import DEFAULT_MODEL, EngineConfig
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.build import assemble_engine
from serve_paged.engine.engine import Engine
from serve_paged.engine.offline import generate
from serve_paged.model.linear import Linear
from serve_paged.model.loader import LoadedModel, load_model
from tests.engine.real_text import real_prompts


def products_do_not_depend_on_the_number_of_rows() -> bool:
    """Whether this processor's matrix products give a row the same bits among 2 as among 300 rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1536, generator=generator).bfloat16()
    product = Linear(torch.randn(576, 1536, generator=generator).bfloat16())
    whole = product(x)
    return all(torch.equal(product(x[:rows].clone()), whole[:rows]) for rows in (2, 3, 7, 16, 33, 64, 128))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    if not products_do_not_depend_on_the_number_of_rows():
        pytest.skip("the matrix products of this processor depend on the number of rows")
    return load_model(DEFAULT_MODEL, torch.bfloat16)


def engine(model: LoadedModel, budget: int = 512) -> Engine:
    settings = EngineConfig(kv_cache_gb=0.2, max_num_seqs=16, max_num_batched_tokens=budget)
    return assemble_engine(settings, model, torch.bfloat16)


def test_sampled_text_depends_on_its_seed_alone(model: LoadedModel) -> None:
    prompts = real_prompts(engine(model).text_model.tokenizer, 6, longest=120)
    params = [SamplingParams(seed=seed, max_tokens=24, ignore_eos=True) for seed in range(6)]
    alone = [generate(engine(model), [prompt], one)[0].text for prompt, one in zip(prompts, params, strict=True)]
    crowd = engine(model)
    assert [completion.text for completion in generate(crowd, prompts, params)] == alone
    assert [completion.text for completion in generate(crowd, prompts, params)] == alone  # now with prefix hits
    assert crowd.stats().num_cached_tokens > 0
    assert [completion.text for completion in generate(engine(model, budget=23), prompts, params)] == alone

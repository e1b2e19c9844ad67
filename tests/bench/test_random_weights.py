"""Models of a named shape with random weights: no files, the same numbers every time."""

import math

import pytest
import torch

from numba_kernels import CpuKernels
from serve_paged.model.errors import ModelNotFound
from serve_paged.model.named_shapes import NAMED_SHAPES, named_config
from serve_paged.model.random_weights import RandomWeights, load_random
from serve_paged.model.tokenizer import number_tokenizer
from serve_paged.model.weights import weight_shapes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        # As Hugging Face counts them in the published files.
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_a_shape_has_as_many_parameters_as_the_published_model(name: str, num_parameters: int) -> None:
    assert sum(math.prod(shape) for shape in weight_shapes(named_config(name)).values()) == num_parameters


def test_every_shape_is_checked_above() -> None:
    assert set(NAMED_SHAPES) == {"smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "qwen3-8b"}


def weights(seed: int = 0) -> RandomWeights:
    return RandomWeights(named_config("smollm2-135m", num_layers=1), torch.bfloat16, CPU, seed=seed)


def test_a_weight_is_the_same_in_whatever_order_and_company_it_is_read() -> None:
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    first, again = weights(), weights()
    k_alone = again.read(k)
    fused = first.read(q, k)
    assert torch.equal(fused[576:], k_alone)
    assert torch.equal(fused[:576], again.read(q))
    assert not torch.equal(fused[576:], weights(seed=1).read(k))


def test_activations_keep_their_size() -> None:
    down = weights().read("model.layers.0.mlp.down_proj.weight").float()
    assert (torch.randn(8, 1536) @ down.T).std().item() == pytest.approx(1.0, rel=0.1)
    norm = weights().read("model.norm.weight").float()
    assert norm.mean().item() == pytest.approx(1.0, abs=0.05)


def test_the_model_is_named_by_shape_layers_dtype_and_seed() -> None:
    def fingerprint(**settings: int) -> str:
        return load_random("smollm2-135m", torch.bfloat16, kernels=CpuKernels(), **settings).fingerprint

    first = fingerprint(num_layers=1)
    assert first == fingerprint(num_layers=1)
    assert first != fingerprint(num_layers=1, seed=1)


def test_an_unknown_shape_and_no_layers_are_refused() -> None:
    with pytest.raises(ModelNotFound, match="qwen3-8b"):
        named_config("llama-7")
    with pytest.raises(ValueError, match="at least 1"):
        named_config("qwen3-8b", num_layers=0)


def test_the_tokenizer_of_a_model_without_one_writes_numbers() -> None:
    tokenizer = number_tokenizer(50)
    assert tokenizer.decode([3, 49, 0]) == "3 49 0"
    assert tokenizer.encode("3 49 0").ids == [3, 49, 0]

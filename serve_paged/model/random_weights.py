"""Random weights of a named shape, drawn on the device: for measuring speed where no files can be fetched."""

import hashlib

import torch

from numba_kernels import CpuKernels, Kernels
from serve_paged.model.config import ModelConfig
from serve_paged.model.loader import LoadedModel, build_decoder
from serve_paged.model.named_shapes import named_config
from serve_paged.model.weights import weight_shapes


class RandomWeights:
    """Draws each weight by itself, from (seed, its name): the same device gives the same numbers in any order.

    Matrices are normal with variance 1 / inputs, so activations keep their size through any number of layers; norms
    are near 1, biases small.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> None:
        self._shapes = weight_shapes(config)
        self._dtype, self._device, self._seed = dtype, device, seed

    @property
    def names(self) -> tuple[str, ...]:
        """Every weight's name, as transformers calls it."""
        return tuple(self._shapes)

    def read(self, *names: str) -> torch.Tensor:
        """Return the named weights, joined along the first dimension, on the device."""
        shapes = [self._shapes[name] for name in names]
        num_rows = [shape[0] for shape in shapes]
        joined = torch.empty((sum(num_rows), *shapes[0][1:]), dtype=self._dtype, device=self._device)
        for name, target in zip(names, joined.split(num_rows), strict=True):
            self._draw(name, target)
        return joined

    def _draw(self, name: str, target: torch.Tensor) -> None:
        digest = hashlib.blake2b(f"{self._seed} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest, "little"))
        if target.dim() == 2:
            target.normal_(0.0, target.shape[1] ** -0.5, generator=generator)
        else:
            target.normal_(0.0 if name.endswith(".bias") else 1.0, 0.1, generator=generator)


def load_random(
    shape: str,
    dtype: torch.dtype,
    *,
    kernels: Kernels | None = None,
    max_model_len: int | None = None,
    num_layers: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """`load_model` for a name of `named_shapes`: no file is read, and the model has no folder.

    Raises `ModelNotFound` for an unknown name, ValueError for less than one layer.
    """
    kernels = kernels or CpuKernels()
    config = named_config(shape, num_layers=num_layers)
    weights = RandomWeights(config, dtype, kernels.device, seed=seed)
    with torch.inference_mode():
        decoder = build_decoder(config, kernels, weights, max_model_len or config.max_position_embeddings)
    identity = f"{shape} {config.num_layers} {dtype} {kernels.device.type} {seed}"
    return LoadedModel(decoder, config, None, hashlib.blake2b(identity.encode(), digest_size=16).hexdigest())

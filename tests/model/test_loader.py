"""What is refused before any weight is read."""

import json
from pathlib import Path

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.launcher import DeviceProperties
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.loader import load_model


def folder_with_heads_of(head_dim: int, folder: Path) -> str:
    """A model folder of nothing but a config."""
    sizes = {"vocab_size": 300, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 32}
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 32 * head_dim, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_heads_that_no_kernel_takes_are_refused_by_their_size(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="heads of 100 dimensions are not supported on cpu"):
        load_model(folder_with_heads_of(100, tmp_path), torch.float32)


def test_heads_that_only_the_cpu_takes_are_refused_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"heads of 80 .* on cuda; supported: 64, 96, 128, 256"):
        load_model(folder_with_heads_of(80, tmp_path), torch.bfloat16, kernels=CudaKernels(SimulatedLauncher()))


def test_heads_that_are_too_large_for_this_gpu_are_refused(tmp_path: Path) -> None:
    small = DeviceProperties(128, (8, 9), shared_bytes_per_block=99 * 1024)
    kernels = CudaKernels(SimulatedLauncher(properties=small))
    with pytest.raises(UnsupportedModel, match=r"heads of 256 .* on cuda; supported: 64, 96, 128$"):
        load_model(folder_with_heads_of(256, tmp_path), torch.bfloat16, kernels=kernels)

"""From a device's name to its operations."""

import torch

from numba_kernels.cpu.kernels import CpuKernels
from numba_kernels.kernels import Kernels


def kernels_for(device: str | torch.device) -> Kernels:
    """The operations of "cpu", "cuda" (torch's current GPU) or "cuda:n".

    Kernels of a GPU are loaded from `build/cuda-kernels` of this checkout, if there is such a folder (`python -m
    numba_kernels.cuda.prebuild --out build/cuda-kernels`), else compiled at first use by numba-cuda. Raises
    RuntimeError where torch is built without CUDA, sees no GPU, or the GPU is too old; ValueError for another device.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return CpuKernels()
    if device.type != "cuda":
        raise ValueError(f"there are no kernels for device {device}: cpu or cuda")
    # Here, so that on a CPU nothing of CUDA is imported.
    from numba_kernels.cuda.gpu_launcher import open_gpu
    from numba_kernels.cuda.images import default_images
    from numba_kernels.cuda.kernels import CudaKernels

    return CudaKernels(open_gpu(device, default_images()))

"""Which device an engine runs on, and what it may be asked for there."""

import torch

from numba_kernels import CpuKernels, Kernels, kernels_for

MIN_COMPUTE_CAPABILITY = (8, 0)  # the kernels use asynchronous copies and bfloat16 tensor-core products

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_kernels(device: str) -> Kernels:
    """The operations of `device`: "auto", "cpu" or "cuda". Raises `ValueError` saying why "cuda" cannot be had."""
    if device == "cpu":
        return CpuKernels()
    missing = why_no_gpu()
    if not missing:
        return kernels_for("cuda")
    if device == "cuda":
        raise ValueError(f"device: cuda is not possible: {missing}")
    return CpuKernels()


def why_no_gpu() -> str:
    """Why the kernels cannot run on a GPU in this process; empty if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU (in Ray, a replica is given one by num_gpus in its ray_actor_options)"
    capability = torch.cuda.get_device_capability(0)
    if capability < MIN_COMPUTE_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, MIN_COMPUTE_CAPABILITY))
        return f"{torch.cuda.get_device_name(0)} has compute capability {found}, and {needed} is needed"
    return ""


def runs_behind(kernels: Kernels) -> bool:
    """Whether operations are launched rather than done, so that the host has to wait to see a result."""
    return kernels.name != "cpu"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring a CPU tensor there without waiting for a GPU; on the CPU it is the tensor itself."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def empty_logits(num_rows: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Memory for logits, float32 [num_rows, vocab_size], each row at a multiple of 16 bytes, as GPU kernels want it."""
    return torch.empty((num_rows, -(-vocab_size // 4) * 4), dtype=torch.float32, device=device)[:, :vocab_size]


def choose_dtype(name: str, kernels: Kernels) -> torch.dtype:
    """`auto` is what the device is fastest with. Raises `ValueError` for a dtype that its kernels do not take."""
    dtype = kernels.preferred_dtype() if name == "auto" else _DTYPES[name]
    if dtype not in kernels.dtypes:
        possible = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernels.dtypes)
        raise ValueError(f"dtype: {name} is not possible on {kernels.name}; possible: {possible}")
    return dtype


def choose_cache_dtype(name: str, dtype: torch.dtype, kernels: Kernels) -> torch.dtype:
    """Of KV blocks: "auto" is the weights' dtype. Raises `ValueError` for "fp8" where the kernels do not take it."""
    if name == "auto":
        return dtype
    if torch.float8_e4m3fn not in kernels.quantised_dtypes:
        raise ValueError(
            f"kv_cache_dtype: {name} is not possible on {kernels.name}: a GPU of compute capability 8.9 is needed"
        )
    return torch.float8_e4m3fn

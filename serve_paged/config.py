"""The engine's settings: read once, handed to constructors as values. An unknown key is an error."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

DEFAULT_MODEL = "smollm2-135m-instruct"
MAX_BATCHED_TOKENS = 65535  # a CUDA grid's second extent, where norms of heads have their tokens


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Settings that torch reads when it is imported; to be called before. What the user has set stays.

    An idle OpenMP thread spins some 20 µs for the next matrix product, then sleeps. Spinning longer, the default, gains
    no more on idle cores and is up to 20 times slower where anything else wants them; sleeping at once costs a decode
    step a third of its speed (README, and numba_kernels/cpu/threading.py).
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("GOMP_SPINCOUNT", "2000")  # the OpenMP that torch's wheels bring


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that one engine can be told. Raises `ValueError` naming the field that is out of range."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (read by pydantic when the builder validates its args)

    model: str = DEFAULT_MODEL  # the default model, a local folder, a .gguf file, or a Hugging Face id
    served_model_name: str | None = None  # the name clients use; None: the model's own
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU of compute capability 8.0 or more, else the CPU
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: what the device is fastest with
    max_model_len: int | None = None  # tokens of prompt + output; None: the model's own context length
    block_size: int = 16  # tokens per KV block, a multiple of 16
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"  # auto: as `dtype`; fp8: e4m3, half the bytes, on GPUs from 8.9 on
    kv_cache_gb: float | None = None  # memory for KV blocks, GiB; None: what is free on a GPU, 1.0 on the CPU
    gpu_memory_utilization: float = 0.9  # of the GPU's memory: what weights, KV blocks and the largest step may fill
    swap_space_gb: float = 0.5  # host memory for swapped-out blocks, GiB, on a GPU pinned; 0 turns swapping off
    max_num_seqs: int = 64  # sequences in one step
    max_num_batched_tokens: int = 512  # the token budget of one step, at most 65,535
    watermark: float = 0.01  # share of blocks kept free when a sequence is admitted
    prefix_caching: bool = True
    preemption: Literal["auto", "recompute", "swap"] = "auto"  # auto: the cheaper by measured costs
    ageing_s: float = 10.0  # waiting this long raises the effective priority by one
    step_timeout_s: float = 300.0  # a step that takes longer has hung: the replica ends and is replaced
    threads: int | None = None  # CPU threads; None: all cores

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"{field} must be {rule}, got {getattr(self, field)!r}")

        require(bool(self.model), "model", "a name, a folder or a file")
        require(self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda")
        require(self.dtype in ("auto", "float32", "bfloat16", "float16"), "dtype", "auto, float32, bfloat16 or float16")
        require(self.max_model_len is None or self.max_model_len >= 1, "max_model_len", "at least 1")
        require(self.block_size >= 16 and self.block_size % 16 == 0, "block_size", "a multiple of 16")
        require(self.kv_cache_dtype in ("auto", "fp8"), "kv_cache_dtype", "auto or fp8")
        require(self.kv_cache_gb is None or self.kv_cache_gb > 0, "kv_cache_gb", "above 0")
        require(0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization", "above 0, at most 1")
        require(self.swap_space_gb >= 0, "swap_space_gb", "at least 0")
        require(self.max_num_seqs >= 1, "max_num_seqs", "at least 1")
        # Below that the last sequences in line would stand still until others have finished.
        require(self.max_num_batched_tokens >= self.max_num_seqs, "max_num_batched_tokens", "at least max_num_seqs")
        require(self.max_num_batched_tokens <= MAX_BATCHED_TOKENS, "max_num_batched_tokens", "at most 65535")
        require(0 <= self.watermark < 1, "watermark", "in [0, 1)")
        require(self.preemption in ("auto", "recompute", "swap"), "preemption", "auto, recompute or swap")
        require(self.ageing_s > 0, "ageing_s", "above 0")
        require(self.step_timeout_s > 0, "step_timeout_s", "above 0")
        require(self.threads is None or self.threads >= 1, "threads", "at least 1")

"""The same trace through transformers: one request at a time, in static batches, and by its continuous batching."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from serve_paged.bench.trace import TraceRequest
from serve_paged.model.config import ARCHITECTURES
from serve_paged.model.named_shapes import named_config, shape_values
from serve_paged.model.random_weights import RandomWeights

# What it may take of a CPU's memory, which others use too; on a GPU its own default.
_CPU_CACHE_SHARE = 0.1
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How rivals are run."""

    static_batch_size: int = 32
    limit_s: float = float("inf")  # when this is up, the current request or batch is the last


@dataclass(frozen=True, slots=True)
class RivalRun:
    """What one way of running transformers did with a trace."""

    name: str
    settings: dict[str, object]
    num_output_tokens: int  # of the requests that were answered; what padding computes beside them does not count
    elapsed_s: float
    outputs: dict[int, list[int]]  # index in the trace -> token ids; all of them, unless the time was up
    error: str | None  # why it could not run, or not go on

    @property
    def output_tokens_per_s(self) -> float | None:
        """None if nothing was answered."""
        return self.num_output_tokens / self.elapsed_s if self.num_output_tokens else None


def random_transformers_model(
    shape: str, dtype: torch.dtype, device: torch.device, *, num_layers: int | None = None, seed: int = 0
) -> Any:
    """transformers' model of a named shape with the very weights that `load_random` draws on this device."""
    config = named_config(shape, num_layers=num_layers)
    values = shape_values(shape, num_layers=num_layers) | {"eos_token_id": None, "bos_token_id": None}
    theirs = AutoConfig.for_model(ARCHITECTURES[config.architecture].model_type, **values)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(theirs, dtype=dtype)
    weights = RandomWeights(config, dtype, device, seed=seed)
    parameters = dict(model.named_parameters())  # a tied head is there once
    if set(parameters) != set(weights.names):
        raise ValueError(f"transformers' weights differ: {sorted(set(parameters) ^ set(weights.names))}")
    for name, parameter in parameters.items():
        parameter.data.copy_(weights.read(name))
    return model.eval()


def stored_transformers_model(folder: str, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model of a folder in Hugging Face's format."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def run_rival(
    name: str, model: Any, trace: list[TraceRequest], limits: Limits, *, show_progress: bool = False
) -> RivalRun:
    """Answer a trace greedily to its full lengths. `name` is one of `RIVALS`.

    What goes wrong is part of the result: their continuous batching, say, does not run on every device.
    """
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    settings: dict[str, object] = {"attention": str(model.config._attn_implementation)}
    if name == "generate-static":
        settings["batch_size"] = limits.static_batch_size
    clock = _Clock(limits.limit_s)
    outputs: dict[int, list[int]] = {}
    error = None
    try:
        with tqdm(total=len(trace), unit="request", desc=name, disable=not show_progress) as progress:
            for answer in RIVALS[name](model, trace, limits, clock):
                outputs[answer.index] = answer.token_ids
                clock.note_answer()
                progress.update(1)
                if len(answer.token_ids) != trace[answer.index].num_output:
                    raise ValueError(f"request {answer.index} has {len(answer.token_ids)} tokens")
    except Exception as failure:  # noqa: BLE001  (their code may raise anything, and this benchmark goes on)
        error = f"{type(failure).__name__}: {failure}"
    num_tokens = sum(trace[index].num_output for index in outputs)
    return RivalRun(name, settings, num_tokens, clock.elapsed_s, outputs, error)


class _Clock:
    """Runs from the first request, behind the warm-up, to the last answer."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.begin()

    def begin(self) -> None:
        self._start = self._last = time.perf_counter()

    def note_answer(self) -> None:
        self._last = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return self._last - self._start

    @property
    def is_up(self) -> bool:
        return time.perf_counter() - self._start > self._limit_s


@dataclass(frozen=True, slots=True)
class _Answer:
    index: int
    token_ids: list[int]


def _one_by_one(model: Any, trace: list[TraceRequest], _limits: Limits, clock: _Clock) -> Iterator[_Answer]:
    yield from _in_batches(model, trace, 1, clock)


def _static_batches(model: Any, trace: list[TraceRequest], limits: Limits, clock: _Clock) -> Iterator[_Answer]:
    yield from _in_batches(model, trace, limits.static_batch_size, clock)


def _in_batches(model: Any, trace: list[TraceRequest], batch_size: int, clock: _Clock) -> Iterator[_Answer]:
    """In the trace's order; a batch is padded to its longest prompt and runs until its longest answer is done."""
    _generate(model, trace[:batch_size], 2)  # loads kernels and libraries
    clock.begin()
    for begin in range(0, len(trace), batch_size):
        if clock.is_up:
            return
        batch = trace[begin : begin + batch_size]
        rows = _generate(model, batch, max(wanted.num_output for wanted in batch))
        for index, (row, wanted) in enumerate(zip(rows, batch, strict=True), start=begin):
            yield _Answer(index, row[: wanted.num_output])


@torch.inference_mode()
def _generate(model: Any, batch: list[TraceRequest], num_tokens: int) -> list[list[int]]:
    longest = max(len(wanted.prompt_token_ids) for wanted in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, wanted in enumerate(batch):
        begin = longest - len(wanted.prompt_token_ids)
        ids[row, begin:] = torch.tensor(wanted.prompt_token_ids)
        mask[row, begin:] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    rows: list[list[int]] = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens)[
        :, longest:
    ].tolist()
    return rows


def _continuous(model: Any, trace: list[TraceRequest], _limits: Limits, clock: _Clock) -> Iterator[_Answer]:
    """Their manager as it comes, its graphs captured before the clock starts. Answers come in any order."""
    extra: dict[str, Any] = {}
    if model.device.type == "cpu":
        extra["continuous_batching_config"] = ContinuousBatchingConfig(max_memory_percent=_CPU_CACHE_SHARE)
    generation = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)  # -1: nothing ends a text early
    with model.continuous_batching_context_manager(
        generation_config=generation, block=True, timeout=60.0, **extra
    ) as manager:
        manager.add_request(trace[0].prompt_token_ids, request_id="warm-up", max_new_tokens=2)
        for _ in _results(manager, 1, clock):
            pass
        clock.begin()
        for index, wanted in enumerate(trace):
            manager.add_request(wanted.prompt_token_ids, request_id=str(index), max_new_tokens=wanted.num_output)
        for result in _results(manager, len(trace), clock):
            yield _Answer(int(result.request_id), list(result.generated_tokens))


def _results(manager: Any, num_wanted: int, clock: _Clock) -> Iterator[Any]:
    num_found = 0
    while num_found < num_wanted and not clock.is_up:
        result = manager.get_result(timeout=_POLL_S)
        if result is None and not manager.is_running():
            raise RuntimeError("the continuous batching thread has ended")
        if result is not None and result.error is not None:
            raise RuntimeError(str(result.error))
        if result is not None and result.is_finished():
            num_found += 1
            yield result


RIVALS: Mapping[str, Callable[[Any, list[TraceRequest], Limits, _Clock], Iterator[_Answer]]] = {
    "generate-one": _one_by_one,
    "generate-static": _static_batches,
    "continuous-batching": _continuous,
}

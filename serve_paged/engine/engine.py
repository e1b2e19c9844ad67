"""The engine: a step is schedule, move blocks, run the model, sample, check stops. One thread, no Ray, no HTTP.

On a GPU it runs ahead: `step` launches the forward pass of step N+1 before it reads the tokens of step N, so the GPU
computes while the host takes these in, plans and launches. N+1's input ids come from N's samples on the device
(core/scheduler.py says what holds meanwhile). What N+1 samples is launched after N's tokens are read, while its forward
pass runs: so penalties, min_tokens, and whatever else looks at the output, know all of it, no step falls back to
waiting, and no token is sampled for a sequence that has ended. The host stays ahead as long as its work for a step is
shorter than the forward pass; launching the sampling earlier would not move that bound.

vLLM's asynchronous scheduling and SGLang's overlap scheduler do the same; delaying the sampling is SGLang's way with
grammars, and older (https://github.com/HabanaAI/vllm-fork/pull/84).
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from numba_kernels import Kernels
from serve_paged.core.block_hash import root_hash
from serve_paged.core.errors import InvalidRequest
from serve_paged.core.kv_events import BlockEventRecorder
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.core.preemption import PreemptionCosts, PreemptionKind
from serve_paged.core.request_limits import check_request, check_vocabulary
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.scheduler import Scheduler
from serve_paged.core.sequence import FinishReason, Sequence
from serve_paged.engine.block_transfer import BlockBundle, export_blocks, import_blocks
from serve_paged.engine.choice import Choice
from serve_paged.engine.device import to_device
from serve_paged.engine.in_flight import ForwardTime, InFlight, Launched, PromptLogprobs
from serve_paged.engine.kv_cache import KVCache
from serve_paged.engine.logprobs import LogprobsCopy
from serve_paged.engine.model_runner import ModelRunner
from serve_paged.engine.sampler import SampledToken, Sampler
from serve_paged.engine.stop_strings import StopStrings
from serve_paged.engine.stopwatch import Stopwatch
from serve_paged.engine.text import TextModel


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller wants: a prompt in tokens, and how its choices are to be sampled."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0  # lower is served first
    cache_salt: str = ""  # requests share prefix blocks only with the same salt
    output_token_ids: Mapping[int, list[int]] = field(default_factory=dict)  # resume: choice -> its output so far
    # The chain of full blocks, where the caller has hashed them already; it counts only if its root is this engine's.
    cache_root: bytes = b""
    block_hashes: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Counters:
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


class Engine:
    """Serves many requests by continuous batching over one paged KV cache.

    Call `add`, then `step` until `has_unfinished()` is false; every step returns what is new. Not thread-safe.
    """

    def __init__(
        self,
        text_model: TextModel,
        scheduler: Scheduler,
        kv_cache: KVCache,
        runner: ModelRunner,
        sampler: Sampler,
        costs: PreemptionCosts,
        kernels: Kernels,
        *,
        max_model_len: int,
        num_threads: int,
        run_ahead: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.text_model = text_model
        self.max_model_len = max_model_len
        self.num_threads = num_threads  # for whichever thread steps it
        self.scheduler = scheduler
        self.block_size = kv_cache.block_size
        self.kv_events = BlockEventRecorder(scheduler.pool)
        self._kv_cache = kv_cache
        self._runner = runner
        self._sampler = sampler
        self._costs = costs
        self._kernels = kernels
        self._clock = clock
        self._run_ahead = run_ahead
        self._in_flight: InFlight | None = None
        self._choices: dict[Sequence, Choice] = {}
        self._request_ids: dict[str, int] = {}  # open requests -> choices still running
        self._counters = _Counters()

    def add(self, request: Request) -> None:
        """Accept a request. Raises `InvalidRequest` naming the field when it can never be served."""
        self._check(request)
        sequences = self._sequences(request)
        for seq in sequences:
            self.scheduler.guard.check_possible(seq)  # all of them first: a request is accepted whole or not at all
        stops = StopStrings(request.params.stop) if request.params.stop else None
        choices = {
            member: Choice(self.text_model, member, stops) for seq in sequences for member in (seq, *seq.siblings)
        }
        for seq in sequences:
            self.scheduler.add(seq)
        self._choices |= choices
        self._request_ids[request.request_id] = len(choices)
        self._counters.num_prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_id: str) -> None:
        """End a request whose client went away; unknown or finished ones are ignored, as the two may cross."""
        for seq in self.scheduler.abort(request_id):
            self._forget(seq)

    def has_unfinished(self) -> bool:
        """Whether another step would do anything."""
        return self._in_flight is not None or self.scheduler.has_unfinished()

    def is_open(self, request_id: str) -> bool:
        """Whether a choice of this request is still running."""
        return request_id in self._request_ids

    def step(self) -> list[ChoiceDelta]:
        """Run one step; returns at most one delta for each running choice, running ahead those of the step before."""
        launched = self._launch()
        deltas = self._collect()
        if launched is not None:
            self._in_flight = self._sample(launched)
        if not self._run_ahead:
            deltas = self._collect()
        return deltas

    @property
    def prefill_token_s(self) -> float:
        """Seconds to prefill one token, as measured."""
        return self._costs.token_s

    def export_request(self, request_id: str) -> BlockBundle | None:
        """The computed blocks of a running request's first choice, so that another engine can go on with it.

        None where computing them again is cheaper, as measured here, or nothing is computed.
        """
        seq = next((seq for seq in self._choices if seq.request_id == request_id), None)
        if seq is None:
            return None
        hashes = seq.block_hashes[: seq.num_computed_tokens // self.block_size]
        num_moves = 2 * len(hashes)  # out here, in there
        if self._costs.cheaper(len(hashes) * self.block_size, num_moves) is not PreemptionKind.SWAP:
            return None
        return export_blocks(self.scheduler.pool, self._kv_cache, hashes)

    def import_blocks(self, bundle: BlockBundle) -> int:
        """Take in another engine's blocks; how many. Raises `IncompatibleBlocks`."""
        return import_blocks(self.scheduler.pool, self._kv_cache, bundle)

    def stats(self) -> EngineStats:
        """A snapshot of the state and the counters."""
        pool, counts, scheduled = self.scheduler.pool, self._counters, self.scheduler.stats
        return EngineStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_blocks=pool.num_usable,
            num_free_blocks=pool.num_free,
            num_steps=counts.num_steps,
            num_preemptions_recompute=scheduled.num_preemptions_recompute,
            num_preemptions_swap=scheduled.num_preemptions_swap,
            num_swapped_out_blocks=scheduled.num_swapped_out_blocks,
            num_swapped_in_blocks=scheduled.num_swapped_in_blocks,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_output_tokens=counts.num_output_tokens,
            num_cached_tokens=scheduled.num_cached_tokens,
            num_finished={str(reason): scheduled.num_finished.get(reason.value, 0) for reason in FinishReason},
        )

    def _check(self, request: Request) -> None:
        params, model = request.params, self.text_model
        if request.request_id in self._request_ids:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", "request_id")
        check_request(
            request.prompt_token_ids,
            params,
            max_model_len=self.max_model_len,
            vocab_size=model.vocab_size,
            eos_token_ids=model.eos_token_ids,
        )
        for choice, tokens in request.output_token_ids.items():
            check_vocabulary(tokens, model.vocab_size, "output_token_ids")
            if not 0 <= choice < params.n:
                raise InvalidRequest(f"cannot resume choice {choice} of n={params.n}", "output_token_ids")
            if params.max_tokens is not None and len(tokens) >= params.max_tokens:
                raise InvalidRequest(f"choice {choice} has already reached max_tokens", "output_token_ids")

    def _sequences(self, request: Request) -> list[Sequence]:
        """One parent whose siblings fork from it, or, on resume, one independent sequence per unfinished choice."""
        params, model = request.params, self.text_model
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        num_prompt = len(request.prompt_token_ids)
        limit = self.max_model_len
        if params.max_tokens is not None:
            limit = min(limit, num_prompt + params.max_tokens)

        root = root_hash(model.fingerprint, model.kv_dtype, self.block_size, cache_salt=request.cache_salt)
        hashed = request.block_hashes if request.cache_root == root else ()

        def sequence(choice: int, output_token_ids: list[int]) -> Sequence:
            return Sequence(
                request_id=request.request_id,
                prompt_token_ids=request.prompt_token_ids,
                params=params,
                arrival_time=self._clock(),
                seed=seed,
                max_num_tokens=limit,
                choice=choice,
                priority=request.priority,
                cache_root=root,
                block_hashes=list(hashed),
                output_token_ids=output_token_ids,
            )

        if request.output_token_ids:
            return [sequence(choice, list(tokens)) for choice, tokens in request.output_token_ids.items()]
        parent = sequence(0, [])
        parent.siblings = [sequence(choice, []) for choice in range(1, params.n)]
        return [parent]

    def _launch(self) -> Launched | None:
        """Plan a step and launch its copies and its forward pass, if there is anything to compute."""
        output = self.scheduler.schedule()
        swap = self._kv_cache.move_blocks(output)
        if swap.num_blocks:
            self._costs.record_swap(swap.num_blocks, swap.seconds)
        if not output.scheduled:
            return None
        stopwatch = Stopwatch(self._kv_cache.blocks.device)
        logits = self._runner.run(output, self._in_flight.samples.token_ids if self._in_flight is not None else None)
        stopwatch.stop()
        self._counters.num_steps += 1
        return Launched(output, logits, ForwardTime(output.num_tokens, stopwatch))

    def _sample(self, step: Launched) -> InFlight:
        """Launch the sampling of a step. All tokens of earlier ones are known."""
        prompt_logprobs = self._prompt_logprobs(step)
        slots = self.scheduler.computed(step.output)
        rows = step.logits.to_sample([slot.row for slot in slots])
        samples = self._sampler.launch(rows, [slot.seq for slot in slots])
        return InFlight(slots, samples, prompt_logprobs, step.time)

    def _prompt_logprobs(self, step: Launched) -> list[PromptLogprobs]:
        launched = []
        for index, scheduled in enumerate(step.output.scheduled):
            rows = step.logits.of_prompt(index)
            if rows is None:
                continue
            seq, start = scheduled.seq, scheduled.seq.num_computed_tokens
            targets = torch.tensor(seq.prompt_token_ids[start + 1 : start + 1 + rows.shape[0]], dtype=torch.int64)
            num_top = [seq.params.prompt_logprobs or 0] * rows.shape[0]
            copy = LogprobsCopy(rows, to_device(targets, rows.device), num_top, self._kernels)
            launched.append(PromptLogprobs(seq, start, copy))
        return launched

    def _collect(self) -> list[ChoiceDelta]:
        """Wait for the tokens in flight and take them in; those of aborted sequences are dropped."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        sampled = step.samples.read()
        step.time.record(self._costs)
        for found in step.prompt_logprobs:
            if not found.seq.finished:
                self._choices[found.seq].add_prompt_logprobs(found.copy.read(), start=found.start)
        news = [(slot.seq, token) for slot, token in zip(step.slots, sampled, strict=True) if not slot.seq.finished]
        if not news:
            return []
        covered = self.kv_events.cover()
        return [self._advance(seq, token, covered) for seq, token in news]

    def _advance(self, seq: Sequence, token: SampledToken, covered: int) -> ChoiceDelta:
        """A sequence's token is known."""
        self.scheduler.append_token(seq, token.token_id)
        self._counters.num_output_tokens += 1
        delta = self._choices[seq].advance(token, covered)
        if delta.finish_reason is not None:
            self.scheduler.finish(seq, delta.finish_reason)
            self._forget(seq)
        return delta

    def _forget(self, seq: Sequence) -> None:
        del self._choices[seq]
        remaining = self._request_ids[seq.request_id] - 1
        if remaining:
            self._request_ids[seq.request_id] = remaining
        else:
            del self._request_ids[seq.request_id]

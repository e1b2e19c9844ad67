"""An engine whose model is a checksum: it runs the real scheduler's steps on simulated block memory.

The "K and V" of a token are a checksum over the memory of the position before it, read through the block table, and
the token's id: as in a real model they depend on every earlier token, so a wrong, stale or overwritten block anywhere
in the prefix shows. Every copy of a list is made as if at the same time, as a kernel would.

What a step does to memory is queued and runs in order, as on a device's stream. Running ahead, the device is as lazy
as it may be: a step runs only when what it samples is read, which is after the next one was scheduled and launched.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from serve_paged.core.block_pool import BlockPool
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput, TokenSlot
from serve_paged.core.scheduler import Scheduler
from serve_paged.core.sequence import FinishReason, Sequence

MASK = (1 << 61) - 1
ROOT = b"root"


def checksum(before: int, token_id: int) -> int:
    """What the fake model writes for a token."""
    return (before * 1_000_003 + token_id * 2_654_435_761 + 12_345) & MASK


def sampled_token(seed: int, choice: int, position: int) -> int:
    """The token a sequence gets at an output position, whatever happened to it on the way."""
    return checksum(checksum(seed, choice + 1), position) % 50 + 1000


def expected_memory(token_ids: list[int]) -> list[int]:
    """What the memory of a sequence must hold."""
    memory, value = [], 0
    for token_id in token_ids:
        value = checksum(value, token_id)
        memory.append(value)
    return memory


@dataclass
class FakeClock:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def make_sequence(
    request_id: str,
    prompt: list[int] | int,
    *,
    max_tokens: int = 4,
    n: int = 1,
    priority: int = 0,
    arrival_time: float = 0.0,
    output: list[int] | None = None,
    choice: int = 0,
    prompt_logprobs: int | None = None,
    root: bytes = ROOT,
) -> Sequence:
    """A request's first sequence with its siblings; a prompt given as a number is that many tokens of its own."""
    if isinstance(prompt, int):
        start = sum(request_id.encode()) * 1000
        prompt = list(range(start, start + prompt))
    choices = [
        Sequence(
            request_id,
            prompt,
            SamplingParams(n=n, max_tokens=max_tokens, prompt_logprobs=prompt_logprobs),
            arrival_time,
            seed=len(prompt) + sum(request_id.encode()),
            max_num_tokens=len(prompt) + max_tokens,
            choice=choice + index,
            priority=priority,
            cache_root=root,
            output_token_ids=list(output or []),
        )
        for index in range(n)
    ]
    choices[0].siblings = choices[1:]
    return choices[0]


@dataclass(frozen=True)
class FakeRow:
    """One sequence's part of a forward pass, as it stands when the pass is launched: later changes are not seen."""

    name: str
    block_table: list[int]
    token_ids: list[int]  # all up to the last one computed here, unless that is pending
    start: int
    pending_sample: int | None

    @classmethod
    def of(cls, entry: ScheduledSequence) -> "FakeRow":
        seq, start = entry.seq, entry.seq.num_computed_tokens
        token_ids = seq.tokens(0, start + entry.num_new_tokens)
        return cls(f"{seq.request_id}/{seq.choice}", list(seq.block_table), token_ids, start, entry.pending_sample)


@dataclass
class SimulatedEngine:
    """A scheduler, memory, and the engine's loop, with every invariant checked in every step."""

    num_blocks: int = 20  # usable
    num_host_blocks: int = 0
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    options: dict = field(default_factory=dict)  # further arguments of the scheduler
    run_ahead: bool = False  # schedule and launch a step before the tokens of the one before it are read
    stop_tokens: frozenset[int] = frozenset()  # the sampled tokens that end a sequence

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.pool = BlockPool(self.num_blocks + 1, self.num_host_blocks)
        self.scheduler = Scheduler(
            self.pool,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            clock=self.clock,
            **self.options,
        )
        self.device = {block: [-1] * self.block_size for block in range(self.num_blocks + 1)}
        self.host = {block: [-1] * self.block_size for block in range(self.num_host_blocks)}
        self.samples: list[int] = []  # device memory: the tokens of the latest sampling that has run
        self.stream: list[Callable[[], None]] = []  # launched, not run yet
        self.in_flight: list[TokenSlot] = []  # their tokens are launched, not read yet
        self.finished: list[Sequence] = []
        self.num_wasted_tokens = 0  # computed for sequences that had ended

    @property
    def busy(self) -> bool:
        """Whether another step would do anything."""
        return self.scheduler.has_unfinished() or bool(self.in_flight)

    def add(self, request_id: str, prompt: list[int] | int, **kwargs) -> Sequence:
        """Make a sequence that arrives now, and queue it."""
        kwargs.setdefault("arrival_time", self.clock.now)
        seq = make_sequence(request_id, prompt, **kwargs)
        self.scheduler.add(seq)
        return seq

    def step(self) -> SchedulerOutput:
        """Schedule, launch, and what follows."""
        nothing_in_flight = not self.in_flight
        out = self.scheduler.schedule()
        if nothing_in_flight and self.scheduler.has_unfinished():
            assert out.scheduled, "a step with unfinished sequences computed nothing"
        self.launch(out)
        self.end_step(out)
        return out

    def run(self, max_steps: int = 1000) -> int:
        """Step until everything has ended; the number of steps."""
        for num_steps in range(max_steps):
            if not self.busy:
                self.synchronize()
                return num_steps
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def launch(self, out: SchedulerOutput) -> None:
        """Queue the copies and the forward pass of a step."""
        assert not {source for source, _ in out.copies} & {target for _, target in out.copies}
        assert out.num_tokens <= self.max_num_batched_tokens
        for entry in out.scheduled:
            seq = entry.seq
            assert entry.num_new_tokens > 0
            assert entry.needs_token == (seq.num_computed_tokens + entry.num_new_tokens == seq.num_tokens)
            assert seq.num_tokens < seq.max_num_tokens, "there is no room for the token that it samples"
        rows = [FakeRow.of(entry) for entry in out.scheduled]
        self.stream.append(lambda: self._move_and_compute(out, rows))

    def synchronize(self) -> None:
        """Run all that was launched."""
        while self.stream:
            self.stream.pop(0)()

    def execute(self, out: SchedulerOutput) -> None:
        """Launch a step and wait for it."""
        self.launch(out)
        self.synchronize()

    def end_step(self, out: SchedulerOutput) -> None:
        """What follows a launch: read the tokens in flight, then sample; and read these too, unless running ahead."""
        self.collect()
        self.sample(out)
        if not self.run_ahead:
            self.collect()
        self.check()

    def collect(self) -> None:
        """Read the tokens in flight. Of what was launched, no more is run than has to be."""
        slots, self.in_flight = self.in_flight, []
        while slots and self.stream and self.stream.pop(0)() is not slots:
            pass
        for slot, token in zip(slots, self.samples if slots else [], strict=True):
            if not slot.seq.finished:
                self._receive(slot.seq, token)

    def sample(self, out: SchedulerOutput) -> None:
        """Queue the sampling of a step that was launched."""
        self.num_wasted_tokens += sum(entry.num_new_tokens for entry in out.scheduled if entry.seq.finished)
        slots = self.scheduler.computed(out)
        for slot in slots:
            assert out.scheduled[slot.row].needs_token
            assert slot.seq.num_computed_tokens == slot.seq.num_tokens - 1
        tokens = [sampled_token(slot.seq.seed, slot.seq.choice, slot.seq.num_output_tokens) for slot in slots]
        self.in_flight = slots
        self.stream.append(lambda: self._store(tokens, slots))

    def check(self) -> None:
        """Every invariant; and the memory of every running sequence, if all that was launched has run."""
        self.scheduler.check()
        if not self.stream:
            for seq in self.scheduler.running:
                self.check_memory(seq.request_id, seq.block_table, seq.tokens(0, seq.num_computed_tokens))

    def check_memory(self, name: str, block_table: list[int], token_ids: list[int]) -> None:
        """A sequence's blocks hold exactly its tokens, each computed from the right ones before it."""
        held = [self._slot(block_table, position) for position in range(len(token_ids))]
        assert held == expected_memory(token_ids), f"{name} is corrupt"

    def _receive(self, seq: Sequence, token: int) -> None:
        self.scheduler.append_token(seq, token)
        if token in self.stop_tokens:
            self.scheduler.finish(seq, FinishReason.STOP)
        elif seq.num_tokens == seq.max_num_tokens:
            self.scheduler.finish(seq, FinishReason.LENGTH)
        if seq.finished:
            self.finished.append(seq)

    def _store(self, tokens: list[int], slots: list[TokenSlot]) -> list[TokenSlot]:
        self.samples = tokens
        return slots

    def _move_and_compute(self, out: SchedulerOutput, rows: list[FakeRow]) -> None:
        """What a model runner does: copies in their order, then the forward pass."""
        _copy(out.swap_out, self.device, self.host)
        _copy(out.swap_in, self.host, self.device)
        _copy(out.copies, self.device, self.device)
        known = [
            row.token_ids + ([] if row.pending_sample is None else [self.samples[row.pending_sample]]) for row in rows
        ]
        for row, token_ids in zip(rows, known, strict=True):
            for position in range(row.start, len(token_ids)):
                before = self._slot(row.block_table, position - 1) if position else 0
                block = self.device[row.block_table[position // self.block_size]]
                block[position % self.block_size] = checksum(before, token_ids[position])
        for row, token_ids in zip(rows, known, strict=True):
            self.check_memory(row.name, row.block_table, token_ids)

    def _slot(self, block_table: list[int], position: int) -> int:
        return self.device[block_table[position // self.block_size]][position % self.block_size]


def _copy(pairs: list[tuple[int, int]], source: dict[int, list[int]], target: dict[int, list[int]]) -> None:
    targets = [block for _, block in pairs]
    assert len(set(targets)) == len(targets), "a block is written twice"
    contents = [list(source[block]) for block, _ in pairs]
    target.update(zip(targets, contents, strict=True))

"""An engine whose model is a checksum: it runs the real scheduler's steps on simulated block memory.

The "K and V" of a token are a checksum over the memory of the position before it, read through the block table, and
the token's id: as in a real model they depend on every earlier token, so a wrong, stale or overwritten block anywhere
in the prefix shows. Every copy of a list is made as if at the same time, as a kernel would.
"""

from dataclasses import dataclass, field

from serve_paged.core.block_pool import BlockPool
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.schedule_output import SchedulerOutput
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


@dataclass
class SimulatedEngine:
    """A scheduler, memory, and the engine's loop, with every invariant checked in every step."""

    num_blocks: int = 20  # usable
    num_host_blocks: int = 0
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    options: dict = field(default_factory=dict)  # further arguments of the scheduler

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
        self.finished: list[Sequence] = []

    def add(self, request_id: str, prompt: list[int] | int, **kwargs) -> Sequence:
        """Make a sequence that arrives now, and queue it."""
        kwargs.setdefault("arrival_time", self.clock.now)
        seq = make_sequence(request_id, prompt, **kwargs)
        self.scheduler.add(seq)
        return seq

    def step(self) -> SchedulerOutput:
        """Schedule, execute, sample, end what has its length."""
        out = self.scheduler.schedule()
        self.execute(out)
        self.sample(out)
        return out

    def run(self, max_steps: int = 1000) -> int:
        """Step until everything has ended; the number of steps."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_unfinished():
                return num_steps
            assert self.step().scheduled, "a step with unfinished sequences computed nothing"
        raise AssertionError(f"not done after {max_steps} steps")

    def execute(self, out: SchedulerOutput) -> None:
        """What a model runner does: copies in their order, then the forward pass."""
        _copy(out.swap_out, self.device, self.host)
        _copy(out.swap_in, self.host, self.device)
        _copy(out.copies, self.device, self.device)
        assert not {source for source, _ in out.copies} & {target for _, target in out.copies}
        assert out.num_tokens <= self.max_num_batched_tokens
        for entry in out.scheduled:
            seq, start = entry.seq, entry.seq.num_computed_tokens
            assert entry.num_new_tokens > 0
            assert entry.needs_token == (start + entry.num_new_tokens == seq.num_tokens)
            for position in range(start, start + entry.num_new_tokens):
                before = self._slot(seq, position - 1) if position else 0
                block = self.device[seq.block_table[position // self.block_size]]
                block[position % self.block_size] = checksum(before, seq.tokens(position, position + 1)[0])
        for entry in out.scheduled:
            self.check_memory(entry.seq, entry.seq.num_computed_tokens + entry.num_new_tokens)

    def sample(self, out: SchedulerOutput) -> None:
        """The rest of the step, after the forward pass."""
        for slot in self.scheduler.computed(out):
            seq = slot.seq
            assert out.scheduled[slot.row].needs_token
            assert seq.num_computed_tokens == seq.num_tokens
            self.scheduler.append_token(seq, sampled_token(seq.seed, seq.choice, seq.num_output_tokens))
            if seq.num_tokens == seq.max_num_tokens:
                self.scheduler.finish(seq, FinishReason.LENGTH)
                self.finished.append(seq)
        self.check()

    def check(self) -> None:
        """Every invariant, and the memory of every running sequence."""
        self.scheduler.check()
        for seq in self.scheduler.running:
            self.check_memory(seq, seq.num_computed_tokens)

    def check_memory(self, seq: Sequence, num_tokens: int) -> None:
        """A sequence's blocks hold exactly its tokens, each computed from the right ones before it."""
        held = [self._slot(seq, position) for position in range(num_tokens)]
        assert held == expected_memory(seq.tokens(0, num_tokens)), f"{seq.request_id}/{seq.choice} is corrupt"

    def _slot(self, seq: Sequence, position: int) -> int:
        return self.device[seq.block_table[position // self.block_size]][position % self.block_size]


def _copy(pairs: list[tuple[int, int]], source: dict[int, list[int]], target: dict[int, list[int]]) -> None:
    targets = [block for _, block in pairs]
    assert len(set(targets)) == len(targets), "a block is written twice"
    contents = [list(source[block]) for block, _ in pairs]
    target.update(zip(targets, contents, strict=True))

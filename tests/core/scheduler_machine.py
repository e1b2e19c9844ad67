"""Random life of a scheduler on simulated memory, for the property tests: what can happen, and what must hold."""

from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.preemption import PreemptionCosts
from serve_paged.core.sequence import FinishReason, Sequence
from tests.core.simulated_engine import SimulatedEngine, sampled_token

CONVERSATION = [(index * 7919) % 101 for index in range(200)]  # prompts are cut from it: shared prefixes


SWAP_ALWAYS, SWAP_SOMETIMES, SWAP_NEVER = 1e-6, 1.5e-3, 10.0  # seconds per block, at 1 ms per token


@dataclass(frozen=True)
class Setting:
    """What kind of engine lives through it."""

    num_blocks: int
    num_host_blocks: int
    block_size: int = 4
    preemption: str = "swap"
    block_s: float = SWAP_SOMETIMES
    prefix_caching: bool = True
    run_ahead: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are stepped, stopped and aborted in any order; at the end all must finish and nothing be held."""

    setting = Setting(num_blocks=9, num_host_blocks=8)

    @initialize(
        max_num_seqs=st.integers(2, 8),
        max_num_batched_tokens=st.sampled_from([100, 16, 5, 2, 1]),
        watermark=st.sampled_from([0.0, 0.01, 0.4]),
        ageing_s=st.sampled_from([0.5, 10.0]),
        experience=st.sampled_from([0, 0, 20]),
        num_stop_tokens=st.sampled_from([0, 5]),
    )
    def start(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        watermark: float,
        ageing_s: float,
        experience: int,
        num_stop_tokens: int,
    ) -> None:
        costs = PreemptionCosts()
        costs.record_swap(1, self.setting.block_s)
        self.engine = SimulatedEngine(
            num_blocks=self.setting.num_blocks,
            num_host_blocks=self.setting.num_host_blocks,
            block_size=self.setting.block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            options={
                "watermark": watermark,
                "ageing_s": ageing_s,
                "preemption": self.setting.preemption,
                "prefix_caching": self.setting.prefix_caching,
                "costs": costs,
            },
            run_ahead=self.setting.run_ahead,
            stop_tokens=frozenset(range(1000, 1000 + num_stop_tokens)),  # of the 50 that are sampled
        )
        for _ in range(experience):
            self.engine.scheduler.guard.output_lengths.record(6)
        self.added: list[Sequence] = []
        self.num_resumed: dict[Sequence, int] = {}  # output tokens that it came with
        self.ended_early: list[Sequence] = []
        self.num_requests = 0
        self.num_refused = 0

    @rule(seed=st.integers(0, 2**32), count=st.sampled_from([1, 2, 4, 8]))
    def add(self, seed: int, count: int) -> None:
        """Requests of about a part of the cache each; many prompts have a prefix in common."""
        random = Random(seed)
        for _ in range(count):
            self.engine.clock.now += random.random() / 10
            self.add_one(random)

    def add_one(self, random: Random) -> None:
        """One request, which may be refused."""
        capacity = self.engine.num_blocks * self.engine.block_size
        name = f"r{self.num_requests}"
        self.num_requests += 1
        start = random.choice([0, 0, 0, 50])
        prompt = CONVERSATION[start : start + random.randrange(capacity // 2)]
        prompt += [10_000 + self.num_requests] * random.randrange(1, capacity // 3)
        seed = len(prompt) + sum(name.encode())
        resumed = random.choice([0, 0, 0, 3])
        try:
            seq = self.engine.add(
                name,
                prompt,
                max_tokens=resumed + random.randrange(1, capacity // 2),
                n=1 if resumed else random.choice([1, 1, 1, 2, 3]),
                priority=random.choice([0, 0, 0, -1, 2]),
                output=[sampled_token(seed, 0, position) for position in range(resumed)],
                prompt_logprobs=random.choice([None, None, None, 0]),
            )
        except InvalidRequest:
            self.num_refused += 1
        else:
            self.added += [seq, *seq.siblings]
            self.num_resumed[seq] = resumed

    @rule(seconds=st.sampled_from([0.01, 1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.engine.clock.now += seconds

    @rule()
    @precondition(lambda self: self.engine.busy)
    def step(self) -> None:
        first = next(iter(self.engine.scheduler.running), None)
        ends_now = first is not None and first.num_tokens == first.max_num_tokens  # its last token is in flight
        out = self.engine.step()
        if ends_now:
            assert first.finished
        elif first is not None and out.scheduled[0].seq is not first:
            assert out.scheduled[0].seq.order < first.order, "the first in the order was passed over"
        assert not set(out.preempted) & {entry.seq for entry in out.scheduled}

    @rule(count=st.integers(2, 20))
    def step_often(self, count: int) -> None:
        for _ in range(count):
            if self.engine.busy:
                self.step()

    @rule(choose=st.integers(0, 1000), reason=st.sampled_from(["abort", "stop", "error"]), within=st.booleans())
    @precondition(lambda self: self.live())
    def end_one(self, choose: int, reason: str, within: bool) -> None:
        """Something ends early, between two steps or after the launch of one."""
        live = self.live()
        seq = live[choose % len(live)]
        self.ended_early += [other for other in live if other.request_id == seq.request_id]
        out = self.engine.scheduler.schedule() if within else None
        if out is not None:
            self.engine.launch(out)
        if reason == "abort":
            others = {id(other) for other in live if other.request_id == seq.request_id}
            assert {id(other) for other in self.engine.scheduler.abort(seq.request_id)} == others
        else:
            self.engine.scheduler.finish(seq, FinishReason(reason))
        assert seq.finish_reason == reason
        if out is not None:
            self.engine.end_step(out)

    @invariant()
    def everything_holds(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()
            assert self.engine.scheduler.num_running + self.engine.scheduler.num_waiting == len(self.live())

    def teardown(self) -> None:
        """Arrivals have stopped: everything ends soon, with the right tokens and one reason, and all is given back."""
        if not hasattr(self, "engine"):
            return
        left = self.live()
        # Whoever is first in the order gets at least one token a step and is never set back, so one after the other
        # (running ahead, the last one's end is seen a step late):
        self.engine.run(max_steps=sum(seq.max_num_tokens + self.setting.run_ahead for seq in left) + 2)
        for seq in self.added:
            assert seq.finish_reason is not None
            if seq in self.ended_early:
                assert seq.output_token_ids == self.whole_output(seq)[: seq.num_output_tokens]
            else:
                assert seq.output_token_ids == self.whole_output(seq)
        assert sum(self.engine.scheduler.stats.num_finished.values()) == len(self.added)
        assert self.engine.pool.num_free == self.engine.num_blocks, "blocks leaked"
        self.engine.check()

    def live(self) -> list[Sequence]:
        """Sequences that have not ended."""
        return [seq for seq in self.added if not seq.finished]

    def whole_output(self, seq: Sequence) -> list[int]:
        """What it says if nothing but its own tokens or its length ends it."""
        num_output = seq.max_num_tokens - seq.num_prompt_tokens
        tokens = [sampled_token(seq.seed, seq.choice, position) for position in range(num_output)]
        for position in range(self.num_resumed.get(seq, 0), num_output):
            if tokens[position] in self.engine.stop_tokens:
                return tokens[: position + 1]
        return tokens

"""A stream whose replicas are lost goes on elsewhere; its reader does not notice."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import pytest
from ray.exceptions import ActorDiedError

from serve_paged.core.errors import EngineDead, InvalidRequest
from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.handover import ReplicaDeparted
from serve_paged.serve.resume import ResumePolicy, resumed

REQUEST = EngineRequest("r", [1, 2], SamplingParams(n=2, seed=7))
POLICY = ResumePolicy(max_resumes=3, recovery_s=60.0, backoff_s=0.0)
Script = list[list[ChoiceDelta] | Exception]


def token(choice: int, token_id: int, reason: FinishReason | None = None, num_cached_tokens: int = 0) -> ChoiceDelta:
    return ChoiceDelta(
        "from the engine", choice, [token_id], f"<{token_id}>", reason, num_cached_tokens=num_cached_tokens
    )


@dataclass
class Replicas:
    """Plays one script for each attempt."""

    scripts: list[Script]
    requests: list[EngineRequest] = field(default_factory=list)
    num_closed: int = 0

    async def attempt(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        script = self.scripts[len(self.requests)]
        self.requests.append(request)
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                yield step
            if not script:
                await asyncio.Event().wait()  # a replica that never answers
        finally:
            self.num_closed += 1


def read(replicas: Replicas, request: EngineRequest = REQUEST, policy: ResumePolicy = POLICY) -> list[ChoiceDelta]:
    async def gather() -> list[ChoiceDelta]:
        return [delta async for chunk in resumed(request, replicas.attempt, policy) for delta in chunk]

    return asyncio.run(gather())


def test_no_token_is_lost_or_doubled_and_only_what_is_left_is_asked_for() -> None:
    first: Script = [[token(0, 10), token(1, 20)], [token(0, 11, FinishReason.STOP), token(1, 21)], ActorDiedError()]
    second: Script = [[token(1, 22)], EngineDead("it failed")]
    third: Script = [[token(1, 23, FinishReason.LENGTH)]]
    replicas = Replicas([first, second, third])
    assert [(d.choice, d.token_ids) for d in read(replicas)] == [
        (0, [10]), (1, [20]), (0, [11]), (1, [21]), (1, [22]), (1, [23]),
    ]  # fmt: skip
    assert [r.output_token_ids for r in replicas.requests] == [{}, {1: [20, 21]}, {1: [20, 21, 22]}]
    assert replicas.num_closed == 3


def test_every_attempt_has_its_own_id_and_the_reader_sees_one() -> None:
    replicas = Replicas([[[token(0, 1), token(1, 2)], ActorDiedError()], [[token(0, 3, FinishReason.STOP)]]])
    request = replace(REQUEST, params=SamplingParams(n=2))
    assert {delta.request_id for delta in read(replicas, request)} == {"r"}
    assert [r.request_id for r in replicas.requests] == ["r", "r-1"]


def test_prompt_sampling_and_priority_stay_as_they_were() -> None:
    replicas = Replicas([[[token(0, 1)], ActorDiedError()], [[token(0, 2, FinishReason.STOP)]]])
    request = EngineRequest("r", [5, 6], SamplingParams(seed=3, temperature=0.5), priority=2, cache_salt="s")
    read(replicas, request)
    resumed_request = replicas.requests[1]
    assert resumed_request == replace(request, request_id="r-1", output_token_ids={0: [1]})


def test_a_loss_before_the_first_token_sends_the_request_as_it_was() -> None:
    replicas = Replicas([[ActorDiedError()], [[token(0, 1, FinishReason.STOP), token(1, 2, FinishReason.STOP)]]])
    read(replicas)
    assert replicas.requests[1] == replace(REQUEST, request_id="r-1")


def test_choices_that_have_nothing_yet_are_resumed_with_nothing() -> None:
    replicas = Replicas([[[token(0, 1)], ActorDiedError()], [[token(0, 2, FinishReason.STOP)]]])
    read(replicas)
    assert replicas.requests[1].output_token_ids == {0: [1], 1: []}


def test_a_loss_behind_the_last_token_is_the_end() -> None:
    replicas = Replicas([[[token(0, 1, FinishReason.STOP), token(1, 2, FinishReason.STOP)], ActorDiedError()]])
    assert len(read(replicas)) == 2


def test_cached_tokens_are_those_of_the_first_attempt() -> None:
    replicas = Replicas(
        [
            [[token(0, 1, num_cached_tokens=16)], ActorDiedError()],
            [[token(0, 2, FinishReason.STOP, num_cached_tokens=32)]],
        ]
    )
    assert [delta.num_cached_tokens for delta in read(replicas)] == [16, 16]


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    replicas = Replicas([[ActorDiedError()]] * 9)
    with pytest.raises(ActorDiedError):
        read(replicas)
    assert len(replicas.requests) == 1 + POLICY.max_resumes


def test_a_request_that_is_at_fault_is_not_resumed() -> None:
    replicas = Replicas([[InvalidRequest("no", "prompt")]])
    with pytest.raises(InvalidRequest):
        read(replicas)
    assert len(replicas.requests) == 1


def test_a_recovery_that_takes_too_long_is_an_error() -> None:
    replicas = Replicas([[ActorDiedError()], []])
    with pytest.raises(TimeoutError):
        read(replicas, policy=ResumePolicy(max_resumes=3, recovery_s=0.01))
    assert replicas.num_closed == 2


def test_a_first_token_may_take_its_time() -> None:
    """Only a loss starts the clock: a long queue is no fault."""

    async def first_token_after(recovery_s: float) -> bool:
        replicas = Replicas([[]])
        stream = resumed(REQUEST, replicas.attempt, ResumePolicy(max_resumes=3, recovery_s=recovery_s))
        reading = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait({reading}, timeout=0.05)
        reading.cancel()
        await asyncio.wait({reading})
        return not done

    assert asyncio.run(first_token_after(recovery_s=0.0))


def test_a_reader_that_leaves_ends_the_attempt_and_starts_none() -> None:
    replicas = Replicas([[[token(0, 1)], [token(0, 2)], ActorDiedError()], []])

    async def leave() -> None:
        stream = resumed(REQUEST, replicas.attempt, POLICY)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert replicas.num_closed == len(replicas.requests) == 1


def test_losses_in_a_row_wait_longer_each_time() -> None:
    policy = ResumePolicy(max_resumes=3, recovery_s=60.0, backoff_s=0.1)
    assert [policy.wait_s(n) for n in (1, 2, 3, 4)] == pytest.approx([0.0, 0.1, 0.4, 1.6])


def test_a_leaving_replica_waits_until_its_blocks_are_elsewhere() -> None:
    order: list[str] = []
    departed = ReplicaDeparted("the blocks", lambda: order.append("released"))

    class Receiver(Replicas):
        async def attempt(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
            async for chunk in super().attempt(request):
                order.append("token")
                yield chunk

    replicas = Receiver([[[token(0, 1)], departed], [[token(0, 2)], [token(0, 3, FinishReason.STOP)]]])
    read(replicas, replace(REQUEST, params=SamplingParams()))
    assert [request.blocks for request in replicas.requests] == [None, "the blocks"]
    assert order == ["token", "token", "released", "token"]


def test_a_leaving_replica_is_let_go_when_the_reader_has_gone() -> None:
    released: list[bool] = []

    class Receiver(Replicas):
        async def attempt(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
            if self.requests:
                second.set()
            async for chunk in super().attempt(request):
                yield chunk

    replicas = Receiver([[[token(0, 1)], ReplicaDeparted("blocks", lambda: released.append(True))], []])
    second = asyncio.Event()

    async def leave() -> None:
        stream = resumed(REQUEST, replicas.attempt, POLICY)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await second.wait()
        waiting.cancel()
        await asyncio.wait({waiting})
        await stream.aclose()

    asyncio.run(leave())
    assert released == [True]

"""The ingress's side of an engine replica: streams that stop the engine when they are closed."""

import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace

from ray.serve.handle import DeploymentHandle

from serve_paged.core.errors import EngineDead
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt for the engine, ready to run."""

    request_id: str  # unique: the engine knows the request by it
    prompt_token_ids: list[int]
    params: SamplingParams  # the seed is always set, so that the request can be resumed anywhere
    priority: int = 0
    cache_salt: str = ""
    output_token_ids: Mapping[int, list[int]] = field(default_factory=dict)  # to resume: choice -> its output so far


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters, with a seed drawn if the client gave none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))


class EngineClient:
    """Calls the engine replicas of this application."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas
        self._streaming = replicas.options(stream=True)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Chunks of the request's choices. Closing or cancelling this aborts the request in the engine.

        Raises what the replica raises, and `EngineDead` when a choice ended because the engine failed.
        """
        response = self._streaming.generate.remote(request)
        complete = False
        try:
            async for chunk in response:
                if any(delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT) for delta in chunk):
                    raise EngineDead("the engine ended the request")
                yield chunk
            complete = True
        finally:
            if not complete:  # leaving the loop alone would let the engine run to the end
                response.cancel()

    async def stats(self) -> EngineStats:
        """The state of one replica. Raises `EngineDead` or Ray's errors when it has failed."""
        return await self._replicas.stats.remote()

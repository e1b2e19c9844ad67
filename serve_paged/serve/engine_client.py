"""The ingress's side of an engine replica: streams that stop the engine when they are closed."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from ray.exceptions import RayActorError
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentHandle

from serve_paged.core.errors import EngineDead
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.handover import Handover, ReplicaDeparted
from serve_paged.serve.routing_desk import RoutingDesk

# A replica that knows it is leaving hands its requests over; one that does not is left without its help, later.
HANDOVER_S = 4.0


class EngineClient:
    """Calls the engine replicas of this application."""

    def __init__(self, replicas: DeploymentHandle, desk: RoutingDesk, *, drain_grace_s: float) -> None:
        self._replicas = replicas
        self._streaming = replicas.options(stream=True)
        self._desk = desk
        self._drain_grace_s = drain_grace_s  # how long a request may stay on a replica that drains

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Chunks of the request's choices. Closing or cancelling this aborts the request in the engine.

        Raises what the replica raises, `EngineDead` when a choice ended because the engine failed, and
        `ReplicaDeparted` when the replica drains and the request has not ended within `drain_grace_s`: its `release`
        must be called then.
        """
        response = self._streaming.generate.remote(request)
        departure = _Departure(response.cancel, self._drain_grace_s + HANDOVER_S)
        complete, first, is_held, num_output_tokens = False, True, False, 0
        try:
            async for chunk in response:
                if isinstance(chunk, Handover):
                    is_held = True
                    raise ReplicaDeparted(chunk.blocks, response.cancel)
                if any(delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT) for delta in chunk):
                    raise EngineDead("the engine ended the request")
                if first:
                    first = False
                    self._desk.prefilled(request.request_id, max(delta.events_seq_no for delta in chunk))
                    self._desk.on_departure(request.request_id, departure.announce)
                num_output_tokens += sum(len(delta.token_ids) for delta in chunk)
                yield chunk
            complete = True
        except RequestCancelledError:
            if not departure.is_due:
                raise
            raise ReplicaDeparted from None
        except RayActorError:
            self._desk.lost(request.request_id)
            raise
        finally:
            departure.close()
            self._desk.ended(request.request_id, num_output_tokens // request.num_choices if complete else None)
            if not (complete or is_held):  # leaving the loop alone would let the engine run to the end
                response.cancel()

    async def stats(self) -> EngineStats:
        """The state of one replica. Raises `EngineDead` or Ray's errors when it has failed."""
        return await self._replicas.stats.remote()


class _Departure:
    """Cancels a call some time after its replica was said to be leaving."""

    def __init__(self, cancel: Callable[[], None], grace_s: float) -> None:
        self.is_due = False
        self._cancel = cancel
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def announce(self) -> None:
        """The replica is leaving. From any thread."""
        self._loop.call_soon_threadsafe(self._start)

    def close(self) -> None:
        """The call has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        self._timer = self._loop.call_later(self._grace_s, self._end)

    def _end(self) -> None:
        self.is_due = True
        self._cancel()

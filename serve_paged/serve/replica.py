"""The deployment that owns one engine: token chunks out, health and statistics for whoever asks."""

import asyncio
import os
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from serve_paged.config import EngineConfig, prepare_environment
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.core.replica_report import ReplicaReport, ReportComposer
from serve_paged.serve.chunks import ChunkPolicy, chunked
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.handover import KEEP_S, Handover, Leave, ReportAnswer, fetch
from serve_paged.serve.model_card import ModelCard
from serve_paged.serve.reporter import ReportPolicy, keep_reporting
from serve_paged.serve.watchdog import watch

if TYPE_CHECKING:
    from serve_paged.engine.block_transfer import BlockBundle
    from serve_paged.engine.text import TextModel


INGRESS = "Ingress"  # the deployment that reports go to
REPORT_TIMEOUT_S = 5.0


class EngineReplica:
    """One engine in one Ray actor, a Ray Serve deployment. Each open stream is one call of `generate`."""

    def __init__(self, config: EngineConfig) -> None:
        prepare_environment(os.environ)
        # Imported here: this module is also loaded by the controller and the ingress, which must stay free of torch.
        from serve_paged.engine.async_engine import AsyncEngine
        from serve_paged.engine.build import build_engine
        from serve_paged.engine.engine import Request

        engine = build_engine(config)
        self._request_type = Request
        self._card = _describe(engine.text_model, engine.max_model_len, engine.block_size)
        self._engine = AsyncEngine(engine, step_timeout_s=config.step_timeout_s)
        self._policy = ChunkPolicy()
        self._num_streams = 0
        self._leave = Leave()
        self._tasks: list[asyncio.Task[None]] = []

    async def generate(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta] | Handover, None]:
        """Run a request and yield its chunks; a `Handover` as the last one where this replica has to leave.

        Cancelling the call aborts the request within one step of the engine.
        Raises `InvalidRequest` before the first chunk, `EngineDead` when the engine fails.
        """
        if request.blocks is not None:
            await fetch(request.blocks, self._import)
        steps = self._engine.generate(
            self._request_type(
                request.request_id,
                request.prompt_token_ids,
                request.params,
                priority=request.priority,
                cache_salt=request.cache_salt,
                output_token_ids=request.output_token_ids,
                cache_root=request.cache_root,
                block_hashes=request.block_hashes,
            )
        )
        self._num_streams += 1
        try:
            async with aclosing(chunked(steps, self._policy, self._count_streams, time.monotonic)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    if self._leave.is_due:
                        break
                else:
                    return
                blocks = await self._export(request.request_id)
            yield Handover(blocks)
            await asyncio.sleep(KEEP_S)  # until it is cancelled: the blocks live as long as this process
        finally:
            self._num_streams -= 1

    async def _export(self, request_id: str) -> Any:
        """A reference to the blocks of a running request, where moving them is cheaper than computing them again."""
        bundle = await self._engine.call(lambda engine: engine.export_request(request_id))
        return None if bundle is None else ray.put(bundle)

    async def _import(self, bundle: "BlockBundle") -> int:
        return await self._engine.call(lambda engine: engine.import_blocks(bundle))

    async def describe(self) -> ModelCard:
        """What an ingress must know about the model."""
        return self._card

    async def stats(self) -> EngineStats:
        """The engine's state after its latest step. Raises `EngineDead` when it has stopped."""
        self._engine.check_health()
        return self._engine.stats()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises. The first call starts what runs beside."""
        self._engine.check_health()
        if not self._tasks:
            self._tasks = [asyncio.create_task(task) for task in (watch(self._engine.check_health), self._report())]

    async def _report(self) -> None:
        """Tell every ingress of this application how things stand here, for ever."""
        context = serve.get_replica_context()
        ingress = serve.get_deployment_handle(INGRESS, context.app_name)
        composer = ReportComposer(context.replica_id.unique_id)

        async def send(report: ReplicaReport) -> bool:
            sent = ingress.broadcast("report", report)
            answers: list[ReportAnswer] = await sent.results_async(timeout_s=REPORT_TIMEOUT_S)
            for answer in answers:
                if answer.leave_after_s is not None:
                    self._leave.ask(answer.leave_after_s)
            return any(answer.wants_snapshot for answer in answers)

        async def compose(with_snapshot: bool) -> ReplicaReport:
            return await self._engine.call(
                lambda engine: composer.compose(
                    engine.scheduler, engine.kv_events, engine.prefill_token_s, with_snapshot=with_snapshot
                )
            )

        await keep_reporting(compose, send, ReportPolicy())

    def _count_streams(self) -> int:
        return self._num_streams


def _describe(text_model: "TextModel", max_model_len: int, block_size: int) -> ModelCard:
    template = text_model.chat_template
    return ModelCard(
        name=text_model.name,
        created=int(time.time()),
        max_model_len=max_model_len,
        vocab_size=text_model.vocab_size,
        eos_token_ids=tuple(text_model.eos_token_ids),
        fingerprint=text_model.fingerprint,
        kv_dtype=text_model.kv_dtype,
        block_size=block_size,
        tokenizer_json=zlib.compress(text_model.tokenizer.to_str().encode("utf-8")),
        chat_template=None if template is None else template.source,
        special_tokens={} if template is None else template.special_tokens,
    )

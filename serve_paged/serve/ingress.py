"""What faces clients: the HTTP routes, and `generate` and `chat` for Python handles."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.replica_report import ReplicaReport
from serve_paged.serve.desks import desk_of
from serve_paged.serve.engine_client import EngineClient
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.handover import ReportAnswer
from serve_paged.serve.protocol import ChatRequest, GenerateRequest, parse_arguments
from serve_paged.serve.results import Result, collect
from serve_paged.serve.resume import ResumePolicy
from serve_paged.serve.routes import Routes
from serve_paged.serve.service import TextService
from serve_paged.serve.settings import IngressConfig
from serve_paged.serve.streams import merge

Deltas = AsyncGenerator[ChoiceDelta, None]


class Ingress:
    """Tokenises, streams, and stops the engine when a client goes away. Holds no model. A Ray Serve deployment."""

    async def __init__(self, replicas: DeploymentHandle, config: IngressConfig) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        card = await replicas.describe.remote()  # waits for the model, and warms the way to it
        app_name = serve.get_replica_context().app_name
        self._desk = desk_of(app_name)
        self._explains = config.explain_routing
        self._drain_grace_s = config.drain_grace_s
        client = EngineClient(replicas, self._desk, drain_grace_s=config.drain_grace_s)
        policy = ResumePolicy(max_resumes=config.max_resumes, recovery_s=config.recovery_s)
        self._service = TextService(client, card, policy)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Ray Serve once this is constructed."""
        return Routes(self._service, self._desk if self._explains else None).app()

    async def generate(self, prompt: str | list[int], *, stream: bool = True, **fields: Any) -> Deltas | Result:
        """Continue a prompt, given as text or token ids.

        `handle.options(stream=True).generate.remote(prompt)` streams `ChoiceDelta`s;
        `handle.generate.remote(prompt, stream=False)` answers with a whole `Result`. `fields` are those of
        `GenerateRequest` (temperature, max_tokens, ...); an unknown one raises `InvalidRequest` naming it.
        """
        request = parse_arguments(GenerateRequest, {"prompt": prompt, **fields})
        return await self._run(await self._service.text_request(request.prompt, request), stream=stream)

    async def chat(self, messages: list[dict[str, Any]], *, stream: bool = True, **fields: Any) -> Deltas | Result:
        """Answer a conversation (`[{"role": "user", "content": "..."}]`). Streams and answers like `generate`."""
        request = parse_arguments(ChatRequest, {"messages": messages, **fields})
        return await self._run(await self._service.chat_request(request.messages, request), stream=stream)

    async def report(self, report: ReplicaReport) -> ReportAnswer:
        """Called by every replica, a few times a second."""
        wants_snapshot = self._desk.report(report)
        is_leaving = self._desk.has_left(report.replica_id)
        return ReportAnswer(wants_snapshot, self._drain_grace_s if is_leaving else None)

    async def _run(self, request: EngineRequest, *, stream: bool) -> Deltas | Result:
        chunks = self._service.stream(request)
        if stream:
            return _one_by_one(chunks)
        (result,) = await collect([request.request_id], request.params.n, merge([chunks]))
        return result


async def _one_by_one(chunks: AsyncGenerator[list[ChoiceDelta], None]) -> Deltas:
    async with aclosing(chunks):
        async for chunk in chunks:
            for delta in chunk:
                yield delta

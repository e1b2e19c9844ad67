"""The HTTP routes: OpenAI's API over one model. Knows nothing of Ray."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.errors import ApiError, UnknownModel, api_error
from serve_paged.serve.protocol import ChatCompletionRequest, CompletionRequest, HttpFields, parse_body
from serve_paged.serve.request_body import read_body
from serve_paged.serve.responses import ChatFormat, CompletionFormat, Envelope
from serve_paged.serve.results import Chunks, Usage, collect
from serve_paged.serve.routing_desk import RoutingDesk
from serve_paged.serve.service import TextService
from serve_paged.serve.sse import DONE, EventStream, event
from serve_paged.serve.streams import merge

logger = logging.getLogger("ray.serve")  # so that it lands in the replica's own log file

Format = ChatFormat | CompletionFormat
Endpoint = Callable[[Request], Awaitable[Response]]

_HEALTH_TIMEOUT_S = 5.0
SESSION_HEADERS = ("X-Session-Id", "X-Session-Affinity", "X-Correlation-ID")


class Routes:
    """The endpoints of one model's API."""

    def __init__(self, service: TextService, desk: RoutingDesk | None = None) -> None:
        """`desk`: where routing decisions can be asked for; None: nobody is told."""
        self._service = service
        self._desk = desk
        self._card = service.card

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", _guarded(self.chat_completions), methods=["POST"]),
            Route("/v1/completions", _guarded(self.completions), methods=["POST"]),
            Route("/v1/models", _guarded(self.models), methods=["GET"]),
            Route("/v1/models/{model_id:path}", _guarded(self.model), methods=["GET"]),
            Route("/health", _guarded(self.health), methods=["GET"]),
        ]
        if self._desk is not None:
            routes.append(Route("/debug/routing/{request_id}", _guarded(self.routing), methods=["GET"]))
        return Starlette(routes=routes, exception_handlers={HTTPException: _routing_error})

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = parse_body(ChatCompletionRequest, await read_body(request))
        self._check_model(body.model)
        run = await self._service.chat_request(body.messages, body)
        run = replace(run, session_id=_session_of(request))
        envelope = self._envelope("chatcmpl")
        shape = ChatFormat(envelope, self._service.tokenizer.token_bytes, logprobs=run.params.logprobs is not None)
        return await self._respond(body, [run], shape)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = parse_body(CompletionRequest, await read_body(request))
        self._check_model(body.model)
        runs = [await self._service.text_request(prompt, body) for prompt in body.prompts()]
        runs = [replace(run, session_id=_session_of(request)) for run in runs]
        params = runs[0].params
        shape = CompletionFormat(
            self._envelope("cmpl"),
            self._service.tokenizer.token_bytes,
            logprobs=params.logprobs is not None,
            num_choices=params.n,
        )
        return await self._respond(body, runs, shape)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model_json()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        self._check_model(request.path_params["model_id"])
        return JSONResponse(self._model_json())

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while an engine answers."""
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            await self._service.client.stats()
        return Response(status_code=200)

    async def routing(self, request: Request) -> Response:
        """GET /debug/routing/{request_id}: which replica, and why; one decision for each time it was routed."""
        assert self._desk is not None
        request_id = request.path_params["request_id"]
        decisions = self._desk.decisions(request_id)
        if not decisions:
            told = ApiError(404, f"no routing decision is remembered for request {request_id!r}", code="not_found")
            return _error_response(told)
        return JSONResponse({"request_id": request_id, "decisions": [asdict(decision) for decision in decisions]})

    async def _respond(self, body: HttpFields, runs: list[EngineRequest], shape: Format) -> Response:
        chunks = merge([self._service.stream(run) for run in runs])
        num_choices = runs[0].params.n
        if not body.stream:
            answer = shape.answer(await collect([run.request_id for run in runs], num_choices, chunks))
            return JSONResponse(answer, headers=self._routing_headers(runs))
        first = await anext(chunks)  # errors before the first token get a status of their own
        events = _Events(shape, num_choices, include_usage=body.include_usage)
        return EventStream(_stream(first, chunks, events), chunks, self._routing_headers(runs))

    def _routing_headers(self, runs: list[EngineRequest]) -> dict[str, str]:
        """Which replica took each prompt, why in a few words, and the id under which all of it can be asked for."""
        if self._desk is None:
            return {}
        decisions = [decision for run in runs for decision in self._desk.decisions(run.request_id)[:1]]
        if not decisions:
            return {}
        return {
            "X-Routing-Id": ",".join(decision.reservation_id for decision in decisions),
            "X-Routing": ", ".join(decision.summary() for decision in decisions),
        }

    def _check_model(self, name: str) -> None:
        if name != self._card.name:
            raise UnknownModel(f"The model `{name}` does not exist; this server has `{self._card.name}`", "model")

    def _envelope(self, prefix: str) -> Envelope:
        return Envelope(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), self._card.name)

    def _model_json(self) -> dict[str, Any]:
        card = self._card
        return {
            "id": card.name,
            "object": "model",
            "created": card.created,
            "owned_by": "serve-paged",
            "max_model_len": card.max_model_len,
        }


class _Events:
    """Renders one answer's chunks as events and counts its tokens."""

    def __init__(self, shape: Format, num_choices: int, *, include_usage: bool) -> None:
        self._shape = shape
        self._num_choices = num_choices
        self._extra = {"usage": None} if include_usage else {}
        self._started: set[int] = set()  # choices that the client has heard of
        self._usage = Usage()

    def render(self, prompt_index: int, deltas: list[ChoiceDelta]) -> bytes:
        """Events for the news of one prompt. Held-back text makes no event, but a choice's first delta does."""
        first_choice = prompt_index * self._num_choices
        if not any(first_choice + choice in self._started for choice in range(self._num_choices)):
            self._usage.prompt_tokens += deltas[0].num_prompt_tokens
            self._usage.cached_tokens += deltas[0].num_cached_tokens
        data = b""
        for delta in deltas:
            index = first_choice + delta.choice
            self._usage.completion_tokens += len(delta.token_ids)
            if index not in self._started or delta.text or delta.finish_reason is not None or delta.logprobs:
                self._started.add(index)
                data += event(self._shape.chunk(index, delta) | self._extra)
        return data

    def end(self) -> bytes:
        """What follows the last delta."""
        if not self._extra:
            return DONE
        return event(self._shape.envelope.usage_chunk(self._shape.chunk_kind, self._usage)) + DONE


async def _stream(first: tuple[int, list[ChoiceDelta]], chunks: Chunks, events: _Events) -> AsyncGenerator[bytes, None]:
    """The bytes of a streamed answer. An engine that fails midway ends them with an error object and no [DONE]."""
    async with aclosing(chunks):
        try:
            yield events.render(*first)
            async for prompt_index, deltas in chunks:
                if data := events.render(prompt_index, deltas):
                    yield data
        except Exception as error:  # noqa: BLE001  (the status is sent: the client is told in the stream)
            yield event(_logged(error).body())
        else:
            yield events.end()


def _session_of(request: Request) -> str | None:
    """The client's name for a conversation, under any of the names that gateways use."""
    return next((request.headers[name] for name in SESSION_HEADERS if name in request.headers), None)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Whatever an endpoint raises becomes an answer in OpenAI's shape."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001  (the edge of the server)
            return _error_response(_logged(error))

    return guarded


def _logged(error: Exception) -> ApiError:
    told = api_error(error)
    if told.status >= 500:
        logger.error("request failed: %s", told.message, exc_info=error)
    return told


def _routing_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}", code=code)
    return _error_response(told)


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)

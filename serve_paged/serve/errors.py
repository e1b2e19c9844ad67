"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}` with a fitting status."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_paged.core.errors import EngineDead, InvalidRequest, RequestTooLong
from serve_paged.serve.request_body import BodyTooLarge


@dataclass(frozen=True, slots=True)
class ApiError:
    """What an HTTP client is told about a failure."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class UnknownModel(InvalidRequest):
    """The request names a model that is not served here (HTTP 404)."""


def api_error(error: BaseException) -> ApiError:
    """Map what a request raised to what its client is told. Anything unforeseen is a 500 without details."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    match cause:
        case UnknownModel():
            return ApiError(404, cause.message, param=cause.param, code="model_not_found")
        case BodyTooLarge():
            return ApiError(413, cause.message, code="body_too_large")
        case RequestTooLong():
            return ApiError(400, cause.message, param=cause.param, code="context_length_exceeded")
        case InvalidRequest():
            return ApiError(400, cause.message, param=cause.param)
        case EngineDead() | RayActorError() | DeploymentUnavailableError() | TimeoutError():
            message = "The engine failed and is being replaced; try again."
            return ApiError(503, message, "server_error", code="unavailable")
        case BackPressureError():
            return _overloaded(cause)
        case _:
            return ApiError(500, "The server had an error while serving this request.", "server_error", code="internal")


def _overloaded(error: BackPressureError) -> ApiError:
    retry_after_s = error.retry_after_s or 1
    return ApiError(
        error.status_code,
        "Too many requests are waiting; try again later.",
        "rate_limit_error" if error.status_code == 429 else "server_error",
        code="overloaded",
        headers={"Retry-After": str(max(1, round(retry_after_s)))},
    )


def invalid_request(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong with a request, with the path of its field (`messages[0].content`)."""
    errors = error.errors(include_url=False, include_input=False)  # the input may be megabytes
    first = max(errors, key=lambda found: (found["type"] == "too_long", len(found["loc"])))  # of a union: its closest
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, InvalidRequest):  # by our own validators, which name the field themselves
        return raised
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['ctx']['error']}")
    param = _path(first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return InvalidRequest(f"Unrecognized or unsupported request argument: {param}", param)
        case "missing":
            return InvalidRequest(f"Missing required argument: {param}", param)
        case _:
            return InvalidRequest(f"Invalid value for {param or 'the body'}: {first['msg']}", param or None)


def _path(loc: tuple[int | str, ...]) -> str:
    """Join a pydantic location, leaving out the names of union members ("str", "list[int]") and dict-key marks."""
    path = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
        elif depth == 0 or (part.isidentifier() and part not in _TYPE_NAMES):
            path += f".{part}" if path else part
    return path


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "none"})

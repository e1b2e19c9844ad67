"""What clients may ask for, over HTTP and through the Python handle, and how it becomes `SamplingParams`.

Unknown fields are errors: nothing that a client asks for is silently ignored. Fields that cannot change the output
(`user`, `metadata`, ...) are accepted. Names follow OpenAI's API; the extras are vLLM's.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.sampling_params import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from serve_paged.serve.errors import invalid_request

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for /v1/completions
# Lists are refused at the first item too many or wrong: reading on, and noting every error, would stall all requests.
MAX_PROMPT_TOKENS = 2**20  # far above any context
MAX_MESSAGES = 2**13  # likewise: a message is several tokens
MAX_PRIORITY = 10  # either way: clients can jump a queue of 2 * MAX_PRIORITY * ageing_s seconds, and starve nobody


def _check_encodable(text: str) -> str:
    if not text.isascii():
        text.encode("utf-8")  # raises on a lone surrogate, which only a Python caller can send
    return text


def _at_most(max_length: int) -> Any:
    return Field(max_length=max_length, fail_fast=True)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, AfterValidator(_check_encodable)]
TokenIds = Annotated[list[TokenId], _at_most(MAX_PROMPT_TOKENS)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class SamplingFields(_Fields):
    """The sampling and stopping fields that every kind of request shares. None means the default."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Text | Annotated[list[Text], _at_most(MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], _at_most(MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)  # lower is served first
    cache_salt: Text = ""  # requests share prefix-cache blocks only within one salt

    @property
    def limit_field(self) -> str:
        """The name under which the client limits the output."""
        return "max_tokens"

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters. Raises `InvalidRequest` naming the field that is out of range."""
        return self._sampling_params(max_tokens=self.max_tokens, logprobs=None)

    def _sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        fields = self.model_dump(include=set(_PARAM_FIELDS), exclude_none=True)
        if self.stop is not None:
            fields["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.stop_token_ids is not None:
            fields["stop_token_ids"] = tuple(self.stop_token_ids)
        try:
            return SamplingParams(**fields, max_tokens=max_tokens, logprobs=logprobs)
        except InvalidRequest as error:
            if error.param != "max_tokens":
                raise
            raise InvalidRequest(error.message.replace("max_tokens", self.limit_field, 1), self.limit_field) from error


_PARAM_FIELDS = frozenset(SamplingParams.__slots__) & frozenset(SamplingFields.model_fields) - {"max_tokens"}


class TextPart(_Fields):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Text


class Message(_Fields):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], _at_most(MAX_MESSAGES)]
    name: Text | None = None
    refusal: None = None  # clients send an answer's message back as they got it

    def for_template(self) -> dict[str, str]:
        """What a chat template reads: plain text, and `system` for OpenAI's newer name of it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text} | ({"name": self.name} if self.name is not None else {})


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class GenerateRequest(SamplingFields):
    """`generate` of the Python handle: a prompt as text or token ids."""

    prompt: Text | TokenIds
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters; without `max_tokens` up to the context length."""
        return self._sampling_params(max_tokens=self.max_tokens, logprobs=self.logprobs)


class ChatRequest(SamplingFields):
    """`chat` of the Python handle."""

    messages: Messages
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters; without `max_tokens` up to the context length."""
        return self._sampling_params(max_tokens=self.max_tokens, logprobs=self.logprobs)


class StreamOptions(_Fields):
    """How to stream."""

    include_usage: bool | None = None


class ResponseFormat(_Fields):
    """Only plain text so far."""

    type: Literal["text"]


class HttpFields(SamplingFields):
    """What both HTTP routes share beyond sampling."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted because they cannot change the output.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "HttpFields":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed when stream is true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs is not available when stream is true", "prompt_logprobs")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that reports usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatCompletionRequest(HttpFields):
    """The body of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], _at_most(1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest("max_tokens and max_completion_tokens differ", "max_completion_tokens")
        return self

    @property
    def limit_field(self) -> str:
        """OpenAI's newer name, where the client uses it."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters. Raises `InvalidRequest` naming the field that is out of range."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling_params(max_tokens=getattr(self, self.limit_field), logprobs=logprobs)


class CompletionRequest(HttpFields):
    """The body of POST /v1/completions."""

    prompt: (
        str | TokenIds | Annotated[list[str], _at_most(MAX_CHOICES)] | Annotated[list[TokenIds], _at_most(MAX_CHOICES)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: Literal[False] | None = None  # true is refused by name
    suffix: None = None  # likewise

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt, text or token ids. Raises `InvalidRequest` when there is none or too many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequest("prompt must not be empty", "prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        if len(self.prompt) * min(self.n or 1, MAX_CHOICES) > MAX_CHOICES:  # of one prompt it is n that is too large
            message = f"A request may ask for at most {MAX_CHOICES} completions: prompts times n"
            raise InvalidRequest(f"{message}, here {len(self.prompt)} times {self.n or 1}", "prompt")
        return list(self.prompt)

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters. Raises `InvalidRequest` naming the field that is out of range."""
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self._sampling_params(max_tokens=limit, logprobs=self.logprobs)


_Request = TypeVar("_Request", bound=BaseModel)


def parse_body(kind: type[_Request], body: bytes) -> _Request:
    """Read a request's JSON body. Raises `InvalidRequest` naming the offending field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from error


def parse_arguments(kind: type[_Request], arguments: dict[str, Any]) -> _Request:
    """Read the arguments of a call through the Python handle, as strictly as a body; tuples may stand for lists.

    Raises `InvalidRequest` naming the offending argument.
    """
    try:
        return kind.model_validate(_lists_for_tuples(arguments, _MAX_DEPTH))
    except ValidationError as error:
        raise invalid_request(error) from error


_MAX_DEPTH = 5  # of lists in arguments: the parts of the content of a message in `messages`


def _lists_for_tuples(value: Any, depth: int) -> Any:
    if depth and isinstance(value, list | tuple):
        return [_lists_for_tuples(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {key: _lists_for_tuples(item, depth - 1) for key, item in value.items()}
    return value

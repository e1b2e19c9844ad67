"""Answers in OpenAI's shapes, whole or as stream chunks, for chat and for plain completions."""

from dataclasses import dataclass, field
from typing import Any

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.serve.logprob_format import BytesOf, chat_logprobs, completion_logprobs, prompt_logprobs
from serve_paged.serve.results import Result, Usage, usage_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object and chunk of one answer repeats."""

    id: str
    created: int  # seconds since 1970
    model: str

    def wrap(self, kind: str, choices: list[Json]) -> Json:
        """The object around the choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def usage_chunk(self, kind: str, usage: Usage) -> Json:
        """The last chunk of a stream that reports usage."""
        return self.wrap(kind, []) | {"usage": usage.as_json()}


@dataclass(slots=True)
class ChatFormat:
    """The shapes of /v1/chat/completions. One per request: it remembers which choices have begun."""

    envelope: Envelope
    bytes_of: BytesOf
    logprobs: bool
    begun: set[int] = field(default_factory=set)

    chunk_kind = "chat.completion.chunk"

    def answer(self, results: list[Result]) -> Json:
        """The whole answer. Chat has one prompt."""
        (result,) = results
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.logprobs, self.bytes_of) if self.logprobs else None,
                "finish_reason": choice.finish_reason,
                **_stop_reason(choice.stop_reason),
            }
            for choice in result.choices
        ]
        answer = self.envelope.wrap("chat.completion", choices) | {"usage": usage_of(results).as_json()}
        if result.prompt_logprobs:
            answer["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, self.bytes_of)
        return answer

    def chunk(self, index: int, delta: ChoiceDelta) -> Json:
        """One chunk of a stream; `index` is the choice's number in the answer."""
        content: Json = {"content": delta.text} if delta.text else {}
        if index not in self.begun:
            self.begun.add(index)
            content = {"role": "assistant", "content": delta.text}
        choice = {
            "index": index,
            "delta": content,
            "logprobs": chat_logprobs(delta.logprobs, self.bytes_of) if self.logprobs else None,
            "finish_reason": delta.finish_reason,
            **_stop_reason(delta.stop_reason),
        }
        return self.envelope.wrap(self.chunk_kind, [choice])


@dataclass(slots=True)
class CompletionFormat:
    """The shapes of /v1/completions. One per request: it remembers how long each choice's text is."""

    envelope: Envelope
    bytes_of: BytesOf
    logprobs: bool
    num_choices: int  # per prompt: choice c of prompt p is number p * num_choices + c
    text_lengths: dict[int, int] = field(default_factory=dict)

    chunk_kind = "text_completion"

    def answer(self, results: list[Result]) -> Json:
        """The whole answer to all prompts."""
        choices = [
            {
                "index": prompt_index * self.num_choices + choice.index,
                "text": choice.text,
                "logprobs": completion_logprobs(choice.logprobs, self.bytes_of, 0) if self.logprobs else None,
                "finish_reason": choice.finish_reason,
                **_stop_reason(choice.stop_reason),
                **(
                    {"prompt_logprobs": prompt_logprobs(result.prompt_logprobs, self.bytes_of)}
                    if result.prompt_logprobs
                    else {}
                ),
            }
            for prompt_index, result in enumerate(results)
            for choice in result.choices
        ]
        return self.envelope.wrap("text_completion", choices) | {"usage": usage_of(results).as_json()}

    def chunk(self, index: int, delta: ChoiceDelta) -> Json:
        """One chunk of a stream; `index` is the choice's number in the answer."""
        offset = self.text_lengths.get(index, 0)
        self.text_lengths[index] = offset + len(delta.text)
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": completion_logprobs(delta.logprobs, self.bytes_of, offset) if self.logprobs else None,
            "finish_reason": delta.finish_reason,
            **_stop_reason(delta.stop_reason),
        }
        return self.envelope.wrap(self.chunk_kind, [choice])


def _stop_reason(stop_reason: int | str | None) -> Json:
    """vLLM's extra: which stop token or string ended the choice; left out where nothing of the kind did."""
    return {} if stop_reason is None else {"stop_reason": stop_reason}

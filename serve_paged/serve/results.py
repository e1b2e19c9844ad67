"""What a whole answer consists of: the deltas of each choice, put together."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from serve_paged.core.outputs import ChoiceDelta, TokenLogprobs
from serve_paged.core.sequence import FinishReason

Chunks = AsyncGenerator[tuple[int, list[ChoiceDelta]], None]  # (number of the prompt, its news)


@dataclass(slots=True)
class Choice:
    """One of the n completions of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id or stop string that ended it
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """The complete answer to one prompt. Crosses process boundaries."""

    request_id: str
    choices: list[Choice]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    def add(self, delta: ChoiceDelta) -> None:
        """Append what is new in one choice."""
        choice = self.choices[delta.choice]
        choice.text += delta.text
        choice.token_ids += delta.token_ids
        choice.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            choice.stop_reason = delta.stop_reason
        self.prompt_logprobs += delta.prompt_logprobs
        self.num_prompt_tokens = max(self.num_prompt_tokens, delta.num_prompt_tokens)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)


async def collect(request_ids: list[str], num_choices: int, chunks: Chunks) -> list[Result]:
    """Read the merged streams of some prompts to their end: one result per prompt, each of `num_choices` choices."""
    results = [Result(request_id, [Choice(index) for index in range(num_choices)]) for request_id in request_ids]
    async with aclosing(chunks):
        async for prompt_index, deltas in chunks:
            for delta in deltas:
                results[prompt_index].add(delta)
    return results


@dataclass(slots=True)
class Usage:
    """Token counts of one HTTP request, over all its prompts."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def as_json(self) -> dict[str, object]:
        """OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def usage_of(results: list[Result]) -> Usage:
    """The counts of finished results."""
    return Usage(
        prompt_tokens=sum(result.num_prompt_tokens for result in results),
        cached_tokens=sum(result.num_cached_tokens for result in results),
        completion_tokens=sum(result.num_output_tokens for result in results),
    )

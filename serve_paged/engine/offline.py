"""Generate without a server: a list of prompts in, a list of finished choices out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serve_paged.core.outputs import ChoiceDelta, TokenLogprobs
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.engine import Engine, Request


@dataclass(slots=True)
class Completion:
    """One finished choice of one prompt."""

    prompt_index: int
    choice: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    num_cached_tokens: int = 0

    def extend(self, delta: ChoiceDelta) -> None:
        """Take in what is new."""
        self.token_ids.extend(delta.token_ids)
        self.text += delta.text
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.num_cached_tokens = delta.num_cached_tokens


def generate(
    engine: Engine,
    prompts: Sequence[list[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    on_delta: Callable[[ChoiceDelta], None] = lambda delta: None,
) -> list[Completion]:
    """Run all prompts (token ids) together until each choice has finished; results in order of prompt and choice.

    Raises `InvalidRequest` when a prompt can never be served; nothing has run then.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    completions: dict[tuple[str, int], Completion] = {}
    added: list[str] = []
    try:
        for index, (prompt, wanted) in enumerate(zip(prompts, each, strict=True)):
            request = Request(f"offline-{index}", prompt, wanted)
            engine.add(request)
            added.append(request.request_id)
            for choice in range(wanted.n):
                completions[request.request_id, choice] = Completion(index, choice)
        while engine.has_unfinished():
            for delta in engine.step():
                completions[delta.request_id, delta.choice].extend(delta)
                on_delta(delta)
    finally:
        for request_id in added:
            engine.abort(request_id)  # nothing to do unless something was raised
    return list(completions.values())

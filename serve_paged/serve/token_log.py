"""What a client was sent of one request, so that another replica can go on where the first one was lost."""

from dataclasses import dataclass, field, replace

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.serve.engine_request import EngineRequest, attempt_id


@dataclass(slots=True)
class _ChoiceLog:
    token_ids: list[int] = field(default_factory=list)  # all of its output, text still held back included
    is_finished: bool = False
    num_cached_tokens: int | None = None  # as first reported: a resumed prompt hits other blocks


class TokenLog:
    """The output of each choice of one request so far."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._choices = {
            choice: _ChoiceLog(list(request.output_token_ids.get(choice, ()))) for choice in _open(request)
        }

    @property
    def is_complete(self) -> bool:
        """Whether every choice has finished."""
        return all(choice.is_finished for choice in self._choices.values())

    def take(self, delta: ChoiceDelta) -> ChoiceDelta:
        """Note what is new; returns it as the client has to see it, whichever attempt it came from."""
        choice = self._choices[delta.choice]
        choice.token_ids += delta.token_ids
        choice.is_finished = delta.finish_reason is not None
        if choice.num_cached_tokens is None:
            choice.num_cached_tokens = delta.num_cached_tokens
        return replace(delta, request_id=self._request.request_id, num_cached_tokens=choice.num_cached_tokens)

    def remainder(self, attempt: int) -> EngineRequest:
        """What is left to do, as a request under an id of its own: a lost attempt may still hold the old one.

        Output is passed apart from the prompt: penalties, limits, stop strings and random numbers depend on which is
        which. While nothing was received the choices can still share the prompt, and the request goes out as it was.
        """
        request_id = attempt_id(self._request.request_id, attempt)
        outputs = {index: log.token_ids[:] for index, log in self._choices.items() if not log.is_finished}
        if len(outputs) == len(self._choices) and not any(outputs.values()):
            outputs = {}
        return replace(self._request, request_id=request_id, output_token_ids=outputs)


def _open(request: EngineRequest) -> list[int]:
    return list(request.output_token_ids) or list(range(request.params.n))

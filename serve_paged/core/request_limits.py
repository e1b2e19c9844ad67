"""What can never be served, decided in one place for the ingress and the engine alike."""

from collections.abc import Collection, Iterable, Sequence

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.sampling_params import SamplingParams


def check_request(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    max_model_len: int,
    vocab_size: int,
    eos_token_ids: Collection[int] = (),
    prompt_field: str = "prompt",
    limit_field: str = "max_tokens",
) -> None:
    """Raise `InvalidRequest` or `RequestTooLong` naming the field, as the caller's client calls it, that is wrong."""
    num_prompt = len(prompt_token_ids)
    if not num_prompt:
        raise InvalidRequest("the prompt must hold at least one token", prompt_field)
    check_vocabulary(prompt_token_ids, vocab_size, prompt_field)
    check_vocabulary(params.logit_bias, vocab_size, "logit_bias")
    check_vocabulary(params.stop_token_ids, vocab_size, "stop_token_ids")
    if params.min_tokens and len({*eos_token_ids, *params.stop_token_ids}) >= vocab_size:
        raise InvalidRequest("min_tokens bars every token: all of them end the sequence", "min_tokens")
    if num_prompt >= max_model_len:
        raise RequestTooLong(
            f"the prompt has {num_prompt} tokens; the context holds {max_model_len}, output included", prompt_field
        )
    if params.max_tokens is not None and num_prompt + params.max_tokens > max_model_len:
        raise RequestTooLong(
            f"{num_prompt} prompt tokens and {limit_field}={params.max_tokens} exceed the context of {max_model_len} "
            "tokens",
            limit_field,
        )


def check_vocabulary(token_ids: Iterable[int], vocab_size: int, field: str) -> None:
    """Raise `InvalidRequest` if a token id lies outside the vocabulary."""
    outside = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if outside is not None:
        raise InvalidRequest(f"token id {outside} is not in the vocabulary of {vocab_size} tokens", field)

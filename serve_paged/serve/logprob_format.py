"""Log probabilities in the three shapes that clients know: chat, completions, and vLLM's prompt_logprobs."""

from collections.abc import Callable, Sequence
from typing import Any

from serve_paged.core.outputs import TokenLogprobs

BytesOf = Callable[[int], bytes]
_LOWEST = -9999.0  # JSON has no infinity; OpenAI documents this value for very unlikely tokens


def chat_logprobs(tokens: Sequence[TokenLogprobs], bytes_of: BytesOf) -> dict[str, Any]:
    """OpenAI's chat shape: one entry per token, each with its alternatives."""
    return {
        "content": [
            _chat_entry(token.token_id, token.logprob, bytes_of)
            | {"top_logprobs": [_chat_entry(token_id, logprob, bytes_of) for token_id, logprob in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _chat_entry(token_id: int, logprob: float, bytes_of: BytesOf) -> dict[str, Any]:
    raw = bytes_of(token_id)
    return {"token": _text(raw), "logprob": _finite(logprob), "bytes": list(raw)}


def completion_logprobs(tokens: Sequence[TokenLogprobs], bytes_of: BytesOf, offset: int) -> dict[str, Any]:
    """OpenAI's older shape: parallel lists; `offset` is where the first token's text begins."""
    texts = [_text(bytes_of(token.token_id)) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_alternatives(token, bytes_of) for token in tokens],
        "text_offset": offsets,
    }


def _alternatives(token: TokenLogprobs, bytes_of: BytesOf) -> dict[str, float]:
    """Text to log probability, the chosen token included. Of tokens with the same text the likeliest stays."""
    found: dict[str, float] = {}
    for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
        found.setdefault(_text(bytes_of(token_id)), _finite(logprob))
    return found


def prompt_logprobs(tokens: Sequence[TokenLogprobs | None], bytes_of: BytesOf) -> list[dict[str, Any] | None]:
    """vLLM's shape: per prompt token, token id to log probability, rank and text; None for the first token."""
    return [None if token is None else _prompt_entry(token, bytes_of) for token in tokens]


def _prompt_entry(token: TokenLogprobs, bytes_of: BytesOf) -> dict[str, Any]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(token.top, start=1)]
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": _text(bytes_of(token_id))}
        for token_id, logprob, rank in [*ranked, (token.token_id, token.logprob, token.rank)]
    }


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)

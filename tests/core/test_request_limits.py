"""What can never be served is refused, and the field is named as the client calls it."""

from typing import Any

import pytest

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.request_limits import check_request
from serve_paged.core.sampling_params import (
    MAX_LOGIT_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)


def check(prompt: list[int], **settings: Any) -> None:
    check_request(
        prompt, SamplingParams(**settings), max_model_len=20, vocab_size=10, eos_token_ids=(9,), limit_field="max_new"
    )


@pytest.mark.parametrize(
    ("prompt", "settings", "field"),
    [
        ([], {}, "prompt"),
        ([10], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1] * 20, {}, "prompt"),
        ([1] * 15, {"max_tokens": 6}, "max_new"),
        ([1], {"logit_bias": {10: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": (3, -1)}, "stop_token_ids"),
        ([1], {"min_tokens": 1, "stop_token_ids": tuple(range(9))}, "min_tokens"),  # 9 is the end-of-sequence token
    ],
)
def test_a_request_that_can_never_be_served_names_its_field(
    prompt: list[int], settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(prompt, **settings)
    assert refused.value.param == field
    assert isinstance(refused.value, RequestTooLong) == (len(prompt) >= 15)


def test_a_request_at_the_limits_is_accepted() -> None:
    check([1] * 19)
    check([0, 9] * 7, max_tokens=6, logit_bias={0: 1.0, 9: -1.0}, min_tokens=1, stop_token_ids=tuple(range(8)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),  # float32 logits would overflow
        ({"stop": ("a" * (MAX_STOP_CHARS - 1), "bc")}, "stop"),
        ({"stop_token_ids": tuple(range(MAX_STOP_TOKEN_IDS + 1))}, "stop_token_ids"),
        ({"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0)}, "logit_bias"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ],
)
def test_parameters_that_could_hurt_others_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**settings)
    assert refused.value.param == field

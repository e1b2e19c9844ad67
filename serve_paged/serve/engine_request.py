"""One prompt for an engine, as the ingress sends it."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_paged.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt for the engine, ready to run."""

    request_id: str  # unique: the engine knows the request by it
    prompt_token_ids: list[int]
    params: SamplingParams  # the seed is always set, so that the request can be resumed anywhere
    priority: int = 0
    cache_salt: str = ""
    session_id: str | None = None  # of a conversation: where costs are equal, its requests go to one replica
    cache_root: bytes = b""  # start of the hash chain below; the replica uses the chain only if it has the same root
    block_hashes: tuple[bytes, ...] = ()  # of the full blocks of prompt and output (core/block_hash.py)
    blocks: Any = None  # reference to a `BlockBundle` that another replica has handed over
    output_token_ids: Mapping[int, list[int]] = field(default_factory=dict)  # to resume: choice -> its output so far

    @property
    def num_choices(self) -> int:
        """Choices that are still to be run."""
        return len(self.output_token_ids) or self.params.n


def attempt_id(request_id: str, number: int) -> str:
    """The id of a request's attempt: of the first, number 0, its own."""
    return f"{request_id}-{number}" if number else request_id


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters, with a seed drawn if the client gave none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))

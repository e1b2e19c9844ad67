"""The hash chain of a request's blocks, computed once, in the ingress: by it the router finds who holds them."""

from dataclasses import replace

from serve_paged.core.block_hash import extend_chain, root_hash
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.model_card import ModelCard


def with_chain(request: EngineRequest, card: ModelCard) -> EngineRequest:
    """The request with its chain: over the prompt, and over the output so far where a single choice has any."""
    root = root_hash(card.fingerprint, card.kv_dtype, card.block_size, cache_salt=request.cache_salt)
    outputs = list(request.output_token_ids.values())
    token_ids = request.prompt_token_ids + (outputs[0] if len(outputs) == 1 else [])
    hashes: list[bytes] = []
    extend_chain(hashes, root, token_ids, card.block_size)
    return replace(request, cache_root=root, block_hashes=tuple(hashes))

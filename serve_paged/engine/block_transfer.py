"""Blocks on their way from one engine to another, named by their hashes.

They arrive in the host tier of the receiver's prefix cache, and a request that wants them finds them there: coming
from another replica is like coming back after a swap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_paged.core.block_pool import NULL_BLOCK, BlockPool
from serve_paged.engine.kv_cache import KVCache


class IncompatibleBlocks(ValueError):
    """Blocks of another shape, element type or order of elements."""


@dataclass(frozen=True, slots=True)
class BlockBundle:
    """The contents of some blocks. Crosses process boundaries."""

    hashes: tuple[bytes, ...]  # neighbours in a chain, its head first
    format: str  # `KVCache.format`: what the bytes mean
    rows: NDArray[np.uint8]  # [num_blocks, bytes per block]


def export_blocks(pool: BlockPool, cache: KVCache, hashes: list[bytes]) -> BlockBundle:
    """The leading blocks of a chain that are cached here, on the device or on the host. Between two steps."""
    cache.synchronize()  # a swap that is under way may still write what is read here
    found = pool.match_prefix(hashes)
    rows = [
        cache.read_host(pool.host.slot_of(block_hash)) if block == NULL_BLOCK else cache.read_device(block)
        for block, block_hash in zip(found, hashes, strict=False)
    ]
    data = np.stack([row.numpy() for row in rows]) if rows else np.zeros((0, cache.block_bytes), np.uint8)
    return BlockBundle(tuple(hashes[: len(found)]), cache.format, data)


def import_blocks(pool: BlockPool, cache: KVCache, bundle: BlockBundle) -> int:
    """Put those into the host tier that are not cached here yet, as far as there is room; how many. Between two steps.

    Raises `IncompatibleBlocks` for blocks of another kind of cache.
    """
    if bundle.format != cache.format:
        raise IncompatibleBlocks(f"blocks are {bundle.format}, the cache here is {cache.format}")
    first = len(pool.match_prefix(bundle.hashes))
    to_write = pool.host.store(list(bundle.hashes[first:]))
    pool.host.end_step()
    cache.synchronize()  # a swap that is under way may still read what is overwritten now
    for index, slot in to_write:
        cache.write_host(slot, bundle.rows[first + index])
    return len(to_write)

"""The hash chain over a sequence's blocks: the one name by which blocks are found again.

A block's hash covers all tokens up to its end, so equal hashes mean equal K and V. The prefix cache, the host tier,
the router and the simulator use this same chain. Never Python's `hash()`: it differs between processes.
"""

import hashlib
import json
import struct
from collections.abc import Sequence

HASH_SIZE = 16  # bytes


def root_hash(fingerprint: str, kv_dtype: str, block_size: int, adapter: str = "", cache_salt: str = "") -> bytes:
    """Start of a chain: whatever changes K and V, or must keep caches apart, goes in here (16 bytes)."""
    fields = json.dumps([fingerprint, kv_dtype, block_size, adapter, cache_salt])  # quoted: no two lists look alike
    return hashlib.blake2b(fields.encode(), digest_size=HASH_SIZE).digest()


def private_root(root: bytes, serial: int) -> bytes:
    """A root that no other sequence has: its chain is found again by its owner alone."""
    return hashlib.blake2b(root + serial.to_bytes(8, "little"), digest_size=HASH_SIZE, person=b"private").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """blake2b-128 over the parent's digest and the block's token ids as little-endian uint32."""
    tokens = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hashlib.blake2b(parent + tokens, digest_size=HASH_SIZE).digest()


def extend_chain(hashes: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int) -> None:
    """Append the hash of every full block of `token_ids`, the tokens that follow the blocks hashed so far."""
    parent = hashes[-1] if hashes else root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)

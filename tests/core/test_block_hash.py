"""The hash chain."""

import hashlib
import struct
import subprocess
import sys

from serve_paged.core.block_hash import block_hash, extend_chain, private_root, root_hash

ROOT = root_hash("weights", "float32", 4)


def chain(token_ids: list[int]) -> list[bytes]:
    hashes: list[bytes] = []
    extend_chain(hashes, ROOT, token_ids, 4)
    return hashes


def test_a_block_hash_is_blake2b_128_of_parent_and_little_endian_tokens():
    expected = hashlib.blake2b(ROOT + struct.pack("<4I", 1, 2, 3, 2**32 - 1), digest_size=16).digest()
    assert block_hash(ROOT, [1, 2, 3, 2**32 - 1]) == expected


def test_only_full_blocks_are_hashed():
    assert len(chain([1, 2, 3])) == 0
    assert len(chain([1, 2, 3, 4, 5, 6, 7])) == 1


def test_a_chain_extended_in_steps_is_the_chain_hashed_at_once():
    tokens = list(range(19))
    hashes: list[bytes] = []
    for length in (3, 8, 9, 16, 19):
        extend_chain(hashes, ROOT, tokens[len(hashes) * 4 : length], 4)
    assert hashes == chain(tokens)


def test_a_block_hash_covers_every_token_before_it():
    first, second = chain([1, 2, 3, 4, 5, 6, 7, 8]), chain([9, 2, 3, 4, 5, 6, 7, 8])
    assert first[1] != second[1]


def test_whatever_changes_keys_and_values_changes_the_root():
    roots = [
        ROOT,
        root_hash("other", "float32", 4),
        root_hash("weights", "bfloat16", 4),
        root_hash("weights", "float32", 16),
        root_hash("weights", "float32", 4, adapter="a"),
        root_hash("weights", "float32", 4, cache_salt="a"),
    ]
    assert len(set(roots)) == len(roots)


def test_fields_of_the_root_cannot_run_into_each_other():
    assert root_hash("a", "b", 4, "c", "d") != root_hash("a", "b", 4, "cd", "")
    assert root_hash('a", "b', "c", 4) != root_hash("a", 'b", "c', 4)


def test_private_roots_differ_from_each_other_and_from_their_root():
    assert len({ROOT, private_root(ROOT, 1), private_root(ROOT, 2)}) == 3


def test_hashes_are_the_same_in_every_process():
    code = "from serve_paged.core.block_hash import *; print(block_hash(root_hash('weights', 'float32', 4), [7]).hex())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == block_hash(ROOT, [7]).hex()

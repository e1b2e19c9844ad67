"""Counter-based random numbers: Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

A number is a pure function of (seed, choice, position). No state: batch, order, preemption and device change nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # key increments: golden ratio and sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_NUM_ROUNDS = 10


def philox4x32(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Encrypt counters [4, n] under keys [2, n]; every word is 32 bits wide in a uint64. Returns [4, n]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0 = (k0 + _WEYL[0]) & _LOW
        k1 = (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3))


def seed_words(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Keys [2, n] of Python integers, of which the low 64 bits count."""
    words = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    return np.stack((words & _LOW, words >> _HALF))


def uniforms(key: NDArray[np.uint64], choices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1), 53 bits wide, for each key [2, n], choice and output position. Returns [n]."""
    counter = np.zeros((4, key.shape[1]), dtype=np.uint64)
    counter[0] = positions
    counter[1] = choices
    words = philox4x32(counter, key)
    return ((words[0] << _HALF | words[1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53

"""What the numbers of a cache stand for, where they are narrower than keys and values."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVScales:
    """What a cache's numbers are to be multiplied by to be keys and values again. Raises ValueError unless positive."""

    k: float = 1.0
    v: float = 1.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(scale) and scale > 0 for scale in (self.k, self.v)):
            raise ValueError(f"scales of keys and values must be finite and above 0, not {self.k} and {self.v}")


UNSCALED = KVScales()


def require_unscaled(kv_scales: KVScales, dtype: torch.dtype) -> None:
    """Raises ValueError for scales other than 1, which a cache of this dtype has no use for."""
    if kv_scales != UNSCALED:
        raise ValueError(f"kv_scales must be 1 for a cache of {dtype}, not {kv_scales.k} and {kv_scales.v}")

"""How many loads, stores and tensor-core instructions a kernel has to have, from its shape alone."""

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.decode import ELEMENTS, HEAD_DIMS, DecodeVariant
from numba_kernels.cuda.performance.code import kernel_code
from numba_kernels.cuda.performance.pipes import global_bytes
from tests.kernels_cuda.gate import violations

DECODE_VARIANTS = [
    *(DecodeVariant(head_dim, e, wide_group=w) for head_dim in HEAD_DIMS for e in ELEMENTS for w in (False, True)),
    DecodeVariant(128, block_size=48),
]


def decode_instructions(variant: DecodeVariant) -> dict[str, int]:
    """Every load of q, K and V is 16 bytes wide, or 8 for what 64 does not divide."""
    chunks_k, chunks_v = variant.head_dim // 32, variant.head_dim // 64
    loads_of_k = 2 * chunks_k * (2 if variant.k_ahead else 1)  # one tile ahead of the loop, one in it
    return {
        "LDG.128": 1 + chunks_k + loads_of_k + 4 * chunks_v,  # the split, q, K, V
        "LDG.64": 4 if variant.head_dim % 64 else 0,
        "HMMA.BF16" if variant.element == "bf16" else "HMMA.F32": variant.head_dim // 8,
        "MOVM": 2,
    }


@pytest.mark.parametrize("variant", DECODE_VARIANTS, ids=lambda variant: variant.name)
def test_decode(variant: DecodeVariant, builds: dict[str, dict[str, Build]]) -> None:
    for build in builds[variant.name].values():
        assert violations(build, decode_instructions(variant)) == [], build.architecture


@pytest.mark.parametrize("element", ELEMENTS)
def test_merge_splits_stores_once(element: str, builds: dict[str, dict[str, Build]]) -> None:
    for build in builds[f"merge-splits-{element}-128"].values():
        assert build.count("STG") == 1


@pytest.mark.parametrize("name", [*(f"write-kv-{head_dim}-b16" for head_dim in HEAD_DIMS), "copy-blocks"])
def test_every_store_is_16_bytes_wide_and_has_its_load(name: str, builds: dict[str, dict[str, Build]]) -> None:
    for build in builds[name].values():
        assert build.count("LDG", "128") == build.count("STG", "128") == build.count("STG") > 0


def test_copying_blocks_has_four_loads_in_flight(builds: dict[str, dict[str, Build]]) -> None:
    for build in builds["copy-blocks"].values():
        assert build.count("LDG", "128") >= 4 + 1  # and one in the loop over what is left


def test_asynchronous_copies_are_16_bytes_wide(builds: dict[str, dict[str, Build]]) -> None:
    for build in builds["staged-copy"].values():
        assert build.count("LDGSTS", "128") == build.count("LDGSTS") > 0


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_an_iteration_of_decode_loads_a_tile_of_16_tokens_and_a_block_id(
    head_dim: int, builds: dict[str, dict[str, Build]]
) -> None:
    loop = kernel_code(builds[f"decode-bf16-{head_dim}-b16"]["sm_90"]).loop
    assert global_bytes(loop) == 16 * 2 * head_dim * 2 + 32 * 4  # K and V of 16 tokens; 4 bytes a lane, all the same

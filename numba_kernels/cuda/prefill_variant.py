"""What is constant in a compiled prefill kernel: element, head_dim, and the shape of a block's work."""

from dataclasses import dataclass

HEAD_DIMS = (64, 96, 128, 256)
ELEMENTS = ("bf16", "f16")
GRANULE = 16  # tokens that certainly lie in one block of the cache; a matrix's extent in the tensor core


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """How much a block of threads works on at a time."""

    num_warps: int
    row_tiles: int  # of 16 rows, per warp
    tile_tokens: int  # keys and values in one stage of shared memory
    min_blocks_per_sm: int

    def __post_init__(self) -> None:
        if self.tile_tokens % GRANULE:
            raise ValueError(f"a tile of {self.tile_tokens} tokens is not a multiple of {GRANULE}")


# 128 rows for every head_dim: a tile of keys and values costs 4 x head_dim bytes per token from the L2 cache and feeds
# 2 x rows x head_dim products, so 64 rows would ask for 40 bytes per cycle and SM at mma.sync's pace on an H100, and
# its L2 cache gives about 30. 32 rows per warp, where registers allow it (not at head_dim 256), so that what ldmatrix
# brings feeds two products. Q is read again for every tile.
#
# What 64 rows x 64 tokens cost an SM in cycles: counted in sm_90's machine code, of a tile that is neither masked nor
# scaled. Tensor cores at 4 cycles for an HMMA (of mma.sync an H100 is said to get about 60 % of that), 4 for an LDSM,
# copies at 128 bytes a cycle, 8 for a MUFU, 1 for an instruction of a warp, of which an SM has 4 at a time:
#
#     head_dim   issue   tensor cores   shared memory   MUFU   registers, warps on an SM
#           64     339            256             405    256   168, 12
#           96     383            384             576    256   249, 8
#          128     450            512             811    256   253, 8
#          256     866           1024            2816    256   245, 8
#
# So shared memory is what these shapes wait for, and head_dim 256 most. Tiles of 64 tokens would ask less of it (768 at
# head_dim 128), but there ptxas spills registers. 48 tokens fit for head_dim 64 into 168 registers, so that 12 warps
# overlap what none of them could alone. At head_dim 128 Q and two stages take 80 KB: two blocks fit on sm_80 as well.
_SHAPES = {
    64: PrefillShape(4, 2, 48, 3),
    96: PrefillShape(4, 2, 64, 2),
    128: PrefillShape(4, 2, 48, 2),
    256: PrefillShape(8, 1, 32, 1),
}
# Of 8-bit numbers at head_dim 64, 128 threads copy 32 tokens at once, and with tiles of 48 ptxas spills registers.
_SHAPES_E4M3 = _SHAPES | {64: PrefillShape(4, 2, 32, 3)}


@dataclass(frozen=True, slots=True)
class PrefillVariant:
    """One compiled kernel. `shape` is chosen by head_dim where none is given."""

    head_dim: int
    element: str = "bf16"  # of q and output, and of the cache unless `kv_element` is given
    block_size: int = 16  # tokens per block of the cache
    shape: PrefillShape | None = None
    kv_element: str = ""  # "e4m3": a cache of 8-bit numbers, from compute capability 8.9 on

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS or self.element not in ELEMENTS or self.kv_element not in ("", "e4m3"):
            raise ValueError(f"no prefill kernel for head_dim {self.head_dim}, {self.element} {self.kv_element}")
        if self.block_size <= 0 or self.block_size % GRANULE:
            raise ValueError(f"block_size {self.block_size} is not a multiple of {GRANULE}")

    @property
    def name(self) -> str:
        """As in the catalogue: prefill-bf16-128-b16, prefill-bf16-e4m3-128-b16."""
        elements = f"{self.element}-{self.kv_element}" if self.kv_element else self.element
        shape = self.shape
        suffix = f"-{shape.num_warps}x{shape.row_tiles}x{shape.tile_tokens}" if shape else ""
        return f"prefill-{elements}-{self.head_dim}-b{self.block_size}{suffix}"

    @property
    def is_quantised(self) -> bool:
        """Whether the cache is narrower than q."""
        return bool(self.kv_element)

    @property
    def mma_element(self) -> str:
        """What is multiplied, and what Q, K and V are in shared memory: float16 holds 8-bit numbers exactly."""
        return "f16" if self.is_quantised else self.element

    @property
    def kv_pieces(self) -> int:
        """A token's K or V in the cache, in pieces of 16 bytes."""
        return self.head_dim // 16 if self.is_quantised else self.head_dim // 8

    @property
    def min_compute_capability(self) -> tuple[int, int]:
        """The oldest GPU with its instructions."""
        return (8, 9) if self.is_quantised else (8, 0)

    @property
    def work_shape(self) -> PrefillShape:
        return self.shape or (_SHAPES_E4M3 if self.is_quantised else _SHAPES)[self.head_dim]

    @property
    def num_threads(self) -> int:
        return 32 * self.work_shape.num_warps

    @property
    def warp_rows(self) -> int:
        return 16 * self.work_shape.row_tiles

    @property
    def tile_rows(self) -> int:
        """Rows (query tokens x heads of the group) of a block of threads."""
        return self.work_shape.num_warps * self.warp_rows

    @property
    def tile_tokens(self) -> int:
        return self.work_shape.tile_tokens

    @property
    def tile_bytes(self) -> int:
        """Of K or V in one stage."""
        return self.tile_tokens * self.head_dim * 2

    @property
    def q_bytes(self) -> int:
        return self.tile_rows * self.head_dim * 2

    @property
    def shared_bytes(self) -> int:
        """Q, then two stages, each of a tile of K and one of V."""
        return self.q_bytes + 4 * self.tile_bytes

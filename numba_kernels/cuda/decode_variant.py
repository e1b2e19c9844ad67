"""What is constant in a compiled decode kernel, and how a warp's lanes share the rows of its cache."""

from dataclasses import dataclass

TOKENS_PER_TILE = 16
HEAD_DIMS = (64, 96, 128, 256)
ELEMENTS = ("bf16", "f16")
_MIN_BLOCKS_PER_SM = {64: 5, 96: 4, 128: 3, 256: 2}
_MIN_BLOCKS_PER_SM_E4M3 = {64: 6, 96: 5, 128: 4, 256: 2}


@dataclass(frozen=True, slots=True)
class RowShares:
    """How `lanes` lanes share a row of `row_bytes`, in pieces of as many bytes as a lane loads at once.

    First `num_whole` pieces of which each lane has 16 bytes, then `num_rest` of which it has `rest_bytes`.
    """

    row_bytes: int
    lanes: int

    @property
    def num_whole(self) -> int:
        return self.row_bytes // (16 * self.lanes)

    @property
    def rest_bytes(self) -> int:
        return 8 if self.row_bytes % (8 * self.lanes) == 0 else 4

    @property
    def num_rest(self) -> int:
        return (self.row_bytes - self.num_whole * 16 * self.lanes) // (self.rest_bytes * self.lanes)

    @property
    def words(self) -> int:
        """Of 4 bytes, for each lane."""
        return self.row_bytes // (4 * self.lanes)


@dataclass(frozen=True, slots=True)
class DecodeVariant:
    """What is constant in a compiled decode kernel. Raises ValueError for what has no kernel."""

    head_dim: int
    element: str = "bf16"  # of q and output, and of the cache unless `kv_element` is given
    block_size: int = 16  # tokens per block of the cache
    wide_group: bool = False  # more than 8 query heads per kv head: two blocks share them
    kv_element: str = ""  # "e4m3": a cache of 8-bit numbers, from compute capability 8.9 on

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS or self.element not in ELEMENTS or self.kv_element not in ("", "e4m3"):
            raise ValueError(f"no decode kernel for head_dim {self.head_dim}, {self.element} {self.kv_element}")
        if self.block_size <= 0 or self.block_size % TOKENS_PER_TILE:
            raise ValueError(f"block_size {self.block_size} is not a multiple of {TOKENS_PER_TILE}")

    @property
    def name(self) -> str:
        """As in the catalogue: decode-bf16-128-b16, decode-bf16-e4m3-128-b16."""
        elements = f"{self.element}-{self.kv_element}" if self.kv_element else self.element
        return f"decode-{elements}-{self.head_dim}-b{self.block_size}" + ("-wide" if self.wide_group else "")

    @property
    def is_quantised(self) -> bool:
        """Whether the cache is narrower than q."""
        return bool(self.kv_element)

    @property
    def mma_element(self) -> str:
        """What is multiplied: 8-bit numbers are exact in float16, of whose instructions every GPU has enough."""
        return "f16" if self.is_quantised else self.element

    @property
    def kv_bytes(self) -> int:
        """Of an element of the cache."""
        return 1 if self.is_quantised else 2

    @property
    def k_shares(self) -> RowShares:
        """A token's K between the 4 lanes of the same g."""
        return RowShares(self.head_dim * self.kv_bytes, 4)

    @property
    def v_shares(self) -> RowShares:
        """A token's V between the 8 lanes of the same j."""
        return RowShares(self.head_dim * self.kv_bytes, 8)

    @property
    def min_blocks_per_sm(self) -> int:
        """How many blocks an SM shall hold at least: what caps the registers, and what is in flight from memory."""
        normal = (_MIN_BLOCKS_PER_SM_E4M3 if self.is_quantised else _MIN_BLOCKS_PER_SM)[self.head_dim]
        return min(normal, 4) if self.wide_group else normal  # a wide group's need some registers more

    @property
    def k_ahead(self) -> bool:
        """Whether the next tile's K is loaded before this one's softmax. For longer rows registers do not suffice."""
        return self.head_dim * self.kv_bytes <= 256

    @property
    def min_compute_capability(self) -> tuple[int, int]:
        """The oldest GPU with its instructions."""
        return (8, 9) if self.is_quantised else (8, 0)

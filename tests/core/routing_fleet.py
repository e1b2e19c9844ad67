"""Replicas and requests for tests of the router: 16 tokens a block, a millisecond a token."""

from collections.abc import Sequence

from serve_paged.core.block_hash import extend_chain, root_hash
from serve_paged.core.kv_events import BlockSnapshot
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.routing import RoutingRequest
from serve_paged.core.routing_table import RoutingConfig, RoutingTable

ROOT = root_hash("test", "float32", 16)
CAPACITY = ReplicaCapacity(num_blocks=2000, max_num_seqs=64, token_s=0.001)


def make_table(num_replicas: int, config: RoutingConfig | None = None) -> RoutingTable:
    """Idle replicas r0, r1, ... with empty caches, all reported at time 0."""
    table = RoutingTable(config or RoutingConfig())
    for number in range(num_replicas):
        table.add_replica(f"r{number}", CAPACITY, now=0.0)
        table.blocks.announce(f"r{number}", 0)
    return table


def make_request(
    name: str, token_ids: Sequence[int], *, num_output_tokens: int = 128, num_choices: int = 1,
    session_id: str | None = None, excluded: frozenset[str] = frozenset(),
) -> RoutingRequest:  # fmt: skip
    """A request with this prompt."""
    hashes: list[bytes] = []
    extend_chain(hashes, ROOT, token_ids, 16)
    return RoutingRequest(name, hashes, len(token_ids), num_output_tokens, num_choices, session_id, excluded)


def give_blocks(table: RoutingTable, replica_id: str, request: RoutingRequest, num_blocks: int) -> None:
    """The replica's cache consists of the request's first blocks."""
    seq_no = table.blocks.applied(replica_id) + 1
    table.blocks.resynchronise(replica_id, BlockSnapshot(seq_no, tuple(request.block_hashes[:num_blocks])))


def give_load(
    table: RoutingTable, replica_id: str, *, num_blocks: int = 0, num_seqs: int = 0, num_tokens: int = 0,
    seq_no: int = 1, now: float = 0.0,
) -> None:  # fmt: skip
    """The replica reports this load."""
    table.report(replica_id, LoadReport(seq_no, num_blocks, num_seqs, num_tokens, 0.001, frozenset()), now)

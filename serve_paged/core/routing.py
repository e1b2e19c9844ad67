"""Which replica a request goes to: the cheapest with room, in seconds, reserved in the same step.

    cost = prefill of the blocks not held + what that prefill makes others wait + prefills queued ahead
           + barrier_s * k / (1 - k), k being the occupancy + how long the replica has been silent beyond its due

Reserving with the decision is what keeps requests that arrive together apart, or together: the next one sees the
load of the one before, and also the blocks that it is going to compute. (Cost terms of Dynamo's KV router and of SMG's
`least_load`, brought to one unit.)

Ties go to the same replica in every router without a word between them: the highest of a mix of the replica's id and
the session's id, or, where there is none, the first block's hash (rendezvous hashing).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nsmallest
from math import inf, isfinite

from serve_paged.core.block_pool import num_blocks_for
from serve_paged.core.load_view import Reservation
from serve_paged.core.routing_decision import Candidate, Decision, Outcome, Verdict
from serve_paged.core.routing_table import RoutingTable

_MIX = 0x9E3779B97F4A7C15  # odd: 2**64 divided by the golden ratio
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """A request as the router sees it."""

    reservation_id: str  # one per attempt, never used again
    block_hashes: Sequence[bytes]  # of the full blocks of prompt and output so far
    num_tokens: int  # prompt and output so far
    num_output_tokens: int  # still expected of each choice
    num_choices: int = 1
    session_id: str | None = None
    excluded: frozenset[str] = frozenset()  # replicas it must not go to

    def num_blocks(self, block_size: int) -> int:
        """Blocks it will hold at its end if it shares none: the first choice's, and the output of each other."""
        first = num_blocks_for(self.num_tokens + self.num_output_tokens, block_size)
        other = num_blocks_for(self.num_tokens % block_size + self.num_output_tokens, block_size)
        return first + (self.num_choices - 1) * other


@dataclass(frozen=True, slots=True)
class Ranking:
    """Figures per slot; an infinite cost where there is no room."""

    overlaps: list[int]
    num_tokens: list[int]  # to prefill
    stale_s: list[float]
    cost_s: list[float]


def select_and_reserve(table: RoutingTable, request: RoutingRequest, now: float) -> Decision:
    """Choose a replica and reserve there what the request will take, until `release` or a report includes it."""
    ranking = rank(table, request, now)
    best = min(ranking.cost_s, default=inf)
    if not isfinite(best):
        return _explain(table, request, ranking, None, [])
    limit = best + table.config.tie_s
    tied = [slot for slot, cost in enumerate(ranking.cost_s) if cost <= limit]
    chosen = tied[0] if len(tied) == 1 else _break_tie(table, request, tied)
    decision = _explain(table, request, ranking, chosen, tied)
    num_blocks = request.num_blocks(table.config.block_size) - ranking.overlaps[chosen]
    table.loads.reserve(
        Reservation(request.reservation_id, chosen, num_blocks, request.num_choices, ranking.num_tokens[chosen])
    )
    assert decision.chosen is not None
    table.blocks.expect(request.reservation_id, decision.chosen, request.block_hashes)
    return decision


def rank(table: RoutingTable, request: RoutingRequest, now: float) -> Ranking:
    """What the request would cost on every replica. Changes nothing."""
    config, loads = table.config, table.loads
    overlaps = [0] * len(table.id_at)
    num_tokens = [max(1, request.num_tokens)] * len(table.id_at)
    for depth, slots in table.blocks.overlaps(request.block_hashes, table.slots):
        if depth:
            missing = max(1, request.num_tokens - depth * config.block_size)  # logits need at least the last token
            for slot in slots_in(slots):
                overlaps[slot] = depth
                num_tokens[slot] = missing
    weight = 1.0 + config.displacement
    num_blocks, num_choices = request.num_blocks(config.block_size), request.num_choices
    cost_s = [
        tokens * token_s * weight + queue_s + barrier_s
        if free_blocks >= num_blocks - overlap and free_seqs >= num_choices
        else inf
        for tokens, token_s, queue_s, barrier_s, free_blocks, free_seqs, overlap in zip(
            num_tokens, loads.token_s, loads.queue_s, loads.barrier_s, loads.num_free_blocks, loads.num_free_seqs,
            overlaps, strict=True,
        )
    ]  # fmt: skip
    for replica_id in request.excluded:
        if replica_id in table.slot_of:
            cost_s[table.slot_of[replica_id]] = inf
    stale_s = [0.0] * len(cost_s)
    since = now - config.report_grace_s
    if min(loads.reported_at, default=inf) < since:
        stale_s = [max(0.0, since - reported_at) for reported_at in loads.reported_at]
        cost_s = [cost + late for cost, late in zip(cost_s, stale_s, strict=True)]
    return Ranking(overlaps, num_tokens, stale_s, cost_s)


def slots_in(mask: int) -> list[int]:
    """The positions of the bits that are set, ascending."""
    if mask.bit_count() * 8 > mask.bit_length():  # dense: one pass over the digits is faster than a step per bit
        return [slot for slot, digit in enumerate(bin(mask)[:1:-1]) if digit == "1"]
    slots = []
    while mask:
        lowest = mask & -mask
        slots.append(lowest.bit_length() - 1)
        mask ^= lowest
    return slots


def _break_tie(table: RoutingTable, request: RoutingRequest, tied: list[int]) -> int:
    """Rendezvous hashing: a session (or a prompt) prefers the same replica as long as it is among the cheapest."""
    if request.session_id is not None:
        name = request.session_id.encode()
    else:
        name = request.block_hashes[0] if request.block_hashes else request.reservation_id.encode()
    key = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
    salts = table.salts
    weights = [((salts[slot] ^ key) * _MIX) & _MASK for slot in tied]
    return tied[weights.index(max(weights))]


def _explain(
    table: RoutingTable, request: RoutingRequest, ranking: Ranking, chosen: int | None, tied: list[int]
) -> Decision:
    costs = ranking.cost_s
    num_replicas = len(table.slot_of)
    num_explained = min(table.config.max_explained, num_replicas)
    order = nsmallest(num_explained, table.slot_of.values(), key=costs.__getitem__)
    if chosen is not None:
        order = [chosen, *(slot for slot in order if slot != chosen)][:num_explained]
    runner_up = order[1] if chosen is not None and len(order) > 1 and isfinite(costs[order[1]]) else None
    num_excluded = sum(replica_id in table.slot_of for replica_id in request.excluded)
    num_full = costs.count(inf) - (len(costs) - num_replicas) - num_excluded  # an empty slot costs infinitely, too
    among = set(tied)
    outcome = Outcome.RESERVED if chosen is not None else Outcome.ALL_FULL if num_full else Outcome.NO_REPLICA
    return Decision(
        reservation_id=request.reservation_id,
        outcome=outcome,
        chosen=None if chosen is None else table.id_at[chosen],
        runner_up=None if runner_up is None else table.id_at[runner_up],
        tie_broken_by=None if len(tied) < 2 else "prompt" if request.session_id is None else "session",
        num_prompt_blocks=len(request.block_hashes),
        num_replicas=num_replicas,
        num_full=num_full,
        num_excluded=num_excluded,
        candidates=tuple(_candidate(table, request, ranking, slot, chosen, among) for slot in order),
    )


def _candidate(
    table: RoutingTable, request: RoutingRequest, ranking: Ranking, slot: int, chosen: int | None, tied: set[int]
) -> Candidate:
    loads, replica_id, cost_s = table.loads, table.id_at[slot], ranking.cost_s[slot]
    assert replica_id is not None, "an empty slot is no candidate"
    if slot == chosen:
        verdict = Verdict.CHOSEN
    elif isfinite(cost_s):
        verdict = Verdict.TIED if slot in tied else Verdict.DEARER
    else:
        verdict = Verdict.EXCLUDED if replica_id in request.excluded else Verdict.FULL
    prefill_s = ranking.num_tokens[slot] * loads.token_s[slot]
    barrier_s = loads.barrier_s[slot]
    return Candidate(
        replica_id=replica_id,
        verdict=verdict,
        num_overlap_blocks=ranking.overlaps[slot],
        num_new_blocks=request.num_blocks(table.config.block_size) - ranking.overlaps[slot],
        exact=table.blocks.is_exact(replica_id),
        occupancy=loads.occupancy[slot],
        prefill_s=prefill_s,
        displaced_s=prefill_s * table.config.displacement,
        queue_s=loads.queue_s[slot],
        barrier_s=barrier_s if isfinite(barrier_s) else None,
        stale_s=ranking.stale_s[slot],
        cost_s=cost_s if isfinite(cost_s) else None,
    )

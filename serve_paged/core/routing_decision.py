"""A routing decision and its reasons, for the response header, the debug endpoint and the log."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a decision ended."""

    RESERVED = "reserved"  # a replica was chosen, and what the request takes of it is reserved
    ALL_FULL = "all-full"  # there are replicas, but none has room: wait, with backoff
    NO_REPLICA = "no-replica"  # there is none that this request may go to


class Verdict(StrEnum):
    """What came of one replica."""

    CHOSEN = "chosen"
    DEARER = "dearer"
    TIED = "tied"  # as cheap as the chosen one
    FULL = "full"  # too few blocks or sequences are free
    EXCLUDED = "excluded"  # by the caller: it has just refused this request, for instance


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica in the light of one request. `cost_s` is the sum of the five terms; None where there is no room."""

    replica_id: str
    verdict: Verdict
    num_overlap_blocks: int  # leading blocks of the prompt that it holds or is about to compute
    num_new_blocks: int  # that the request would take
    exact: bool  # whether its events have come without a gap; if not, the overlap is that of an earlier moment
    occupancy: float  # the larger of the shares of blocks and sequences in use or reserved
    prefill_s: float  # to compute what it does not hold
    displaced_s: float  # what this prefill makes others wait
    queue_s: float  # prefills ahead
    barrier_s: float | None
    stale_s: float  # how much longer it has been silent than it should
    cost_s: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which replica, and why. `candidates` has the chosen one first, then the cheapest, as many as were asked for."""

    reservation_id: str
    outcome: Outcome
    chosen: str | None
    runner_up: str | None  # the cheapest other one with room
    tie_broken_by: str | None  # "session" or "prompt", where several cost the same
    num_prompt_blocks: int  # full blocks
    num_replicas: int
    num_full: int
    num_excluded: int
    candidates: tuple[Candidate, ...]

    def summary(self) -> str:
        """One line, for a response header."""
        if self.chosen is None:
            return f"{self.outcome}; {self.num_full} of {self.num_replicas} replicas full"
        best = self.candidates[0]
        return (
            f"replica={self.chosen}; overlap={best.num_overlap_blocks}/{self.num_prompt_blocks} blocks; "
            f"cost={best.cost_s:.4f} s; replicas={self.num_replicas}; full={self.num_full}; "
            f"index={'exact' if best.exact else 'degraded'}"
        )

    def to_json(self) -> str:
        """One JSON object, field by field."""
        return json.dumps(asdict(self), allow_nan=False)

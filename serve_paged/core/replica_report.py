"""What a replica tells every router about itself: its load, and what has changed in its prefix cache."""

from dataclasses import dataclass

from serve_paged.core.kv_events import BlockEventRecorder, BlockEvents, BlockSnapshot
from serve_paged.core.load import demand_of
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica at one moment. Crosses process boundaries."""

    replica_id: str
    capacity: ReplicaCapacity
    load: LoadReport
    events: BlockEvents | None  # None: nothing has changed
    events_seq_no: int  # of the latest batch of events, this one included
    snapshot: BlockSnapshot | None = None  # where somebody asked for it


class ReportComposer:
    """Numbers the reports of one replica. To be used between steps, in the thread that owns the scheduler."""

    def __init__(self, replica_id: str) -> None:
        self._replica_id = replica_id
        self._seq_no = 0

    def compose(
        self, scheduler: Scheduler, events: BlockEventRecorder, token_s: float, *, with_snapshot: bool
    ) -> ReplicaReport:
        """The next report; `token_s`: seconds to prefill one token, as measured."""
        self._seq_no += 1
        demand, batch = demand_of(scheduler), events.flush()
        load = LoadReport(
            seq_no=self._seq_no,
            num_demanded_blocks=demand.num_blocks,
            num_seqs=demand.num_seqs,
            num_backlog_tokens=demand.num_backlog_tokens,
            token_s=token_s,
            request_ids=demand.request_ids,
        )
        return ReplicaReport(
            replica_id=self._replica_id,
            capacity=ReplicaCapacity(scheduler.pool.num_usable, scheduler.max_num_seqs, token_s),
            load=load,
            events=batch,
            events_seq_no=events.seq_no,
            snapshot=events.snapshot() if with_snapshot else None,
        )

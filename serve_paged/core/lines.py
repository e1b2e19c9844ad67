"""Where every live sequence stands: in the waiting line, in the running line, or with its parent until it is forked.

Both lines are in the fixed order of core/priority.py. Knows no blocks and decides nothing.
"""

from bisect import insort

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.priority import order_of
from serve_paged.core.sequence import Sequence, SequenceStatus


class Lines:
    """The waiting and the running line, and the live sequences of each request."""

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []  # waiting and preempted ones
        self.running: list[Sequence] = []
        self._requests: dict[str, list[Sequence]] = {}

    @property
    def num_waiting(self) -> int:
        """Waiting and preempted sequences, choices not forked yet included."""
        return sum(1 + len(seq.siblings) for seq in self.waiting)

    @property
    def num_running(self) -> int:
        """Running sequences, choices not forked yet included."""
        return sum(1 + len(seq.siblings) for seq in self.running)

    def of_request(self, request_id: str) -> list[Sequence]:
        """Every live sequence of a request."""
        return list(self._requests.get(request_id, ()))

    def join(self, seq: Sequence) -> None:
        """A new sequence takes its place in the waiting line. Raises `InvalidRequest` if it is live already."""
        live = self.of_request(seq.request_id)
        if {other.choice for other in live} & {choice.choice for choice in (seq, *seq.siblings)}:
            raise InvalidRequest(f"request {seq.request_id!r} is already being served", "request_id")
        self._requests[seq.request_id] = [*live, seq, *seq.siblings]
        insort(self.waiting, seq, key=order_of)

    def start_first(self, index: int) -> None:
        """The head of the waiting line runs, as `running[index]`: its place in the order."""
        seq = self.waiting.pop(0)
        seq.status = SequenceStatus.RUNNING
        self.running.insert(index, seq)

    def stop_last(self) -> Sequence:
        """The last running sequence is preempted: it goes back to its place in the waiting line."""
        seq = self.running.pop()
        seq.status = SequenceStatus.PREEMPTED
        insort(self.waiting, seq, key=order_of)
        return seq

    def fork(self, parent: Sequence) -> list[Sequence]:
        """The other choices of a running sequence run on their own."""
        children, parent.siblings = parent.siblings, []
        for child in children:
            child.status = SequenceStatus.RUNNING
            insort(self.running, child, key=order_of)
        return children

    def leave(self, seq: Sequence) -> list[Sequence]:
        """A live sequence ends, and with it the choices that wait to be forked from it; all that end."""
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
        elif parent := self._parent_of(seq):
            parent.siblings.remove(seq)
        else:
            self.waiting.remove(seq)
        ended = [seq, *seq.siblings]
        seq.siblings = []
        remaining = [other for other in self._requests[seq.request_id] if other not in ended]
        if remaining:
            self._requests[seq.request_id] = remaining
        else:
            del self._requests[seq.request_id]
        return ended

    def check(self) -> None:
        """Assert that every live sequence stands in one line, in order, with blocks only if it runs."""
        for line in (self.running, self.waiting):
            assert line == sorted(line, key=order_of), "a line is out of order"
        unforked = [sibling for seq in (*self.running, *self.waiting) for sibling in seq.siblings]
        in_line = [*self.running, *self.waiting, *unforked]
        live = [seq for seqs in self._requests.values() for seq in seqs]
        assert {id(seq) for seq in live} == {id(seq) for seq in in_line}, "a sequence is lost, or ended but in line"
        assert len(live) == len(in_line), "a sequence stands in line twice"
        assert all(self._requests.values()), "an ended request is remembered"
        for seq in self.running:
            assert seq.status is SequenceStatus.RUNNING
        for seq in (*self.waiting, *unforked):
            assert seq.status in (SequenceStatus.WAITING, SequenceStatus.PREEMPTED)
            assert not seq.block_table, "a waiting sequence holds blocks"
            assert seq.num_computed_tokens == 0

    def _parent_of(self, seq: Sequence) -> Sequence | None:
        live = self._requests[seq.request_id]
        return next((other for other in live if seq in other.siblings), None)

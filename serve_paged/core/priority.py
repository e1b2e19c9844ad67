"""Who comes first: priority with continuous ageing.

The effective priority of a sequence is `priority - waited / ageing_s`, lower first, `waited` counted from arrival.
As everyone ages at the same rate, time cancels out when two are compared: the order of two sequences is that of
`arrival_time + priority * ageing_s`, and never changes. So a place in line is given once, lines stay sorted without
any work per step, and a sequence can be overtaken only by those that arrive within
`(its priority - theirs) * ageing_s` after it. Whoever takes priorities from strangers must bound them: then nobody
starves.
"""

from operator import attrgetter

order_of = attrgetter("order")  # of a sequence that `place_in_line` has given its place


def effective_priority(priority: int, arrival_time: float, now: float, ageing_s: float) -> float:
    """Priority after ageing, for people to look at; lower is served first."""
    return priority - (now - arrival_time) / ageing_s


def place_in_line(
    priority: int, arrival_time: float, ageing_s: float, *, serial: int, choice: int
) -> tuple[float, int, int]:
    """Sort key in the order of effective priority, then of being added, then of the choices of one request."""
    return (arrival_time + priority * ageing_s, serial, choice)

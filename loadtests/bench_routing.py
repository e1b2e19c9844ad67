"""What a routing decision costs: select and reserve, on one core.

    python -m loadtests.bench_routing

The fleet: `num_replicas` replicas and `num_blocks` indexed blocks in all (distinct hashes: a shared prefix counts
once, however many hold it). One prefix is held by all replicas (the system prompt of everybody), 100 to 200 by every
tenth of them, the others by one each. The requests: 256 blocks (4,096 tokens), the first 32 those of the common
prompt, then a held prefix of 96 blocks, then 128 new ones. Chains are hashed beforehand, as the ingress does once for
all that need them. A request ends, and is released, when 50 per replica are under way.
"""

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from serve_paged.core.kv_events import BlockEvents
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.routing import RoutingRequest, select_and_reserve
from serve_paged.core.routing_table import RoutingConfig, RoutingTable

NUM_COMMON, NUM_HELD, NUM_NEW = 32, 96, 128  # blocks of a request
CAPACITY = ReplicaCapacity(num_blocks=100_000, max_num_seqs=256, token_s=1e-4)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per decision."""

    median_us: float
    p99_us: float
    num_replicas: int
    num_blocks: int

    def __str__(self) -> str:
        return (
            f"{self.num_replicas:5} replicas, {self.num_blocks:9,} blocks: "
            f"median {self.median_us / 1000:.3f} ms, p99 {self.p99_us / 1000:.3f} ms"
        )


def name(kind: int, serial: int, block: int) -> bytes:
    """A made-up hash of 16 bytes."""
    return kind.to_bytes(2, "little") + serial.to_bytes(10, "little") + block.to_bytes(4, "little")


def common_prefix() -> list[bytes]:
    """The system prompt of everybody."""
    return [name(0, 0, block) for block in range(NUM_COMMON)]


def held_prefix(serial: int) -> list[bytes]:
    """A conversation that some replica has served."""
    return [name(1, serial, block) for block in range(NUM_HELD)]


def build_table(num_replicas: int, num_blocks: int) -> tuple[RoutingTable, int]:
    """The fleet, and the number of its prefixes."""
    table = RoutingTable(RoutingConfig())
    num_prefixes = (num_blocks - NUM_COMMON) // NUM_HELD
    for number in range(num_replicas):
        table.add_replica(f"replica-{number:04}", CAPACITY, now=0.0)
        held = common_prefix()
        for serial in range(number % num_prefixes, num_prefixes, num_replicas):
            held += held_prefix(serial)
        for serial in range(number % 10 * 10, num_prefixes, 100 * max(1, num_prefixes // 2000)):
            held += held_prefix(serial)  # each of these is held by every tenth replica
        table.blocks.apply(f"replica-{number:04}", BlockEvents(1, tuple(dict.fromkeys(held)), ()))
        load = LoadReport(1, number * 7919 % 50_000, number * 31 % 100, number * 131 % 4000, 1e-4, frozenset())
        table.report(f"replica-{number:04}", load, now=0.0)
    return table, num_prefixes


def requests(num_requests: int, num_prefixes: int) -> Iterator[RoutingRequest]:
    """Requests that continue the conversations, in a fixed irregular order."""
    for number in range(num_requests):
        new = [name(2, number, block) for block in range(NUM_NEW)]
        hashes = [*common_prefix(), *held_prefix(number * 7919 % num_prefixes), *new]
        yield RoutingRequest(f"request-{number}", hashes, 16 * len(hashes) + 5, 256, session_id=f"session-{number}")


def measure(num_replicas: int, num_blocks: int, num_requests: int) -> Timing:
    """Time `num_requests` decisions, after a tenth as many to warm up."""
    table, num_prefixes = build_table(num_replicas, num_blocks)
    under_way: deque[str] = deque()
    times = []
    num_indexed = table.blocks.num_blocks
    for request in requests(num_requests + num_requests // 10, num_prefixes):
        start = time.perf_counter()
        decision = select_and_reserve(table, request, now=0.5)
        times.append(time.perf_counter() - start)
        assert decision.chosen is not None, "the fleet has room"
        under_way.append(request.reservation_id)
        if len(under_way) > 50 * num_replicas:
            table.release(under_way.popleft())
    times = [1e6 * seconds for seconds in times[num_requests // 10 :]]
    return Timing(statistics.median(times), statistics.quantiles(times, n=100)[98], num_replicas, num_indexed)


def main() -> None:
    """Print one line per fleet."""
    parser = argparse.ArgumentParser(description="cost of a routing decision")
    parser.add_argument("--num-requests", type=int, default=2000)
    num_requests = parser.parse_args().num_requests
    print(f"requests of {NUM_COMMON + NUM_HELD + NUM_NEW} blocks; load average {os.getloadavg()[0]:.2f}")
    for num_replicas, num_blocks in ((4, 100_000), (100, 100_000), (100, 1_000_000), (1000, 1_000_000)):
        print(measure(num_replicas, num_blocks, num_requests), flush=True)
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()

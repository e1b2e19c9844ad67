"""How long a launch would take, from its code and its shape: the slowest of what bounds it, round by round.

Blocks work in rounds: as many units of work at once as blocks are resident. A round takes as long as the longest of
one unit alone (every wait for memory in it), its bytes at the machine's bandwidth, and the busiest SM's instructions
on their slowest pipe. The last round may be a small one, and still takes as long as a unit.
"""

from dataclasses import dataclass

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.performance.code import KernelCode, kernel_code
from numba_kernels.cuda.performance.machine import Machine
from numba_kernels.cuda.performance.pipes import global_bytes, pipe_cycles
from numba_kernels.cuda.performance.schedule import loop_cycles, straight_cycles
from numba_kernels.cuda.performance.workloads import Workload

_PARTS = 4  # of an SM, each issuing one instruction a cycle


@dataclass(frozen=True, slots=True)
class KernelModel:
    """What of a prediction depends on the machine code alone. Cycles are one warp's."""

    code: KernelCode
    num_warps: int
    blocks_per_sm: int
    loop_bytes: int  # that a warp loads in an iteration
    outside_pipes: dict[str, float]
    loop_pipes: dict[str, float]

    def outside_cycles(self, latency_cycles: float) -> float:
        """Before and after the main loop, for a warp alone."""
        return sum(straight_cycles(piece, latency_cycles) for piece in (self.code.before, self.code.after) if piece)

    def loop_cycles(self, latency_cycles: float) -> float:
        """An iteration of the main loop, for a warp alone; 0 without a loop."""
        return loop_cycles(self.code.loop, latency_cycles)

    def iterations(self, workload: Workload) -> float:
        """Of the main loop, for a unit of work: the compiler may have unrolled it."""
        return workload.loop_bytes / self.loop_bytes if self.loop_bytes else 0.0

    def in_flight_per_sm(self, latency_cycles: float) -> float:
        """Bytes asked for and not there yet, on an SM whose warps do nothing but the main loop."""
        if not self.loop_bytes:
            return 0.0
        period = max(self.loop_cycles(latency_cycles), self.busy_cycles(self.loop_pipes, self.blocks_per_sm)[1])
        return self.blocks_per_sm * self.num_warps * self.loop_bytes * latency_cycles / period

    def busy_cycles(self, pipes: dict[str, float], num_blocks: int) -> tuple[str, float]:
        """The slowest pipe of an SM on which so many blocks run this once, and how long it is taken."""
        warps = num_blocks * self.num_warps
        taken = {pipe: cycles * (warps if pipe == "lsu" else -(-warps // _PARTS)) for pipe, cycles in pipes.items()}
        slowest = max(taken, key=lambda pipe: taken[pipe])
        return slowest, taken[slowest]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one launch. Everything here is predicted."""

    workload: Workload
    blocks_per_sm: int
    num_rounds: int
    in_flight_per_sm: float
    limit_s: float  # bytes over bandwidth, or operations over the rate of matrix products
    time_s: float
    bound: str  # what takes longest: "memory", "l2", "latency", "launch", or the name of a pipe

    @property
    def fraction(self) -> float:
        """Of the limit."""
        return self.limit_s / self.time_s

    @property
    def gap_per_step_s(self) -> float:
        """What a step would gain if every call of this launch ran at its limit."""
        return (self.time_s - self.limit_s) * self.workload.calls


def kernel_model(build: Build, machine: Machine) -> KernelModel:
    """From a build for the machine's architecture."""
    kernel, code = build.kernel, kernel_code(build)
    shared = build.shared_bytes + kernel.dynamic_shared_bytes
    return KernelModel(
        code,
        -(-kernel.num_threads // 32),
        machine.blocks_per_sm(kernel.num_threads, build.registers, shared),
        global_bytes(code.loop),
        pipe_cycles(code.before + code.after),
        pipe_cycles(code.loop),
    )


def predict(workload: Workload, model: KernelModel, machine: Machine) -> Prediction:
    """One launch on an idle GPU, nothing of its data in a cache."""
    resident = model.blocks_per_sm * machine.num_sms
    slots = min(workload.num_blocks, resident)
    full, rest = divmod(workload.num_units, slots)
    latency_cycles = (machine.l2_latency_s if workload.from_l2 else machine.latency_s) * machine.clock_hz
    alone = model.outside_cycles(latency_cycles) + model.iterations(workload) * model.loop_cycles(latency_cycles)
    rounds = [(slots, full)] * bool(full) + [(rest, 1)] * bool(rest)
    times = {"launch": machine.launch_s}
    for num_units, repeated in rounds:
        bound, round_s = _round(num_units, alone, workload, model, machine)
        times[bound] = times.get(bound, 0.0) + repeated * round_s
    limit_s = max(workload.num_bytes / machine.bandwidth, workload.num_flops / machine.gemm_flops)
    return Prediction(
        workload,
        model.blocks_per_sm,
        full + bool(rest),
        model.in_flight_per_sm(latency_cycles),
        limit_s,
        sum(times.values()),
        max(times, key=lambda bound: times[bound]),
    )


def _round(num_units: int, alone: float, workload: Workload, model: KernelModel, machine: Machine) -> tuple[str, float]:
    pipes = dict(model.outside_pipes)
    for pipe, cycles in model.loop_pipes.items():
        pipes[pipe] = pipes.get(pipe, 0.0) + model.iterations(workload) * cycles
    share = num_units / workload.num_units
    pipe, busy = model.busy_cycles(pipes, -(-num_units // machine.num_sms))
    times = {
        "memory": share * workload.num_bytes / machine.bandwidth,
        "l2": share * workload.l2_bytes / machine.l2_bandwidth,
        "latency": alone / machine.clock_hz,
        pipe: busy / machine.clock_hz,
    }
    bound = max(times, key=lambda name: times[name])
    return bound, times[bound]

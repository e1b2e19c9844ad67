"""What the model takes a GPU to be: each number with where it is from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU. The defaults are an H100 SXM."""

    num_sms: int = 132  # NVIDIA's data sheet
    clock_hz: float = 1.7e9  # assumed: under the 1.98 GHz of the data sheet, as under load
    bandwidth: float = 3.0e12  # bytes/s, measured: a device-to-device copy, reads and writes counted
    gemm_flops: float = 790e12  # measured: bfloat16 matrix products
    latency_s: float = 700e-9  # assumed: a load from memory while memory is busy
    l2_latency_s: float = 300e-9  # assumed: a load of what the kernel before has left in the second-level cache
    l2_bandwidth: float = 6.7e12  # bytes/s, assumed: 30 bytes per cycle and SM
    launch_s: float = 1.0e-6  # assumed: from one kernel of a graph to the next that depends on it
    registers_per_sm: int = 65536  # CUDA C++ Programming Guide, technical specifications, compute capability 9.0
    shared_bytes_per_sm: int = 233472  # the same: 228 KB, of which each block costs 1 KB more than it asks for
    max_warps_per_sm: int = 64  # the same
    max_blocks_per_sm: int = 32  # the same
    memory_bytes: float = 80e9  # data sheet

    @property
    def needed_in_flight(self) -> float:
        """Bytes that each SM must have asked for to use the whole bandwidth (Little's law)."""
        return self.bandwidth * self.latency_s / self.num_sms

    def blocks_per_sm(self, num_threads: int, registers: int, shared_bytes: int) -> int:
        """How many blocks an SM holds at once. Registers are given to warps, 256 at a time."""
        num_warps = -(-num_threads // 32)
        registers_per_warp = -(-registers * 32 // 256) * 256
        return min(
            self.max_blocks_per_sm,
            self.max_warps_per_sm // num_warps,
            self.registers_per_sm // registers_per_warp // num_warps,
            self.shared_bytes_per_sm // (shared_bytes + 1024),
        )

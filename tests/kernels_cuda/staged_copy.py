"""A kernel for the simulator's own tests: rows pass through a ring in shared memory, filled asynchronously."""

from collections.abc import Callable

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 64
ROW = NUM_THREADS * 4  # float32
STAGED_COPY_ARGUMENTS = ("int64", "int64", "int32")


def make_staged_copy(target: Target) -> Callable[..., None]:
    """destination[row, ROW - 1 - i] = source[row, i]: every thread reads what another thread's copy has brought."""
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32
    ring_length, row_bytes = 2 * ROW, ROW * 4

    def staged_copy(source, destination, num_rows):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        ring = cuda.shared.array(ring_length, float32)
        mine = int32(ptx.smem_addr(ring) + thread * 16)
        ptx.cp_async16(mine, source + int64(thread) * 16)
        ptx.cp_async_commit()
        for row in range(num_rows):
            if row + 1 < num_rows:
                following = int64(row + 1)
                ptx.cp_async16(
                    int32(mine + (row + 1) % 2 * row_bytes), source + following * row_bytes + int64(thread) * 16
                )
            ptx.cp_async_commit()
            ptx.cp_async_wait1()
            cuda.syncthreads()
            for i in range(4):
                at = thread * 4 + i
                value = ring[row % 2 * ROW + ROW - 1 - at]
                ptx.stg_f32(destination + int64(row) * row_bytes + int64(at) * 4, value)
            cuda.syncthreads()  # the next copy overwrites what was read

    return staged_copy


def staged_copy_kernel() -> Kernel:
    return Kernel(
        make_staged_copy, STAGED_COPY_ARGUMENTS, NUM_THREADS, name="staged-copy", instructions=("LDGSTS.128",)
    )

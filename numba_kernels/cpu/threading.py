"""Which threads run the parallel kernels: Intel's TBB where its wheel is installed, else what Numba finds (OpenMP).

A model step alternates torch's matrix products (OpenMP threads) with these kernels (TBB threads) hundreds of times.
By default an OpenMP thread that has finished its share spins for about a millisecond, on a core that the kernels, the
event loop or another process wants. So whoever starts a process that serves should set, before torch is imported,

    OMP_WAIT_POLICY=PASSIVE

which makes them sleep (the environment of a Ray actor, or `os.environ.setdefault` first thing in a command line).
Measured on 2 shared Zen 4 cores, median ms of 10 layers of a 135M model in bfloat16, 2 torch threads, variants
interleaved (22 Nov 2026); "busy" had 3 to 6 other runnable processes, "calm" about 1:

    rows, machine    default   PASSIVE or GOMP_SPINCOUNT=0   GOMP_SPINCOUNT=10000   1 torch thread
    1, busy              163                           8.5                      -               20
    8, busy              141                           8.8                     30               15
    32, busy             189                            17                     42               34
    128, busy            443                            65                      -               75
    8, calm              6.1                           9.5                      -              7.7

Sleeping costs half as much again where nothing else runs, and is some 5 to 20 times faster where anything does.
OMP_WAIT_POLICY=ACTIVE took 149 ms calm. Numba's own OpenMP pool in place of TBB took 70 ms calm, 20 with PASSIVE.
Intel's OpenMP, preloaded, was as good as PASSIVE with KMP_BLOCKTIME=0 and no better otherwise.
"""

import ctypes
import functools
import importlib.metadata

import numba


@functools.cache
def load_tbb() -> bool:
    """Load the `tbb` wheel's library so that Numba finds it; False if there is none. Runs before any parallel kernel.

    The wheel puts libtbb.so.12 into <prefix>/lib, where no loader looks; once it is in the process, loading it by
    name succeeds, and Numba prefers TBB over OpenMP by itself.
    """
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.name == "libtbb.so.12":
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # built for another system: OpenMP is correct too, only slower beside torch
                return False
            return True
    return False


def set_num_threads(num_threads: int) -> None:
    """Threads of the parallel kernels that the *calling thread* launches (Numba keeps the number per thread).

    Call it on the thread that runs the kernels. Raises ValueError outside [1, cores this process may use].
    """
    load_tbb()
    numba.set_num_threads(num_threads)


def threading_layer() -> str:
    """Name of the pool in use: "tbb", "omp" or "workqueue". Starts it if no kernel has yet."""
    load_tbb()
    numba.set_num_threads(numba.get_num_threads())
    return str(numba.threading_layer())

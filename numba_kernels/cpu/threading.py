"""Which threads run the parallel kernels: Intel's TBB where its wheel is installed, else what Numba finds (OpenMP)."""

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

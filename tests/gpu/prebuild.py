"""Compiles every kernel and every probe, here, for a GPU elsewhere: `python -m tests.gpu.prebuild [sm_90 ...]`."""

import sys
import time

from numba_kernels.cuda.images import PREBUILT_FOLDER
from numba_kernels.cuda.prebuild import prebuild
from tests.gpu.device import all_kernels


def main() -> None:
    """PTX for any GPU, and machine code for the architectures that are named."""
    begin = time.monotonic()
    made = prebuild(PREBUILT_FOLDER, tuple(sys.argv[1:]), all_kernels)
    print(f"{len(made)} kernels in {PREBUILT_FOLDER}, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

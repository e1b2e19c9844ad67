"""Loads every kernel through the driver: `python -m tests.gpu.load`. Ends with 1 if any is refused."""

import sys
import time

from tests.gpu.device import all_kernels, gpu_kernels


def main() -> None:
    """Says of each what the driver says against it."""
    launcher = gpu_kernels().launcher
    capability = launcher.properties.compute_capability
    begin, refused, num_loaded = time.perf_counter(), [], 0
    for name, kernel in all_kernels().items():
        if kernel.min_compute_capability > capability:
            print(f"{name}: not for this GPU, {kernel.min_compute_capability} is needed")
            continue
        try:
            launcher.prepare([kernel])
        except (RuntimeError, ValueError) as error:
            refused.append(name)
            print(f"{name}: {error}", flush=True)
        else:
            num_loaded += 1
    print(f"{num_loaded} kernels loaded in {time.perf_counter() - begin:.1f} s, {len(refused)} refused: {refused}")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()

"""Prints what the compile gate sees, as a table: `python -m tests.kernels_cuda.figures FOLDER`, which keeps builds."""

import sys
from pathlib import Path

from numba_kernels.cuda.build import Build, build_all
from numba_kernels.cuda.catalog import catalog
from tests.kernels_cuda.gate import count

_COUNTED = ("LDG.128", "LDGSTS.128", "STG", "LDSM", "HMMA")


def row(builds: dict[str, Build]) -> list[object]:
    """Registers of each architecture, what is allowed, static and dynamic shared memory; then sm_90's instructions."""
    hopper = builds["sm_90"]
    kernel, registers = hopper.kernel, " / ".join(str(build.registers) for build in builds.values())
    shared = hopper.shared_bytes + kernel.dynamic_shared_bytes
    return [registers, kernel.max_registers, shared, len(hopper.instructions), *(count(hopper, i) for i in _COUNTED)]


def main() -> None:
    head = ("kernel", "registers sm_80 / 90 / 100", "allowed", "shared B", "sm_90: instructions", *_COUNTED)
    print("| " + " | ".join(head) + " |")
    print("| --- " * len(head) + "|")
    for name, builds in build_all(catalog, Path(sys.argv[1])).items():
        print(f"| {name} | " + " | ".join(map(str, row(builds))) + " |")


if __name__ == "__main__":
    main()

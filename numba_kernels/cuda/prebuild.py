"""Compiles every kernel into a folder for machines without numba-cuda: `python -m numba_kernels.cuda.prebuild`."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from numba_kernels.cuda.build import COMPUTE_CAPABILITIES, architectures_of, build_ptx, compiler_versions
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.prebuilt import PrebuiltKernel, architecture_name, source_hash, write_manifest
from numba_kernels.cuda.target import Kernel
from numba_kernels.cuda.toolchain import assemble


def prebuild(
    folder: Path, architectures: tuple[str, ...], kernels: Callable[[], dict[str, Kernel]] = catalog
) -> list[PrebuiltKernel]:
    """Build the kernels that are not there yet, and write the manifest. Raises as `build_all`."""
    made = [describe(kernel, architectures) for kernel in build_ptx(kernels, folder).values()]
    for entry in made:
        for architecture, cubin in entry.cubins.items():
            assemble(folder / entry.ptx, architecture, folder / cubin)
    write_manifest(folder, compiler_versions(), made)
    return made


def describe(kernel: Kernel, architectures: tuple[str, ...]) -> PrebuiltKernel:
    """The kernel's entry in the manifest, if machine code is made for these architectures."""
    return PrebuiltKernel(
        name=kernel.name,
        entry=kernel.entry,
        num_threads=kernel.num_threads,
        dynamic_shared_bytes=kernel.dynamic_shared_bytes,
        argument_types=kernel.argument_types,
        min_compute_capability=kernel.min_compute_capability,
        source_hash=source_hash(kernel),
        ptx=f"{kernel.name}.ptx",
        cubins={a: f"{kernel.name}.{a}.cubin" for a in architectures_of(kernel) if a in architectures},
    )


def main() -> None:
    known = [architecture_name(c) for c in COMPUTE_CAPABILITIES]
    parser = argparse.ArgumentParser(prog="python -m numba_kernels.cuda.prebuild", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--arch", action="append", choices=known, help="machine code for it too, not only PTX")
    options = parser.parse_args()
    began = time.monotonic()
    made = prebuild(options.out, tuple(options.arch or ()))
    print(f"{len(made)} kernels in {options.out}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

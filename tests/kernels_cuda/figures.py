"""Prints what the compile gate sees, as a table: `python -m tests.kernels_cuda.figures`."""

import tempfile
from pathlib import Path

from numba_kernels.cuda.block_copy import copy_blocks_kernel
from numba_kernels.cuda.decode import HEAD_DIMS, DecodeVariant, decode_kernel
from numba_kernels.cuda.decode_merge import merge_splits_kernel
from numba_kernels.cuda.kv_write import write_kv_kernel
from numba_kernels.cuda.target import Kernel
from tests.kernels_cuda.toolchain import build

ARCHITECTURES = ((8, 0), (9, 0), (10, 0))


def kernels() -> dict[str, Kernel]:
    """By the name that the table shows."""
    named = {f"decode, head_dim {d}": decode_kernel(DecodeVariant(d)) for d in HEAD_DIMS}
    named |= {f"decode, head_dim {d}, wide group": decode_kernel(DecodeVariant(d, wide_group=True)) for d in HEAD_DIMS}
    named["merge_splits, head_dim 128"] = merge_splits_kernel(128, "bf16")
    named["write_kv, head_dim 128"] = write_kv_kernel(128)
    named["copy_blocks"] = copy_blocks_kernel()
    return named


def main() -> None:
    print("| kernel | registers sm_80 / 90 / 100 | allowed | shared B | sm_90: instructions | LDG.128 | STG | HMMA |")
    print("| --- " * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, kernel in kernels().items():
            builds = [build(kernel, architecture, Path(folder)) for architecture in ARCHITECTURES]
            hopper = builds[1]
            registers = " / ".join(str(b.registers) for b in builds)
            counts = (hopper.opcodes.total(), hopper.count("LDG", "128"), hopper.count("STG"), hopper.count("HMMA"))
            figures = (registers, kernel.max_registers, hopper.shared_bytes, *counts)
            print(f"| {name} | " + " | ".join(map(str, figures)) + " |", flush=True)


if __name__ == "__main__":
    main()

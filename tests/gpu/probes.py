"""Tiny kernels that run one instruction, or a few that only make sense together, in the simulator and on a GPU.

Each reads uint32 words [num_operands, num_lanes] and writes words [num_results, num_lanes], both contiguous. Lanes are
blocks of 64, so two whole warps share a block's memory.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from numba_kernels.cuda.device_memory import POISON, AddressSpace
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.ptx_twins import WARP_OPERATIONS, PtxTwins
from numba_kernels.cuda.target import Index3, Kernel, Target
from tests.gpu.instructions import REGISTER_INSTRUCTIONS, RegisterInstruction, Words

NUM_THREADS = 64
MAX_SHOWN = 8
ARGUMENTS = ("int64", "int64", "int64")  # operands, results: addresses; num_lanes


@dataclass(frozen=True, slots=True)
class Probe:
    """A kernel, what it is given, and what has to come out."""

    kernel: Kernel
    instructions: tuple[str, ...]  # of `ptx.py`, that it tries
    num_results: int
    draw: Callable[[np.random.Generator, int], list[Words]]
    expect: Callable[[list[Words]], list[Words]]
    agree: Callable[[list[Words], list[Words], list[Words]], NDArray[np.bool_]]


@functools.cache
def probes() -> dict[str, Probe]:
    """By the kernel's name. Made here, for `memory_probes` builds on this module."""
    from tests.gpu.memory_probes import memory_probes

    found = [register_probe(name, instruction) for name, instruction in REGISTER_INSTRUCTIONS.items()]
    return {probe.kernel.name: probe for probe in (*found, *memory_probes())}


def probe_kernels() -> dict[str, Kernel]:
    """What is built for a GPU beside the product's own kernels."""
    return {name: probe.kernel for name, probe in probes().items()}


def tried_instructions() -> set[str]:
    """Names of `ptx.py` that some probe tries."""
    return {name for probe in probes().values() for name in probe.instructions}


def disagreements(launcher: Launcher, probe: Probe, num_lanes: int, seed: int) -> list[str]:
    """Run a probe over so many lanes, a multiple of 64: the first lanes that disagree with what has to come out."""
    operands = probe.draw(np.random.default_rng(seed), num_lanes)
    given = torch.from_numpy(np.stack(operands).view(np.int32)).to(launcher.device)
    results = torch.full((probe.num_results, num_lanes), POISON, dtype=torch.int32, device=launcher.device)
    grid, args = Index3(num_lanes // NUM_THREADS), (given.data_ptr(), results.data_ptr(), num_lanes)
    launcher.launch(probe.kernel, grid, NUM_THREADS, args, (given, results))
    launcher.synchronize()
    found, expected = list(results.cpu().numpy().view(np.uint32)), probe.expect(operands)
    bad = np.flatnonzero(~probe.agree(operands, found, expected))

    def hexadecimal(words: list[Words], lane: int) -> str:
        return " ".join(f"{word[lane]:08x}" for word in words)

    return [
        f"lane {i}: {hexadecimal(found, i)}, not {hexadecimal(expected, i)}, from {hexadecimal(operands, i)}"
        for i in bad[:MAX_SHOWN]
    ]


_LOAD = {"u": "uint32(ptx.ldg_i32({}))", "i": "ptx.ldg_i32({})", "f": "ptx.ldg_f32({})"}
_STORE = {"u": "ptx.stg_u32", "f": "ptx.stg_f32", "i": "ptx.stg_u32"}


def make_register_probe(name: str, instruction: RegisterInstruction, target: Target) -> Callable[..., None]:
    """results[:, lane] = instruction(*operands[:, lane]). Written out, for the compiler takes no argument lists."""
    operands = [f"a{i}" for i in range(len(instruction.operands))]
    results = [f"r{i}" for i in range(len(instruction.results))]
    place = "(lane + {} * num_lanes) * 4"
    lines = [f"lane = int64(cuda.blockIdx.x) * {NUM_THREADS} + int64(cuda.threadIdx.x)"]
    for i, kind in enumerate(instruction.operands):
        lines.append(f"{operands[i]} = {_LOAD[kind].format('operands + ' + place.format(i))}")
    lines.append(f"{', '.join(results)} = ptx.{name}({', '.join(operands)})")
    for i, kind in enumerate(instruction.results):
        value = f"uint32({results[i]})" if kind == "i" else results[i]
        lines.append(f"{_STORE[kind]}(results + {place.format(i)}, {value})")
    source = "def probe(operands, results, num_lanes):\n    " + "\n    ".join(lines)
    names: dict[str, Any] = {
        "ptx": target.ptx, "cuda": target.cuda, "int64": target.int64, "uint32": target.uint32,
    }  # fmt: skip
    exec(compile(source, f"<probe of {name}>", "exec"), names)
    probe: Callable[..., None] = names["probe"]
    return probe


def register_probe(name: str, instruction: RegisterInstruction) -> Probe:
    """The generic probe of an instruction on registers."""

    def make(target: Target) -> Callable[..., None]:
        return make_register_probe(name, instruction, target)

    kernel = Kernel(
        make,
        ARGUMENTS,
        NUM_THREADS,
        name=f"probe-{name.replace('_', '-')}",
        min_compute_capability=instruction.min_compute_capability,
    )
    expect = functools.partial(run_twin, name, instruction)
    return Probe(kernel, (name,), len(instruction.results), instruction.draw, expect, instruction.agree)


_DTYPES: dict[str, Any] = {"u": np.uint32, "i": np.int32, "f": np.float32}


def run_twin(name: str, instruction: RegisterInstruction, operands: list[Words]) -> list[Words]:
    """What the instruction's twin makes of the operands, without the simulator."""
    columns = [_as_values(word, kind) for word, kind in zip(operands, instruction.operands, strict=True)]
    lanes = list(zip(*columns, strict=True))
    with np.errstate(all="ignore"):
        if name in WARP_OPERATIONS:
            warps = [lanes[i : i + 32] for i in range(0, len(lanes), 32)]
            rows = [row for warp in warps for row in WARP_OPERATIONS[name](warp)]
        else:
            twin = getattr(_lonely_twins(), name)
            rows = [twin(*lane) for lane in lanes]
    rows = [row if isinstance(row, tuple) else (row,) for row in rows]
    results = zip(*rows, strict=True)
    return [
        np.array(column, dtype=_DTYPES[kind]).view(np.uint32)
        for column, kind in zip(results, instruction.results, strict=True)
    ]


def _as_values(words: Words, kind: str) -> list[Any]:
    return list(words.view(np.float32)) if kind == "f" else [int(x) for x in words.view(_DTYPES[kind])]


def _lonely_twins() -> PtxTwins:
    """Twins of a lane that has no memory and no neighbours."""
    nothing = AddressSpace()
    return PtxTwins(nothing, lambda: nothing, lambda *_: None, lambda: [[]], early_copies=False)

"""A folder of kernels compiled beforehand: what belongs to which source, and what a GPU is given."""

import dataclasses
import re
from pathlib import Path

import pytest

from numba_kernels.cuda import prebuilt
from numba_kernels.cuda.build import Build
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.prebuild import describe, prebuild
from numba_kernels.cuda.prebuilt import Prebuilt, StalePrebuilt, read_prebuilt, source_hash, write_manifest
from numba_kernels.cuda.sass import Instruction, read_sass
from numba_kernels.cuda.target import Kernel
from numba_kernels.cuda.toolchain import disassemble

NAME = "write-kv-64-b16"


def folder_of(*kernels: Kernel, at: Path) -> Prebuilt:
    """A folder whose files hold their own names."""
    entries = [describe(kernel, ("sm_90",)) for kernel in kernels]
    for entry in entries:
        for name in (entry.ptx, *entry.cubins.values()):
            (at / name).write_text(name)
    write_manifest(at, {"ptxas": "V1"}, entries)
    return read_prebuilt(at)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    kernels = catalog()
    read = folder_of(*kernels.values(), at=tmp_path)
    assert read.compiler == {"ptxas": "V1"}
    assert read.kernels == {name: describe(kernel, ("sm_90",)) for name, kernel in kernels.items()}
    assert len({entry.entry for entry in read.kernels.values()}) == len(kernels)


def test_a_gpu_is_given_its_own_machine_code_or_else_ptx(tmp_path: Path) -> None:
    kernel = catalog()[NAME]
    folder = folder_of(kernel, at=tmp_path)
    assert folder.image(kernel, (9, 0)) == b"write-kv-64-b16.sm_90.cubin"
    assert folder.image(kernel, (8, 6)) == b"write-kv-64-b16.ptx\0"


def test_a_gpu_without_the_instructions_is_refused(tmp_path: Path) -> None:
    kernel = dataclasses.replace(catalog()[NAME], min_compute_capability=(8, 9))
    folder = folder_of(kernel, at=tmp_path)
    with pytest.raises(ValueError, match="needs compute capability"):
        folder.image(kernel, (8, 6))


def test_a_kernel_of_another_source_is_refused(tmp_path: Path) -> None:
    kernel = catalog()[NAME]
    folder = folder_of(kernel, at=tmp_path)
    with pytest.raises(StalePrebuilt, match="another source"):
        folder.find(dataclasses.replace(kernel, min_blocks_per_sm=4))
    with pytest.raises(StalePrebuilt, match="missing"):
        folder.find(catalog()["copy-blocks"])


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    folder_of(at=tmp_path)
    manifest = tmp_path / prebuilt.MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="format 2"):
        read_prebuilt(tmp_path)


def test_the_hash_covers_what_a_kernel_is_made_of_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, real = catalog(), prebuilt._source

    def changed_by(module: str) -> set[str]:
        monkeypatch.setattr(prebuilt, "_source", lambda name: real(name) + b"#" * (name == module))
        return {name for name, kernel in kernels.items() if source_hash(kernel) != before[name]}

    before = {name: source_hash(kernel) for name, kernel in kernels.items()}
    assert changed_by("numba_kernels.cuda.ptx") == set(kernels)
    assert changed_by("numba_kernels.cuda.decode_tile") == {n for n in kernels if n.startswith(("decode", "merge"))}
    assert changed_by("numba_kernels.cuda.kv_write") == {n for n in kernels if n.startswith("write-kv")}
    assert changed_by("numba_kernels.cuda.prefill_tile") == {n for n in kernels if n.startswith("prefill")}
    assert changed_by("numba_kernels.cuda.simulator") == set()


def test_prebuilding_makes_files_that_hold_the_kernel(tmp_path: Path, builds: dict[str, dict[str, Build]]) -> None:
    # The whole catalogue is built by the compile gate; here one kernel is, by the same function.
    made = prebuild(tmp_path, ("sm_90",), only_one)
    (entry,) = made
    assert read_prebuilt(tmp_path).kernels == {NAME: entry}
    ptx = (tmp_path / entry.ptx).read_text()
    assert f".visible .entry {entry.entry}(" in ptx
    assert "\n.version 8.1\n" in ptx, "drivers of CUDA 12 take it too"
    machine_code = read_sass(disassemble(tmp_path / entry.cubins["sm_90"]))
    gated = builds[NAME]["sm_90"].instructions  # there it was assembled together with all others
    assert [_unlabelled(i) for i in machine_code] == [_unlabelled(i) for i in gated]
    written = (tmp_path / entry.ptx).stat().st_mtime_ns
    prebuild(tmp_path, ("sm_90",), only_one)
    assert (tmp_path / entry.ptx).stat().st_mtime_ns == written, "what is up to date is not made again"


def _unlabelled(instruction: Instruction) -> Instruction:
    return dataclasses.replace(instruction, operands=re.sub(r"L_x_\d+", "label", instruction.operands))


def only_one() -> dict[str, Kernel]:
    return {NAME: catalog()[NAME]}

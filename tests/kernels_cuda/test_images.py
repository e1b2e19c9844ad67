"""Where compiled kernels come from: a prebuilt folder, or the compiler and what it has kept on disk."""

from pathlib import Path

import pytest

from numba_kernels.cuda import images
from numba_kernels.cuda.empty_kernel import empty_kernel
from numba_kernels.cuda.images import CompiledImages, Images
from numba_kernels.cuda.prebuild import describe
from numba_kernels.cuda.prebuilt import Prebuilt, read_prebuilt, write_manifest
from numba_kernels.cuda.target import Kernel


def prebuilt_folder(folder: Path, *, is_stale: bool = False) -> Prebuilt:
    """The empty kernel, of this source or another."""
    entry = describe(empty_kernel(), ())
    (folder / entry.ptx).write_text("prebuilt")
    write_manifest(folder, {}, [entry])
    read = read_prebuilt(folder)
    if is_stale:
        text = (folder / "kernels.json").read_text().replace(entry.source_hash, "0" * 32)
        (folder / "kernels.json").write_text(text)
        read = read_prebuilt(folder)
    return read


def without_compiler(name: str) -> str:
    raise images.importlib.metadata.PackageNotFoundError(name)


def test_a_kernel_is_compiled_once_and_then_read_from_disk(tmp_path: Path) -> None:
    compiled = CompiledImages(tmp_path / "new")
    image = compiled.image(empty_kernel(), (9, 0))
    assert image.endswith(b"\0")
    assert b".target sm_80" in image
    assert b".visible .entry empty(" in image
    (file,) = (tmp_path / "new").iterdir()
    file.write_text("kept")
    assert compiled.image(empty_kernel(), (9, 0)) == b"kept\0"


def test_another_compiler_compiles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = CompiledImages(tmp_path)
    compiled.image(empty_kernel(), (9, 0))
    real = images.importlib.metadata.version
    monkeypatch.setattr(images.importlib.metadata, "version", lambda name: real(name) + ".1")
    compiled.image(empty_kernel(), (9, 0))
    assert len(list(tmp_path.iterdir())) == 2


def test_prebuilt_kernels_of_the_same_source_come_first(tmp_path: Path) -> None:
    chosen = Images(prebuilt_folder(tmp_path), CompiledImages(tmp_path / "unused"))
    assert chosen.image(empty_kernel(), (9, 0)) == b"prebuilt\0"


def test_a_stale_prebuilt_kernel_is_compiled_anew(tmp_path: Path) -> None:
    chosen = Images(prebuilt_folder(tmp_path, is_stale=True), CompiledImages(tmp_path / "new"))
    assert b".entry empty(" in chosen.image(empty_kernel(), (9, 0))


@pytest.mark.parametrize("is_stale", [True, False])
def test_without_the_compiler_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stale: bool
) -> None:
    prebuilt = prebuilt_folder(tmp_path, is_stale=True) if is_stale else None
    monkeypatch.setattr(images.importlib.metadata, "version", without_compiler)
    with pytest.raises(RuntimeError, match=r"python -m numba_kernels\.cuda\.prebuild"):
        Images(prebuilt, CompiledImages(tmp_path)).image(empty_kernel(), (9, 0))


def test_a_compiler_that_cannot_compile_names_the_kernel_that_is_not_prebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba-cuda without its nvvm, say."""

    def broken(kernel: Kernel) -> str:
        raise OSError("libnvvm cannot be found")

    monkeypatch.setattr("numba_kernels.cuda.compiled.compile_to_ptx", broken)
    chosen = Images(prebuilt_folder(tmp_path, is_stale=True), CompiledImages(tmp_path / "new"))
    with pytest.raises(RuntimeError, match=r"empty is not prebuilt .*: OSError: libnvvm .*make gpu-kernels") as found:
        chosen.image(empty_kernel(), (9, 0))
    assert isinstance(found.value.__cause__, OSError)
    assert not (tmp_path / "new").exists()


def test_a_gpu_without_the_instructions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="needs compute capability"):
        CompiledImages(tmp_path).image(empty_kernel(), (7, 5))

"""Compiled kernels for a GPU: from a folder of prebuilt ones, or compiled by numba-cuda here and kept on disk."""

import hashlib
import importlib.metadata
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from numba_kernels.cuda.prebuilt import MANIFEST, Prebuilt, StalePrebuilt, read_prebuilt, source_hash
from numba_kernels.cuda.target import Kernel

PREBUILT_FOLDER = Path(__file__).parents[2] / "build" / "cuda-kernels"  # of this checkout
_COMPILER = ("numba-cuda", "numba", "llvmlite")
_REMEDY = (
    "Install serve-paged[cuda], or build elsewhere: make gpu-kernels, "
    f"or python -m numba_kernels.cuda.prebuild --out {PREBUILT_FOLDER}"
)


@dataclass(frozen=True, slots=True)
class CompiledImages:
    """PTX made by numba-cuda at first use, about 2 s a kernel; later processes find it in `folder`."""

    folder: Path

    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        """PTX, with a 0 at its end. Raises RuntimeError without a compiler or on a GPU without the instructions."""
        if compute_capability < kernel.min_compute_capability:
            raise RuntimeError(f"{kernel.name} needs compute capability {kernel.min_compute_capability}")
        path = self.folder / f"{kernel.name}-{_stamp(kernel)}.ptx"
        if not path.exists():
            text = _compile(kernel)
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_whole(path, text)
        return path.read_bytes() + b"\0"


@dataclass(frozen=True, slots=True)
class Images:
    """Prebuilt kernels where they are of the same source; the others compiled, if numba-cuda is there."""

    prebuilt: Prebuilt | None
    compiled: CompiledImages

    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        """Raises RuntimeError saying what to do if it can come from neither."""
        if self.prebuilt is None:
            return self.compiled.image(kernel, compute_capability)
        try:
            return self.prebuilt.image(kernel, compute_capability)
        except StalePrebuilt as stale:
            if not has_compiler():
                raise RuntimeError(str(stale)) from None
            return self.compiled.image(kernel, compute_capability)


def default_images() -> Images:
    """From `PREBUILT_FOLDER` if there is one; compiled ones are kept in $XDG_CACHE_HOME or ~/.cache."""
    prebuilt = read_prebuilt(PREBUILT_FOLDER) if (PREBUILT_FOLDER / MANIFEST).is_file() else None
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "serve-paged" / "kernels"
    return Images(prebuilt, CompiledImages(cache))


def has_compiler() -> bool:
    """Whether numba-cuda is installed (the older compiler inside numba itself does not count)."""
    try:
        importlib.metadata.version("numba-cuda")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _compile(kernel: Kernel) -> str:
    """PTX. Raises RuntimeError with the remedy where numba-cuda, of whatever version, is there but cannot compile."""
    try:
        from numba_kernels.cuda.compiled import compile_to_ptx  # needs numba-cuda, which may be missing

        return compile_to_ptx(kernel)
    except Exception as error:
        raise RuntimeError(f"{_not_prebuilt(kernel)}: {type(error).__name__}: {error}. {_REMEDY}") from error


def _not_prebuilt(kernel: Kernel) -> str:
    return f"{kernel.name} is not prebuilt and cannot be compiled here"


def _stamp(kernel: Kernel) -> str:
    """Of the kernel's source and the compiler's versions. Raises RuntimeError where no compiler is installed."""
    try:
        versions = [importlib.metadata.version(name) for name in _COMPILER]
    except importlib.metadata.PackageNotFoundError as missing:
        raise RuntimeError(f"{_not_prebuilt(kernel)}: {missing.name} is not installed. {_REMEDY}") from None
    return hashlib.blake2b(repr((source_hash(kernel), versions)).encode(), digest_size=8).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """All of a file or nothing, whoever else is writing it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)

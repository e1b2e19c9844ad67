"""GGUF files are converted once, into a folder of the cache that every later start loads directly."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_paged.model.identity import file_digest

FORMAT = "v3"  # raise it when the conversion's result changes


def cache_folder() -> Path:
    """Return the folder for converted models: $XDG_CACHE_HOME or ~/.cache, then serve-paged/models."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "serve-paged" / "models"


def converted_folder(gguf_file: Path) -> Path:
    """Return the model folder made from a GGUF file, converting it at the first call.

    The folder is named by the file's contents and appears whole or not at all. Two processes that need it at once
    convert it once: the second waits for the first.
    """
    folder = cache_folder() / f"{gguf_file.stem}-{FORMAT}-{file_digest(gguf_file).hex()[:16]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            # Here, not at the top: it imports transformers, seconds that a later start need not wait.
            from serve_paged.model.gguf_conversion import convert_gguf

            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a conversion that was killed
            unfinished.mkdir()
            convert_gguf(gguf_file, unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it should this one die."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

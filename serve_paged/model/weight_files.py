"""Which files of a model folder hold its weights. Reads none of them and needs no torch."""

import json
from pathlib import Path

from serve_paged.model.errors import InvalidWeights

INDEX_FILE = "model.safetensors.index.json"
MAX_NAMES = 8  # named in one error


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, in the index's order if it has one.

    Raises `InvalidWeights` when there is none or the index names one that is absent.
    """
    index = folder / INDEX_FILE
    if index.exists():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in dict.fromkeys(weight_map.values())]
    else:
        files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise InvalidWeights(f"{INDEX_FILE} in {folder} names files that are not there: {some(absent)}")
    if not files:
        raise InvalidWeights(f"no safetensors file in {folder}; other weight formats are not read")
    return files


def some(names: list[str]) -> str:
    """List names for an error message, the first few of many."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more

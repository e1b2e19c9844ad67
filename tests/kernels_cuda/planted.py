"""Kernels with a bug planted on purpose: what must be caught."""

import ast
import inspect
from types import ModuleType
from typing import Any

from numba_kernels.cuda import (
    decode,
    decode_merge,
    decode_tile,
    prefill,
    prefill_e4m3,
    prefill_load,
    prefill_rows,
    prefill_shared,
    prefill_store,
    prefill_tile,
)
from tests.kernels_cuda import staged_copy
from tests.kernels_cuda.decode_batches import DecodeSource


def planted(old: str, new: str, *modules: ModuleType) -> dict[str, Any]:
    """The names of `modules`, run again as one with `old` replaced, which must occur exactly once."""
    names = {module.__name__ for module in modules}
    sources = [inspect.getsource(module) for module in modules]
    assert sum(source.count(old) for source in sources) == 1, f"{old!r} is not there exactly once"
    namespace: dict[str, Any] = {"__name__": "planted"}
    for source in sources:
        tree = ast.parse(source.replace(old, new))
        tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module in names)]
        exec(compile(tree, "planted", "exec"), namespace)
    return namespace


def planted_decode(old: str, new: str) -> DecodeSource:
    """The decode kernels with one piece of source replaced."""
    names = planted(old, new, decode_tile, decode_merge, decode)
    return DecodeSource(names["make_decode"], names["make_merge_splits"])


def planted_prefill(old: str, new: str) -> Any:
    """`make_prefill` with one piece of source replaced."""
    modules = (prefill_rows, prefill_shared, prefill_load, prefill_e4m3, prefill_tile, prefill_store, prefill)
    return planted(old, new, *modules)["make_prefill"]


def planted_staged_copy(old: str, new: str) -> Any:
    """`make_staged_copy` with one piece of source replaced."""
    return planted(old, new, staged_copy)["make_staged_copy"]

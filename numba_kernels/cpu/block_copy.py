"""Copying whole blocks within a cache (copy-on-write) and between two caches (swapping). Blind to the layout."""

import functools
from typing import Any

import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from numba_kernels.cpu.jit import i64_ptr, kernel

# Blocks are cut into pieces, so that both cores have work even when there is a single block to copy.
_PIECE_BYTES = 65_536


@intrinsic
def _memcpy(_context: Any, _target: types.Type, _source: types.Type, _num_bytes: types.Type) -> Any:
    """The C library's memcpy between int64 addresses."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(address, byte_pointer) for address in args[:2])
        flag = ir.IntType(1)
        signature = ir.FunctionType(ir.VoidType(), [byte_pointer, byte_pointer, ir.IntType(64), flag])
        function = builder.module.declare_intrinsic(
            "llvm.memcpy", [byte_pointer, byte_pointer, ir.IntType(64)], signature
        )
        builder.call(function, [target, source, args[2], ir.Constant(flag, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@functools.cache
def _copy_rows_kernel(parallel: bool) -> Any:
    @kernel(parallel=parallel)
    def copy_rows(source, source_rows, target, target_rows, pairs, num_pairs, row_bytes, pieces):  # type: ignore[no-untyped-def]
        for i in range(num_pairs):
            row, to = i64_ptr(pairs)[2 * i], i64_ptr(pairs)[2 * i + 1]
            if row < 0 or row >= source_rows or to < 0 or to >= target_rows:
                return False
        for job in prange(num_pairs * pieces):
            pair = job // pieces
            piece = job - pair * pieces
            begin, end = piece * row_bytes // pieces, (piece + 1) * row_bytes // pieces
            from_row, to_row = i64_ptr(pairs)[2 * pair], i64_ptr(pairs)[2 * pair + 1]
            _memcpy(target + to_row * row_bytes + begin, source + from_row * row_bytes + begin, end - begin)
        return True

    return copy_rows


def copy_blocks(kv_cache: Tensor, pairs: Tensor) -> None:
    """Copy whole blocks within one cache.

    kv_cache: [num_blocks, ...], contiguous, any dtype. pairs: int64 [num_pairs, 2] of (source, destination) block ids;
    the copies run in no order, so no destination may be another pair's source or destination.
    Raises ValueError for wrong shapes or dtypes, IndexError for a block outside the cache (before anything is copied).
    """
    swap_blocks(kv_cache, kv_cache, pairs)


def swap_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """Copy whole blocks from one cache to another whose blocks have the same shape: device to host tier, or back.

    src: [num_src_blocks, ...] and dst: [num_dst_blocks, ...], contiguous, same dtype and block shape. pairs: int64
    [num_pairs, 2] of (block in src, block in dst), no destination twice. Raises as `copy_blocks` does.
    """
    if (
        src.shape[1:] != dst.shape[1:]
        or src.dtype is not dst.dtype
        or not (src.is_contiguous() and dst.is_contiguous())
    ):
        raise ValueError(f"cannot copy blocks {tuple(src.shape)} {src.dtype} to {tuple(dst.shape)} {dst.dtype}")
    if pairs.dtype is not torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2 or not pairs.is_contiguous():
        raise ValueError(f"pairs must be int64 [num_pairs, 2] and contiguous, got {pairs.dtype} {tuple(pairs.shape)}")
    num_pairs, row_bytes = pairs.shape[0], src.stride(0) * src.element_size()
    pieces = max(1, row_bytes // _PIECE_BYTES)
    run = _copy_rows_kernel(num_pairs * pieces > 1)
    ends = (src.data_ptr(), src.shape[0], dst.data_ptr(), dst.shape[0])
    if not run(*ends, pairs.data_ptr(), num_pairs, row_bytes, pieces):
        raise IndexError(f"pairs name blocks outside {src.shape[0]} source or {dst.shape[0]} destination blocks")

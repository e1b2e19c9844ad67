"""Correctness, then timings, of every operation on one device: `python -m numba_kernels.bench`."""

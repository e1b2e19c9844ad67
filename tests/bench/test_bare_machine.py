"""The engine, the benchmarks and the GPU ladder run where Ray, pydantic and the like are not installed."""

import subprocess
import sys
import textwrap

ABSENT = ("ray", "pydantic", "uvicorn", "starlette", "fastapi", "gguf", "tbb", "greenlet", "numba_cuda", "openai")
MODULES = (
    *("serve_paged.__main__", "serve_paged.bench.command", "serve_paged.engine.build"),
    *("numba_kernels.bench.__main__", "numba_kernels.bench.cuda"),
    *(f"tests.gpu.{name}" for name in ("__main__", "environment", "load", "sanitized", "launch_cost", "targets")),
    *(f"tests.gpu.test_{name}" for name in ("conformance", "operations", "graphs", "engine")),
)


def test_it_is_imported_without_what_a_bare_gpu_machine_lacks() -> None:
    program = f"""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {ABSENT!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import {", ".join(MODULES)}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

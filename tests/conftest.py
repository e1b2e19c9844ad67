"""Fixtures that several parts share."""

# ruff: noqa: E402  (the environment comes first: torch reads it when it is imported)
import os

from serve_paged.config import prepare_environment

prepare_environment(os.environ)

from pathlib import Path

import pytest

from tests.tiny_models import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk, loadable like any local model."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")

"""The core knows no Ray: a test here that starts it has left its layer."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ray.init` raise where ray is imported already."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("tests of the core must not start Ray")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)

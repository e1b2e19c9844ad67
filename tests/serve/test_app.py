"""The builder's settings, and what importing the serving modules costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_paged.config import EngineConfig
from serve_paged.serve.app import APP_NAME, build
from serve_paged.serve.environment import SETTINGS, ensure_token, prepare
from serve_paged.serve.resources import replica_resources
from serve_paged.serve.settings import IngressConfig, read_settings

ROOT = Path(__file__).parents[2]


def shipped_config() -> dict[str, object]:
    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())


def test_settings_become_the_engines_config() -> None:
    settings = read_settings({"dtype": "float32", "kv_cache_gb": 2, "ingress": {"max_resumes": 0}})
    assert settings.engine == EngineConfig(dtype="float32", kv_cache_gb=2.0)
    assert settings.ingress == IngressConfig(max_resumes=0)


def test_an_unknown_setting_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="unknown setting 'modle'"):
        build({"modle": "x"})


@pytest.mark.parametrize(
    "setting",
    [{"block_size": 17}, {"dtype": "int4"}, {"kv_cache_dtype": "int4"}, {"threads": 0}, {"kv_cache_gb": "big"}],
)
def test_a_wrong_value_is_an_error_that_names_its_setting(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        build(setting)


def test_the_shipped_config_fits_rays_schema_and_our_builder() -> None:
    schema = ServeDeploySchema.model_validate(shipped_config())
    (application,) = schema.applications
    assert application.name == APP_NAME
    assert application.import_path == "serve_paged.serve.app:build"
    read_settings(application.args)


def test_the_shipped_config_names_the_deployments_that_the_builder_makes() -> None:
    (application,) = ServeDeploySchema.model_validate(shipped_config()).applications
    ingress = build(application.args)
    engine, _ = ingress._bound_deployment.init_args
    made = {ingress._bound_deployment.name, engine._bound_deployment.name}
    assert {deployment.name for deployment in application.deployments} == made


@pytest.mark.parametrize(
    ("device", "num_cluster_gpus", "num_gpus"), [("cuda", 0, 1), ("auto", 2, 1), ("auto", 0, None), ("cpu", 2, None)]
)
def test_a_replica_has_a_gpu_of_its_own_where_it_is_to_run_on_one(
    device: str, num_cluster_gpus: float, num_gpus: int | None
) -> None:
    assert replica_resources(device, num_cluster_gpus).get("num_gpus") == num_gpus


def test_outside_of_a_gpu_cluster_the_shipped_config_asks_for_no_gpu() -> None:
    (application,) = ServeDeploySchema.model_validate(shipped_config()).applications
    engine, _ = build(application.args)._bound_deployment.init_args
    assert engine._bound_deployment.ray_actor_options == {"num_cpus": 1}
    # What a deployment says in the file would replace it.
    assert "ray_actor_options" not in shipped_config()["applications"][0]["deployments"][1]  # type: ignore[index]


def test_the_shipped_config_listens_on_this_machine_only() -> None:
    assert ServeDeploySchema.model_validate(shipped_config()).http_options.host == "127.0.0.1"


@pytest.mark.parametrize("module", ["app", "ingress", "protocol", "routes", "tokenization", "launch"])
def test_a_serving_module_does_not_load_torch(module: str) -> None:
    code = f"import sys, serve_paged.serve.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_preparing_the_environment_keeps_what_the_user_has_set() -> None:
    environ = {"RAY_AUTH_MODE": "disabled"}
    code = (
        "import json, os, sys; from serve_paged.serve.environment import prepare; prepare(os.environ);"
        "print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_SERVE_THROUGHPUT_OPTIMIZED'], 'ray' in sys.modules)"
    )
    env = {**os.environ, **environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    assert done.stdout.split() == ["disabled", SETTINGS["RAY_SERVE_THROUGHPUT_OPTIMIZED"], "False"]


def test_preparing_the_environment_too_late_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before ray is imported"):
        prepare({})


def test_rays_token_is_written_once_and_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_token({"RAY_AUTH_MODE": "token"})
    file = tmp_path / ".ray" / "auth_token"
    token = file.read_text()
    ensure_token({"RAY_AUTH_MODE": "token"})
    assert file.read_text() == token
    assert len(token) == 64
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_token_is_written_where_the_user_brings_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"})
    ensure_token({"RAY_AUTH_MODE": "disabled"})
    assert list(tmp_path.iterdir()) == []

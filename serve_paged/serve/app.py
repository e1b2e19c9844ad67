"""Builds the Ray Serve application. `serve_config.yaml` names `build` and gives it the engine's settings as `args`."""

from typing import Any

from ray import serve

from serve_paged.serve.ingress import Ingress
from serve_paged.serve.replica import EngineReplica
from serve_paged.serve.resources import num_cluster_gpus, replica_resources
from serve_paged.serve.settings import read_settings

APP_NAME = "serve_paged"
IMPORT_PATH = "serve_paged.serve.app:build"  # what a Serve config names

# Defaults of the two deployments; `deployments:` in serve_config.yaml overrides them.
_INGRESS_OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 1024,  # waiting is the engine's business: it knows what fits
    "health_check_period_s": 2,
    "graceful_shutdown_timeout_s": 60,
    "ray_actor_options": {"num_cpus": 0.1},
}
_ENGINE_OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 1024,
    "health_check_period_s": 2,  # a dead engine is replaced after about this time
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": 60,
    "graceful_shutdown_wait_loop_s": 0.5,
    "request_router_config": {"request_router_class": "serve_paged.serve.router:BlockAwareRouter"},
}


def build(args: dict[str, Any]) -> serve.Application:
    """The application: an ingress in front of engine replicas.

    `args` as `read_settings` takes them. Raises `ValueError` naming every unknown key and wrong value.
    """
    settings = read_settings(args)
    resources = replica_resources(settings.engine.device, num_cluster_gpus())
    engine = serve.deployment(EngineReplica, ray_actor_options=resources, **_ENGINE_OPTIONS)
    replicas = engine.bind(settings.engine)
    return serve.deployment(serve.ingress()(Ingress), **_INGRESS_OPTIONS).bind(replicas, settings.ingress)

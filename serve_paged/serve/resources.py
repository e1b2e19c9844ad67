"""What Ray reserves for one replica of the engine."""

from typing import Any

import ray


def replica_resources(device: str, num_cluster_gpus: float) -> dict[str, Any]:
    """Ray's actor options: a core, and a GPU of its own where the engine is to run on one.

    `device` is the engine's setting. With "auto" replicas get a GPU if the cluster has any: without one in its options
    an actor sees none, and runs on the CPU.
    """
    resources: dict[str, Any] = {"num_cpus": 1}
    if device == "cuda" or (device == "auto" and num_cluster_gpus >= 1):
        resources["num_gpus"] = 1
    return resources


def num_cluster_gpus() -> float:
    """GPUs that the cluster has now, in use or not; none outside of a cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0)) if ray.is_initialized() else 0.0

"""Ray Serve's request router for engine replicas: the decision is `core/routing.py`'s, this hands it to Ray.

Configured in `serve_config.yaml`. Ray makes one router per ingress process; it shares that process's `RoutingDesk`.
"""

from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_paged.core.routing_table import RoutingConfig
from serve_paged.serve.desks import desk_of
from serve_paged.serve.engine_request import EngineRequest

Ranks = list[list[RunningReplica]]


class BlockAwareRouter(FIFOMixin, RequestRouter):
    """Sends each request where its KV blocks are, weighed against what waits there."""

    def initialize_state(self, **settings: Any) -> None:
        """Called once by Ray; `settings` are fields of `RoutingConfig`."""
        self._desk = desk_of(self._deployment_id.app_name)
        self._desk.configure(RoutingConfig(**settings))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Ranks:
        """The replica that the desk reserved, alone in its rank; nothing while all are full."""
        request = pending_request.args[0] if pending_request is not None and pending_request.args else None
        if not isinstance(request, EngineRequest):  # a question about the model or its state: any replica can answer
            return [candidate_replicas]
        assert pending_request is not None
        pending_request.routing_context.should_backoff = True  # whatever comes of it: never a hot loop
        decision = self._desk.choose(request)
        if decision is None:
            return [candidate_replicas]
        return [[replica] for replica in candidate_replicas if replica.replica_id.unique_id == decision.chosen]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray's news of which replicas take requests."""
        super().update_replicas(replicas)
        self._desk.set_replicas(replica.replica_id.unique_id for replica in replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call found a replica dead, before Ray's controller did."""
        super().on_replica_actor_died(replica_id)
        self._desk.died(replica_id.unique_id)

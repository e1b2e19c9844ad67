"""The one piece of state that belongs to a process: Ray constructs its router itself, and nothing can be handed to it.

So the router and the ingress of one process find their common `RoutingDesk` here.
"""

from serve_paged.core.routing_table import RoutingConfig
from serve_paged.serve.routing_desk import RoutingDesk

_DESKS: dict[str, RoutingDesk] = {}


def desk_of(app_name: str) -> RoutingDesk:
    """This process's desk for a Ray Serve application."""
    return _DESKS.setdefault(app_name, RoutingDesk(RoutingConfig()))

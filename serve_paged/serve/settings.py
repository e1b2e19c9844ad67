"""The application's settings: `args` in `serve_config.yaml`. Wrong keys and values are refused by name."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serve_paged.config import EngineConfig


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """Settings of the ingress, under the key `ingress`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (read by pydantic)

    explain_routing: bool = True  # GET /debug/routing/{request_id}, and headers that say which replica and why
    max_resumes: int = 5  # how often a request may lose its replica; a request that kills replicas is stopped here
    recovery_s: float = 180.0  # how long after a loss the next token may take: a replica may have to start first
    drain_grace_s: float = 10.0  # how long a request may stay on a replica that is being stopped

    def __post_init__(self) -> None:
        for name in ("max_resumes", "recovery_s", "drain_grace_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `args` says."""

    engine: EngineConfig
    ingress: IngressConfig


def read_settings(args: dict[str, Any]) -> Settings:
    """Typed, validated settings: the fields of `EngineConfig`, and under `ingress` those of `IngressConfig`.

    Raises `ValueError` naming every unknown key and wrong value.
    """
    engine = {key: value for key, value in args.items() if key != "ingress"}
    return Settings(_read(EngineConfig, engine, "the engine"), _read(IngressConfig, args.get("ingress", {}), "ingress"))


def _read(kind: Any, values: Any, of: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(f"settings of {of}: " + "; ".join(map(_complaint, error.errors()))) from error


def _complaint(found: Any) -> str:
    key = ".".join(map(str, found["loc"]))
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown setting {key!r}"
    return f"{key}: {found['msg']}" if key else found["msg"]

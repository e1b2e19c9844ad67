"""The errors that a request can cause. Anything else that is raised is a fault of the engine."""


class InvalidRequest(ValueError):
    """A request that can never be served as asked; `param` names the offending field (HTTP 400)."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[type["InvalidRequest"], tuple[str, str | None]]:
        """Keep `param` when the error crosses a process boundary."""
        return type(self), (self.message, self.param)


class RequestTooLong(InvalidRequest):
    """Prompt and output can never fit into the context or the KV cache."""


class EngineDead(RuntimeError):
    """The engine has failed or was closed; every open request of it ends with this error."""

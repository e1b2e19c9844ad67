"""What can be wrong with a model that somebody asks for. All are the operator's to fix: none is raised by a request."""


class UnsupportedModel(ValueError):
    """A model that this engine does not run; the message names the reason and what is supported."""


class InvalidWeights(ValueError):
    """Weights that do not fit their config; the message names the missing, unexpected and mis-shaped ones."""


class ModelNotFound(ValueError):
    """No model under this name; the message says what to do."""

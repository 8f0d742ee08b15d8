"""What can go wrong, by who can mend it."""

from __future__ import annotations


class InferenceError(Exception):
    """Base of every error that `inference` raises on purpose."""


class RequestError(InferenceError, ValueError):
    """An argument was wrong: the message names it, its value, and what was expected."""

    def __init__(self, message: str = ""):
        # Pyro's trace adds the shapes of all sites to a ValueError that passes through it.
        super().__init__(message.partition("Trace Shapes:")[0].rstrip())


class PairError(RequestError):
    """Model and guide do not fit each other, or cannot answer the question that was asked."""


class CheckpointError(RequestError):
    """A checkpoint is missing, damaged, or belongs to another training."""


class NonFiniteError(InferenceError, ArithmeticError):
    """A loss, gradient or weight became NaN or infinite; the message names the first culprit.

    `steps_ago`: how many training steps were run since (without touching a weight).
    """

    def __init__(self, message: str, *, steps_ago: int = 0):
        super().__init__(message)
        self.steps_ago = steps_ago


class Untraceable(InferenceError):
    """The pair cannot be recorded as a function of tensors; the message names why."""


class CompilationError(InferenceError):
    """A recorded graph could not be compiled on this machine."""


class EngineWarning(UserWarning):
    """Another engine runs a training than the one that was asked for; the message says why."""

"""What can be wrong with a request, said so that the reader can mend it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: the dotted path of the field and a sentence about it."""

    path: tuple[str, ...]
    text: str

    def under(self, *prefix: str) -> Problem:
        return Problem(prefix + self.path, self.text)

    def __str__(self) -> str:
        line = f"{'.'.join(self.path)}: {self.text}" if self.path else self.text
        return " ".join(line.splitlines())


class PyroVAEError(Exception):
    """Base of every error that pyro_vae raises on purpose."""


class RequestError(PyroVAEError, ValueError):
    """The request was wrong: one line per mistake (exit code 2)."""

    def __init__(self, problems: str | Problem | list[Problem]):
        if isinstance(problems, str):
            problems = [Problem((), problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: list[Problem] = problems
        super().__init__("\n".join(map(str, problems)))


class SpecError(RequestError):
    """A spec or component does not validate."""


class Unfinished(SpecError, NotImplementedError):
    """A component of one's own does not write what its family asks for."""


class DataError(RequestError):
    """A data set is missing, damaged or unfit for the model."""


class RunError(RequestError):
    """A run folder is missing a file, damaged, or holds another run."""

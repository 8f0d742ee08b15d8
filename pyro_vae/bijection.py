"""An invertible map of vectors whose log-determinant comes with the move."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Transform, constraints


class Bijection(Transform):
    """y = f(x) of `[..., L]`, with log|det df/dx| `[...]`.

    A subclass writes `forth(x)`, which returns y and the log-determinant, and, where f has an
    inverse at hand, `back(y)`, which returns x and the same log-determinant. What the last move
    found is kept, so that a draw is scored without another pass.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and log|det df/dx|."""
        raise NotImplementedError(f"{type(self).__name__} must write forth(x)")

    def back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x of which y = f(x), and log|det df/dx|."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse, so its density is known at its own draws only"
        )

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.forth(x)
        self._last = x, y, log_det
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.back(y)
        self._last = x, y, log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is x and self._last[1] is y:
            return self._last[2]
        return self.forth(x)[1]

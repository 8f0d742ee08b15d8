"""What likelihoods of counts share: float64, log rates within bounds, exposures."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.in_float64 import InFloat64

MOST = 20.0  # of a log rate: e^20 counts


class CountModule(LikelihoodModule):
    """Independent counts whose rates are e^output times the exposure."""

    support = "count"

    def forward(self, outputs, exposure=None):
        outputs = self.precise(outputs)
        pixels = self.pixels(outputs, 0.0 if exposure is None else self._log(exposure))
        return InFloat64(pixels, outputs.dtype).to_event(self.event_dim)

    def pixels(self, outputs: Tensor, log_exposure: Tensor | float):
        """The distribution of each count, of float64 parameters."""
        raise NotImplementedError(f"{type(self).__name__} must write pixels(outputs, log_exposure)")

    def log_rate(self, outputs: Tensor, log_exposure: Tensor | float) -> Tensor:
        return self.bounded(outputs, -MOST, MOST).double() + log_exposure

    def initial_output(self, x, exposure=None):
        """log of the mean count over the mean exposure."""
        mean = x.float().mean(0)
        if exposure is not None:
            mean = mean / self._log(exposure).exp().expand(x.shape).mean(0).to(mean)
        return mean.clamp_min(1e-3).log()

    def _log(self, exposure: Tensor) -> Tensor:
        """log e in float64, to be added to `[..., *data]`. Raises `ValueError`."""
        if exposure.dim() <= 1:  # one for each datum
            exposure = exposure.reshape(exposure.shape + (1,) * self.event_dim)
        elif tuple(exposure.shape[-self.event_dim :]) != self.shapes.data:
            raise ValueError(
                f"exposure has shape {tuple(exposure.shape)}; expected [batch], or [batch, "
                f"{', '.join(map(str, self.shapes.data))}] for one of each value"
            )
        return exposure.double().log()

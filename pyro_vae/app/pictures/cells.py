"""From data to cells: small RGB images `[N, h, w, 3]` in [0, 1], on one scale for a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pyro_vae.app.pictures.page import minus
from pyro_vae.likelihoods.base import SCORES
from pyro_vae.vae import VAE

CELL = 64  # about how many pixels of the file one datum is wide
PAPER, INK = 0.94, 0.08  # grey levels of no ink and of full ink
BAD = (0.84, 0.37, 0.0)  # what is not a number


@dataclass(frozen=True)
class Look:
    """How the data of one VAE become cells: one range, one ink for all of a page."""

    picture: tuple[int, ...] | None  # channels, height, width; None: bars
    low: float
    high: float
    dark_ink: bool

    @classmethod
    def of(cls, vae: VAE, means: Tensor, x: Tensor | None = None) -> Look:
        """Range [0, 1] where likelihood or data lie there, otherwise that of means and data.

        Draws do not count: noise would wash out the rest. Grey pictures with an empty border are
        drawings, dark ink on paper; others are photographs, where high is light.
        """
        shown = means.float().cpu()
        if x is not None:
            shown = torch.cat([shown, x.detach()[:256].float().cpu()])
        finite = shown[shown.isfinite()].numpy()
        picture = _picture(tuple(vae.shapes.data))
        # Of pictures the outermost 1% may lie outside: a few wild means would dim the rest.
        ends = [0.005, 0.995] if picture else [0, 1]
        low, high = np.quantile(finite, ends).tolist() if len(finite) else (0.0, 1.0)
        if x is not None:
            unit = bool(((x >= 0) & (x <= 1)).all())
        else:
            unit = low > -0.2 and 0.5 < high < 1.2
        if unit or vae.likelihood.support in SCORES["unit"]:
            low, high = 0.0, 1.0
        elif high <= low:
            high = low + 1.0
        dark_ink = True
        if picture and vae.likelihood.support != "binary":
            flat = shown.reshape(-1, *picture)
            border = torch.cat([flat[..., [0, -1], :].flatten(), flat[..., [0, -1]].flatten()])
            dark_ink = float(border.nanmedian()) < low + 0.25 * (high - low)
        return cls(picture, low, high, dark_ink)

    @property
    def note(self) -> str:
        if self.picture:
            return ""
        scale = minus(f"from {self.low:.4g} to {self.high:.4g}")
        return f"Each datum: bars over its entries, {scale}."

    def cells(self, data: Tensor) -> np.ndarray:
        values = data.detach().float().cpu().flatten(1)
        share = ((values - self.low) / (self.high - self.low)).clamp(0, 1)
        if self.picture is None:
            return self._bars(share.numpy())
        share = share.reshape(-1, *self.picture)
        bad = share.isnan().any(1, keepdim=True)
        if len(share[0]) == 1 and self.dark_ink:
            share = PAPER + (INK - PAPER) * share
        colored = torch.where(bad, torch.tensor(BAD, device="cpu")[:, None, None], share)
        return _resize(colored).permute(0, 2, 3, 1).numpy()

    def _bars(self, share: np.ndarray) -> np.ndarray:
        """Bars from zero, or from the end of the range that is nearest to it."""
        entries = share.shape[1]
        width, height = int(np.clip(entries, CELL, 2 * CELL)), CELL * 3 // 4
        base = float(np.clip(-self.low / (self.high - self.low), 0, 1))
        entry = np.arange(width) * entries // width  # which entry each pixel column belongs to
        level = (np.arange(height)[::-1, None] + 0.5) / height
        top = share[:, None, entry]  # [N, 1, width]
        inside = (level > np.minimum(top, base)) & (level < np.maximum(top, base))
        if entries <= CELL // 4:  # room for a pixel of paper between bars
            inside &= np.append(np.diff(entry) == 0, True)
        inside |= np.abs(level - base) <= 0.5 / height  # the line they stand on
        cells = np.where(inside[..., None], INK, np.full(3, PAPER))
        return np.where(np.isnan(top)[..., None], BAD, cells).astype(np.float32)


def _picture(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Channels, height and width of data that are pictures; long thin ones read better as bars."""
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or max(shape[1:]) > 8 * min(shape[1:]):
        return None
    return shape


def _resize(images: Tensor) -> Tensor:
    """Repeat pixels, or average blocks of them, until an image is about CELL pixels long."""
    shorter, side = sorted(images.shape[2:])
    times = max(round(CELL / side), math.ceil(24 / shorter))  # a label is 24 pixels high
    if times > 1:
        return interpolate(images, scale_factor=times)
    return avg_pool2d(images, math.ceil(side / (2 * CELL)), ceil_mode=True)

"""The full-covariance Gaussian guide."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class FullRank(Guide, name="full_rank"):
    """q(z|x) = N(z; m(x), T(x) T(x)'), T lower triangular with exp on its diagonal.

    The encoder puts out L + L(L+1)/2 numbers (Kingma and Welling 2019, arXiv:1906.02691, 2.5.1).
    """

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        dim = shapes.latent_dim
        return FullRankModule(shapes, encoder, dim + dim * (dim + 1) // 2)


class FullRankModule(GuideModule):
    def encode(self, x, given=None):
        dim = self.shapes.latent_dim
        loc, raw, below = self.encoder(x).split([dim, dim, dim * (dim - 1) // 2], -1)
        tril = torch.diag_embed(positive(raw))
        rows, columns = torch.tril_indices(dim, dim, -1, device=tril.device)
        # Rows of T scale with their diagonal: narrow posteriors keep a moderate correlation.
        tril[..., rows, columns] = below * tril.diagonal(dim1=-2, dim2=-1)[..., rows]
        return loc, tril

    def distribution(self, parameters):
        loc, tril = parameters
        return dist.MultivariateNormal(loc, scale_tril=tril)

"""The von Mises-Fisher guide."""

from __future__ import annotations

from pyro_vae import von_mises_fisher
from pyro_vae.guides.directional import Directional


class VonMisesFisher(Directional, name="von_mises_fisher"):
    """q(z|x) = C exp(kappa(x) mu(x)'z) (Davidson et al., arXiv:1804.00891).

    Draws take a fixed number of proposals of a rejection sampler at once, so that every engine runs
    it; they cost more than those of `power_spherical`.
    """

    @property
    def rotational(self):
        return von_mises_fisher.VonMisesFisher

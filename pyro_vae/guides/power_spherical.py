"""The power spherical guide."""

from __future__ import annotations

from pyro_vae import spherical
from pyro_vae.guides.directional import Directional


class PowerSpherical(Directional, name="power_spherical"):
    """q(z|x) = N (1 + mu(x)'z)^kappa(x) (De Cao and Aziz, arXiv:2006.04437).

    One Beta and one Gaussian draw, with the KL to the uniform prior in closed form: the guide to
    begin with on the sphere.
    """

    @property
    def rotational(self):
        return spherical.PowerSpherical

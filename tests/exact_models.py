"""Models whose log p(x), posterior and importance weights are known in closed form, in float64.

x = W z + mu + noise, noise ~ N(0, Psi), z ~ N(0, I), guide q(z|x) = N(m + delta, S), where N(m, V)
is the exact posterior. The formulas are stated at each function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def agrees(
    estimate: float | Tensor,
    truth: float | Tensor,
    std_error: float | Tensor,
    *,
    ceiling: float = math.inf,
    errors: float = 5.0,
) -> bool:
    """Is every estimate within `errors` standard errors of the truth, and the error no vague one?

    The ceiling keeps a noisy estimator from passing by being vague.
    """
    estimate, truth, std_error = (
        torch.as_tensor(v, dtype=torch.float64) for v in (estimate, truth, std_error)
    )
    if not bool((std_error <= ceiling).all()):
        return False
    return bool(((estimate - truth).abs() <= errors * std_error + 1e-12).all())


def z_scores_are_normal(z: Tensor, low: float = 0.85, high: float = 1.15) -> bool:
    """Do errors have the size they claim, over many data?"""
    return low <= float(z.std()) <= high and abs(float(z.mean())) < 0.25


@dataclass(frozen=True)
class LinearGaussian:
    """x = W z + mu + noise with noise covariance diag(psi), and a Gaussian guide around p(z|x).

    Args:
        W: `[D, L]`. mu: `[D]`. psi: `[D]`, noise variances.
        S: `[L, L]`, the guide's covariance; None for the exact posterior's.
        delta: `[L]`, the guide's shift from the posterior mean.
    """

    W: Tensor
    mu: Tensor
    psi: Tensor
    S: Tensor | None = None
    delta: Tensor | None = None
    dtype: torch.dtype = torch.float64
    calls: list[int] = field(default_factory=list, compare=False)

    @property
    def num_latents(self) -> int:
        return self.W.shape[1]

    @property
    def A(self) -> Tensor:
        """Posterior precision: I + W' Psi^-1 W."""
        return torch.eye(self.num_latents).double() + self.W.T @ (self.W / self.psi[:, None])

    @property
    def V(self) -> Tensor:
        return torch.linalg.inv(self.A)

    @property
    def guide_covariance(self) -> Tensor:
        return self.V if self.S is None else self.S

    @property
    def shift(self) -> Tensor:
        return torch.zeros(self.num_latents).double() if self.delta is None else self.delta

    def mean(self, x: Tensor) -> Tensor:
        """Posterior mean m = V W' Psi^-1 (x - mu), `[N, L]`."""
        return ((x.double() - self.mu) / self.psi) @ self.W @ self.V

    def log_px(self, x: Tensor) -> Tensor:
        """-1/2 [ D ln 2pi + ln|Psi| + ln|A| + r' Psi^-1 r - m' A m ], `[N]`."""
        r, m = x.double() - self.mu, self.mean(x)
        quadratic = (r.square() / self.psi).sum(-1) - torch.einsum("nl,lk,nk->n", m, self.A, m)
        constant = len(self.mu) * LOG_2PI + self.psi.log().sum() + torch.logdet(self.A)
        return -0.5 * (constant + quadratic)

    def kl(self) -> float:
        """KL(q || p(z|x)), the same for every x: the gap between ELBO and log p(x)."""
        S, d = self.guide_covariance, self.shift
        trace = torch.trace(self.A @ S) + d @ self.A @ d
        return float(0.5 * (trace - self.num_latents - torch.logdet(self.A @ S)))

    def khat(self) -> float:
        """Exact Pareto k = max(0, 1 - lambda_min(S^1/2 A S^1/2))."""
        root = torch.linalg.cholesky(self.guide_covariance)
        return max(0.0, 1 - float(torch.linalg.eigvalsh(root.T @ self.A @ root)[0]))

    def moment(self, n: int) -> float:
        """E_q[(p(z|x)/q)^n], infinite where the integral diverges.

        |V|^(-n/2) |S|^((n-1)/2) |M|^(-1/2), M = nA + (1-n) B, B = S^-1, for delta = 0; times
        exp(1/2 (1-n)^2 d'B M^-1 B d - 1/2 (1-n) d'B d).
        """
        S, d = self.guide_covariance, self.shift
        B = torch.linalg.inv(S)
        M = n * self.A + (1 - n) * B
        if float(torch.linalg.eigvalsh(M)[0]) <= 0:
            return math.inf
        log = n / 2 * torch.logdet(self.A) + (n - 1) / 2 * torch.logdet(S) - 0.5 * torch.logdet(M)
        Bd = B @ d
        log = log + 0.5 * (1 - n) ** 2 * Bd @ torch.linalg.solve(M, Bd) - 0.5 * (1 - n) * d @ Bd
        return float(log.exp())

    def ess_share(self) -> float:
        """Exact ESS/K = 1 / E_q[(p/q)^2]."""
        return 1 / self.moment(2)

    def chi_square(self) -> float:
        """chi^2(p(z|x) || q) = E_q[(p/q)^2] - 1."""
        return self.moment(2) - 1

    def sample(self, num_data: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.num_latents, generator=generator, dtype=torch.float64)
        noise = torch.randn(num_data, len(self.mu), generator=generator, dtype=torch.float64)
        return (z @ self.W.T + self.mu + noise * self.psi.sqrt()).to(self.dtype)

    # The same as Pyro programs ----------------------------------------------------------------

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype)

    def likelihood(self, z: Tensor):
        loc = z @ self.cast(self.W).T + self.cast(self.mu)
        return dist.Normal(loc, self.cast(self.psi.sqrt())).to_event(1)

    def prior(self):
        zero = torch.zeros(self.num_latents, dtype=self.dtype)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def q(self, x: Tensor):
        loc = self.cast(self.mean(x) + self.shift)
        tril = self.cast(torch.linalg.cholesky(self.guide_covariance))
        return dist.MultivariateNormal(loc, scale_tril=tril)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            self.calls.append(z.shape[:-1].numel())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


def linear_gaussian(
    D: int = 5,
    L: int = 2,
    *,
    seed: int = 0,
    stretch: float | None = None,
    delta: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> LinearGaussian:
    """A random pair. `stretch` is S = stretch * V, so that exact k = max(0, 1 - stretch)."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(D, L, generator=generator, dtype=torch.float64)
    mu = torch.randn(D, generator=generator, dtype=torch.float64)
    psi = 0.3 + torch.rand(D, generator=generator, dtype=torch.float64)
    exact = LinearGaussian(W, mu, psi)
    return LinearGaussian(
        W,
        mu,
        psi,
        S=None if stretch is None else stretch * exact.V,
        delta=delta * torch.linalg.cholesky(exact.V).sum(1) if delta else None,
        dtype=dtype,
    )


def mixture_log_px(
    x: Tensor,
    weights: Tensor,
    means: Tensor,
    covariances: Tensor,
    W: Tensor,
    mu: Tensor,
    psi: Tensor,
) -> Tensor:
    """log p(x) = log sum_c pi_c N(x; W m_c + mu, W S_c W' + Psi) for a mixture prior, `[N]`."""
    x, weights, means, covariances, W, mu, psi = (
        t.detach().double() for t in (x, weights, means, covariances, W, mu, psi)
    )
    loc = means @ W.T + mu  # [C, D]
    covariance = W @ covariances @ W.T + torch.diag(psi)
    each = torch.distributions.MultivariateNormal(loc, covariance).log_prob(x.unsqueeze(-2))
    return torch.logsumexp(each + weights.log(), -1)


def all_binary(num_pixels: int) -> Tensor:
    """Every x in {0, 1}^D, `[2^D, D]`."""
    numbers = torch.arange(2**num_pixels).unsqueeze(1)
    return (numbers >> torch.arange(num_pixels) & 1).float()

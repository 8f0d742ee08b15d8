"""Models whose log p(x), posterior and importance weights are known in closed form, in float64.

x = W z + mu + noise, noise ~ N(0, Psi), z ~ N(0, I), guide q(z|x) = N(m + delta, S), where N(m, V)
is the exact posterior. The formulas are stated at each function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
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


def tempered_log_z(pair: LinearGaussian, x: Tensor, beta: float) -> Tensor:
    """log int p(z) p(x|z)^beta dz of a linear model, `[N]`.

    -1/2 ln|A_b| - b/2 (D ln 2pi + ln|Psi|) - 1/2 (b r'Psi^-1 r - m_b' A_b m_b),
    A_b = I + b W'Psi^-1 W, m_b = b A_b^-1 W'Psi^-1 r.
    """
    r, eye = x.double() - pair.mu, torch.eye(pair.num_latents).double()
    A = eye + beta * pair.W.T @ (pair.W / pair.psi[:, None])
    pull = beta * (r / pair.psi) @ pair.W
    quadratic = beta * (r.square() / pair.psi).sum(-1)
    quadratic = quadratic - (pull * torch.linalg.solve(A, pull.T).T).sum(-1)
    constant = len(pair.mu) * LOG_2PI + pair.psi.log().sum()
    return -0.5 * (torch.logdet(A) + beta * constant + quadratic)


@dataclass(frozen=True)
class ExactPair:
    """A pair whose log p(x) is known, in float64.

    `sample(num_data, seed)` draws x from the model, `truth(x)` is log p(x) `[N]`.
    `refused`: estimators that it does not take.
    """

    model: Callable
    guide: Callable
    sample: Callable[[int, int], Tensor]
    truth: Callable[[Tensor], Tensor]
    refused: tuple[str, ...]


def drawn_from(model: Callable, shape: tuple[int, ...]) -> Callable[[int, int], Tensor]:
    """Draws of site 'x' by the model itself; data of one datum have this shape."""

    def sample(num_data: int, seed: int = 0) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            free = pyro.poutine.uncondition(model)
            trace = pyro.poutine.trace(free).get_trace(torch.zeros(num_data, *shape).double())
        return trace.nodes["x"]["value"].detach()

    return sample


def gaussian_guide(lean: Tensor, shift: Tensor, scale: float) -> Callable:
    """q(z|x) = N(x lean + shift, scale^2)."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ lean + shift, scale).to_event(1))

    return guide


def linear_pair() -> ExactPair:
    """Linear-Gaussian; the guide is mean-field, and beside the posterior."""
    pair = linear_gaussian(seed=1, L=2)
    S = torch.diag(1.3 / torch.diagonal(pair.A))
    pair = replace(pair, S=S, delta=0.5 * S.diagonal().sqrt())
    return ExactPair(pair.model, pair.guide, pair.sample, pair.log_px, ("enumerate",))


def mixture_pair() -> ExactPair:
    """A mixture prior of two Gaussians, seen through a matrix and noise."""
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=torch.float64)
    W = torch.tensor([[1.0, 0.4], [0.0, 1.0], [0.5, -0.5]], dtype=torch.float64)
    mu, psi = torch.tensor([0.2, 0.0, -0.3]).double(), torch.tensor([0.8, 0.5, 1.0]).double()
    spread = 0.6

    def model(x):
        parts = torch.distributions.Normal(means, spread)
        prior = dist.MixtureSameFamily(
            dist.Categorical(weights), torch.distributions.Independent(parts, 1)
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ W.T + mu, psi.sqrt()).to_event(1), obs=x)

    def truth(x):
        covariances = (spread**2 * torch.eye(2).double()).expand(2, 2, 2)
        return mixture_log_px(x, weights, means, covariances, W, mu, psi)

    guide = gaussian_guide(0.5 * W, torch.zeros(2).double(), 1.0)
    return ExactPair(model, guide, drawn_from(model, (3,)), truth, ("enumerate",))


def nonlinear_pair() -> ExactPair:
    """Two latents through sines and products; log p(x) by sums on a grid of the prior's own."""
    noise = 0.7

    def decoder(z):
        a, b = z.unbind(-1)
        return torch.stack([a.sin() + b, a * b, (b + 0.5 * a.square()).cos(), a - b.tanh()], -1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def truth(x):
        nodes, weights = np.polynomial.legendre.leggauss(200)
        side, weight = (torch.as_tensor(a) for a in (8.5 * nodes, 8.5 * weights))
        z = torch.cartesian_prod(side, side)
        log_weight = torch.cartesian_prod(weight.log(), weight.log()).sum(-1)
        mean = decoder(z)
        constant = LOG_2PI + mean.shape[1] * (0.5 * LOG_2PI + math.log(noise))
        log_f = log_weight - 0.5 * z.square().sum(-1) - constant
        log_f = log_f - 0.5 * mean.square().sum(-1) / noise**2
        return torch.cat([
            (log_f + rows @ mean.T / noise**2).logsumexp(1) - 0.5 * rows.square().sum(1) / noise**2
            for rows in x.double().split(50)
        ])  # fmt: skip

    lean = torch.zeros(4, 2).double()
    lean[3, 0], lean[0, 1] = 0.4, 0.4
    guide = gaussian_guide(lean, torch.zeros(2).double(), 0.9)
    return ExactPair(model, guide, drawn_from(model, (4,)), truth, ("enumerate",))


LOGITS = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
TABLE = torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ODDS = torch.tensor([0.2, 0.6], dtype=torch.float64)


def discrete_pair() -> ExactPair:
    """A categorical and two binary latents, four binary pixels; log p(x) by a sum over 12."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOGITS))
            b = pyro.sample("b", dist.Bernoulli(ODDS).to_event(1))
            first, second = b.long().unbind(-1)
            pixels = dist.Bernoulli(logits=TABLE[a, first, second]).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Categorical(logits=torch.zeros(len(x), 3).double()))
            pyro.sample("b", dist.Bernoulli(0.5 * torch.ones(len(x), 2).double()).to_event(1))

    def truth(x):
        total = []
        for a, b, c in itertools.product(range(3), (0, 1), (0, 1)):
            log_p = LOGITS.log_softmax(0)[a]
            for value, p in zip((b, c), ODDS.tolist(), strict=True):
                log_p = log_p + math.log(p if value else 1 - p)
            logits = TABLE[a, b, c]
            total.append(log_p + (x * logits - torch.nn.functional.softplus(logits)).sum(-1))
        return torch.stack(total).logsumexp(0)

    refused = ("importance widened", "ais", "smc", "sandwich", "quadrature")
    return ExactPair(model, guide, drawn_from(model, (4,)), truth, refused)


def hierarchy_pair(width: int = 2) -> ExactPair:
    """z2 -> z1 -> x, both local: z2 ~ N(0, 1), z1 ~ N(B z2, 0.5), x ~ N(W z1, psi).

    The guide goes the other way, z1 by x and z2 by z1. log p(x) = N(0, W (B B' + 0.5 I) W' + psi).
    """
    generator = torch.Generator().manual_seed(4)
    B = torch.randn(width, 1, generator=generator, dtype=torch.float64)
    W = torch.randn(3, width, generator=generator, dtype=torch.float64)
    psi = torch.tensor([0.5, 0.8, 0.6], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2 @ B.T, 0.5**0.5).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ W.T, psi.sqrt()).to_event(1), obs=x)

    top = B @ B.T + 0.5 * torch.eye(width).double()
    total = W @ top @ W.T + torch.diag(psi)
    lean = top @ W.T @ torch.linalg.inv(total)  # E[z1 | x]
    scale = (1.3 * (top - lean @ W @ top).diagonal()).sqrt()
    up = B.T @ torch.linalg.inv(top)  # E[z2 | z1]

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x @ lean.T + 0.1, scale).to_event(1))
            pyro.sample("z2", dist.Normal(z1 @ up.T, 0.9).to_event(1))

    def truth(x):
        zero = torch.zeros(3).double()
        return torch.distributions.MultivariateNormal(zero, total).log_prob(x.double())

    refused = ("enumerate", "quadrature") if width > 1 else ("enumerate",)
    return ExactPair(model, guide, drawn_from(model, (3,)), truth, refused)


EXACT_PAIRS = {
    "linear": linear_pair(),
    "mixture prior": mixture_pair(),
    "nonlinear": nonlinear_pair(),
    "discrete": discrete_pair(),
    "hierarchy": hierarchy_pair(),
    "hierarchy of two numbers": hierarchy_pair(1),
}

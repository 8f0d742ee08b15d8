"""Small Pyro pairs that are not ours, for the tests of training."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import nn

import inference


def fit(model, guide, data, **settings):
    """`inference.fit` in silence, small by default."""
    return inference.fit(
        model, guide, data, **{"epochs": 3, "batch_size": 10, "progress": False, **settings}
    )


def line_data(num=40, seed=0):
    """y = 2 x + z + noise of sd 0.5, z ~ N(0, 1): so y|x ~ N(2 x, 1.25)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, generator=generator)
    y = 2 * x + 1.25**0.5 * torch.randn(num, generator=generator)
    return x, y


def line_model(x, y):
    """A local-latent regression: z_n ~ N(0, 1), y_n ~ N(slope x_n + z_n, noise)."""
    slope = pyro.param("slope", torch.tensor(0.0))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x + z, noise), obs=y)


def line_guide(x, y):
    gain = pyro.param("gain", torch.tensor(0.0))
    lean = pyro.param("lean", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(gain * y + lean * x, scale))


def subsampled(size, *, twice=False):
    """The line pair whose plate takes `size` of all data itself; `twice` scaled is wrong."""
    scale = 2.0 if twice else 1.0

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with (
            pyro.plate("data", len(x), subsample_size=size) as rows,
            pyro.poutine.scale(scale=scale),
        ):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * x[rows] + z, noise), obs=y[rows])

    def guide(x, y):
        gain = pyro.param("gain", torch.tensor(0.0))
        lean = pyro.param("lean", torch.tensor(0.0))
        scale_q = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with (
            pyro.plate("data", len(x), subsample_size=size) as rows,
            pyro.poutine.scale(scale=scale),
        ):
            pyro.sample("z", dist.Normal(gain * y[rows] + lean * x[rows], scale_q))

    return model, guide


def prescaled(num_data):
    """The line pair whose plate declares `num_data` and scales the batch that it is handed."""

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", num_data, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * x + z, noise), obs=y)

    def guide(x, y):
        gain = pyro.param("gain", torch.tensor(0.0))
        lean = pyro.param("lean", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", num_data, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(gain * y + lean * x, scale))

    return model, guide


def global_model(x, y):
    """Bayesian regression: the slope is a latent outside the plate."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def global_guide(x, y):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


def global_elbo(x, y, loc, scale, noise):
    """The ELBO of the global pair on all data, in closed form, in nats."""
    x, y = x.double(), y.double()
    expected = dist.Normal(loc * x, noise).log_prob(y).sum() - (
        0.5 * (scale * x / noise).square().sum()
    )
    kl = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0))
    return float(expected - kl)


class Tutorial(nn.Module):
    """A VAE by hand with `pyro.module`, in the style of Pyro's tutorial."""

    def __init__(self, num_pixels=6, num_latents=2, hidden=8, batch_norm=False):
        super().__init__()
        norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels, hidden), *norm, nn.Softplus(), nn.Linear(hidden, 2 * num_latents)
        )
        self.decoder = nn.Sequential(
            nn.Linear(num_latents, hidden), nn.Softplus(), nn.Linear(hidden, num_pixels)
        )
        self.num_latents = num_latents

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros(x.shape[0], self.num_latents)
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, raw.exp()).to_event(1))


class LineModule(PyroModule):
    """The line model as a PyroModule with PyroParams."""

    def __init__(self):
        super().__init__()
        self.slope = PyroParam(torch.tensor(0.0))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(self.slope * x + z, self.noise), obs=y)


class LineGuide(PyroModule):
    """Its guide: a PyroModule linear layer for the mean and a PyroParam scale."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            loc = self.linear(torch.stack([x, y], -1)).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, self.scale))


def patterns(num=64, num_pixels=6, seed=1):
    """Binary data of two noisy clusters."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(2, (num, 1), generator=generator)
    ideal = (torch.arange(num_pixels) % 2 == which).float()
    flips = (torch.rand(num, num_pixels, generator=generator) < 0.1).float()
    return (ideal - flips).abs()

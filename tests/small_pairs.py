"""Small Pyro pairs that are not ours, for the tests of training."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
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


# One of each kind ------------------------------------------------------------------------------


class Weighted(PyroModule):
    """Regression whose layer's weights are latents (PyroSample), drawn outside the plate."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y):
        mean = self.layer(x[:, None]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def adjusted_model(x, y):
    """Scaled, masked and with a factor, as users do these things."""
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.poutine.mask(mask=x > 0):
            pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)
        pyro.factor("ridge", -0.1 * slope**2 * torch.ones(len(x)))


def nested_model(x):
    """Several views of each datum, in a plate inside; a plate of one; an empty note."""
    loc = pyro.param("loc", torch.tensor(0.1))
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("one", 1, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("note", z + loc)
        with pyro.plate("views", x.shape[1], dim=-1):
            w = pyro.sample("w", dist.Normal(z, 1.0))
            return pyro.sample("x", dist.Normal(w + loc, 0.5), obs=x)


def nested_guide(x):
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    lean = pyro.param("lean", torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("one", 1, dim=-1):
            pyro.sample("z", dist.Normal(lean * x.mean(-1, keepdim=True), scale))
        with pyro.plate("views", x.shape[1], dim=-1):
            pyro.sample("w", dist.Normal(lean * x, scale))


def two_level_params():
    """A hierarchy whose guide draws its levels in the other order; with data."""

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(top, 1.0))
            pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)

    def guide(x, y):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        lean = pyro.param("lean", torch.tensor([0.3, 0.2]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(lean[0] * y, scale))
            pyro.sample("top", dist.Normal(lean[1] * z, scale))

    return model, guide, line_data(6)


class Labelled(nn.Module):
    """Whole numbers among the data: labels that are predicted from latents and seen by networks."""

    def __init__(self):
        super().__init__()
        self.names = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3)
        self.body = nn.Linear(3, 2)

    def model(self, x, y):
        pyro.module("labelled", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=self.head(z)), obs=y)
            return pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(self, x, y):
        pyro.module("labelled", self)
        with pyro.plate("data", len(x)):
            loc = self.body(torch.cat([x[:, None], self.names(y)], -1))
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))


def regression_model(x, y):
    """No latents at all: maximum likelihood."""
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def empty_guide(x, y):
    pass


def auxiliary_model(x, y):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)


def auxiliary_guide(x, y):
    """A draw of the guide's own, of which z is a function; and a factor."""
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        raw = pyro.sample("raw", dist.Normal(gain * y, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(raw.tanh(), log_density=-torch.log1p(-(raw.tanh() ** 2))))
        pyro.factor("push", 0.1 * raw, has_rsample=True)


def chain_model(x):
    """A random walk: all data are one (plate=None)."""
    step = pyro.param("step", torch.tensor(0.5), constraint=constraints.positive)
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), step).to_event(1))
    pyro.sample("x", dist.Normal(z.cumsum(-1), 1.0).to_event(1), obs=x)


def chain_guide(x):
    lean = pyro.param("lean", torch.tensor(0.2))
    shape = pyro.param("shape", torch.tensor(2.0), constraint=constraints.greater_than(1.0))
    pyro.sample("z", dist.StudentT(shape, lean * x, torch.ones(len(x))).to_event(1))


def gamma_model(x, y):
    """Latents that are positive, or in a simplex: draws by implicit gradients."""
    rate = pyro.param("rate", torch.tensor(1.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        speed = pyro.sample("speed", dist.Gamma(2.0, rate))
        pyro.sample("y", dist.Normal(speed * shares[..., 0], 1.0), obs=y)


def gamma_guide(x, y):
    alpha = pyro.param("alpha", torch.ones(3), constraint=constraints.positive)
    shape = pyro.param("shape", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("shares", dist.Dirichlet(alpha))
        pyro.sample("speed", dist.Gamma(shape, 1 + y.abs()))


def closed_over():
    """Functions that close over networks, one with dropout."""
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.2))
    encoder = nn.Linear(6, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide


def views(num=40):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(0))


def labelled_data():
    x, y = line_data()
    return x, (y > 0).long() + (y > 1).long()


def methods(vae):
    return vae.model, vae.guide


# name: a pair anew and its data, whatever `fit` takes.
PAIRS = {
    "plain params": lambda: ((line_model, line_guide), line_data()),
    "pyro modules": lambda: ((LineModule(), LineGuide()), line_data()),
    "pyro.module": lambda: (methods(Tutorial()), patterns()),
    "closures": lambda: (closed_over(), patterns()),
    "PyroSample": lambda: _automatic(Weighted(), AutoNormal),
    "global": lambda: ((global_model, global_guide), line_data()),
    "AutoDelta": lambda: _automatic(global_model, AutoDelta),
    "subsampling": lambda: (subsampled(10), line_data()),
    "prescaled": lambda: (prescaled(40), line_data()),
    "scale and mask": lambda: ((adjusted_model, line_guide), line_data()),
    "nested plates": lambda: ((nested_model, nested_guide), views()),
    "labels": lambda: (methods(Labelled()), labelled_data()),
    "no latents": lambda: ((regression_model, empty_guide), line_data()),
    "auxiliary": lambda: ((auxiliary_model, auxiliary_guide), line_data()),
    "joint": lambda: ((chain_model, chain_guide), line_data()[1].cumsum(0)),
    "implicit": lambda: ((gamma_model, gamma_guide), line_data()),
}


def plate_of(name):
    return None if name == "joint" else "data"


def _automatic(model, guide):
    return (model, guide(model)), line_data()

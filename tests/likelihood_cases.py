"""Every likelihood with its variants, the values it scores, and how it is built."""

import math

import torch

import pyro_vae as pv
from pyro_vae.part import Shapes

# One value: a grid or list of values, and the weight of each. x = sin^2 a makes what is large at
# the ends of the unit interval smooth.
ANGLE = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * math.pi / 2
LINE = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
COUNTS = torch.arange(4000, dtype=torch.float64)


def listed(values):
    return values, torch.ones_like(values)


def levels(count, top=1.0):
    return listed(torch.arange(count, dtype=torch.float64) / (count - 1) * top)


UNIT = ANGLE.sin().square(), (2 * ANGLE).sin() * math.pi / 2 / len(ANGLE)
REAL = LINE, torch.full_like(LINE, float(LINE[1] - LINE[0]))
SUMS = {
    "bernoulli": levels(2),
    "continuous_bernoulli": UNIT,
    "beta": UNIT,
    "logit_normal": UNIT,
    "poisson": listed(COUNTS),
    "negative_binomial": listed(COUNTS),
    "zero_inflated": listed(COUNTS),
    "categorical": levels(256),
    "categories": levels(5, 4),
    "discretized_logistic": levels(256),
    "gaussian": REAL,
    "gaussian_covariance": REAL,
    "laplace": REAL,
    "student_t": REAL,
}
FIELDS = {"categories": {"levels": 5}}
VARIANTS = [
    *((name, FIELDS.get(name, {})) for name in SUMS),
    ("discretized_logistic", {"components": 3}),
    ("zero_inflated", {"counts": "negative_binomial"}),
    ("gaussian", {"sigma": "predicted"}),
    ("gaussian", {"sigma": "optimal"}),
    ("laplace", {"sigma": "per_pixel"}),
    ("laplace", {"sigma": "predicted"}),
    ("student_t", {"degrees": 4.0, "learn_degrees": True}),
    ("gaussian_covariance", {"rank": "full"}),
    ("gaussian_covariance", {"rank": 2, "covariance": "predicted"}),
    ("gaussian_covariance", {"rank": "full", "covariance": "predicted"}),
]
PARTS = [
    {"likelihood": {"name": "gaussian", "sigma": "predicted"}, "columns": 2},
    {"likelihood": "bernoulli"},
    {"likelihood": {"name": "categories", "levels": 3}},
    {"likelihood": "poisson"},
]
ROW = torch.tensor([0.3, -1.2, 1.0, 2.0, 4.0], dtype=torch.float64)  # what those parts score
WHOLE = [("multinomial", {}), ("mixed", {"parts": PARTS})]


def built(name, fields, data=(1,), dtype=torch.float64):
    """A likelihood and its module, in evaluation mode, with learned numbers away from 0."""
    torch.manual_seed(0)
    spec = pv.Likelihood.resolve({"name": name, **fields})
    module = spec.build(Shapes(data=data, latent=(2,))).to(dtype).eval()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return spec, module


def outputs_of(spec, data, *leading, scale=0.7, dtype=torch.float64):
    return scale * torch.randn(*leading, *spec.param_shape(data), dtype=dtype)


def some_data(name, shape, dtype=torch.float64):
    """Values `[*shape]` that the likelihood scores, among them the ends of its support."""
    if name == "mixed":
        return ROW.to(dtype).expand(*shape[:-1], 5)
    values = SUMS["poisson" if name == "multinomial" else name][0]
    if len(values) == len(COUNTS):
        values = values[:30]
    if len(values) == len(LINE):
        values = values[395_000:405_000]
    drawn = values[torch.randint(len(values), shape)]
    drawn.flatten()[0] = values[0]
    return drawn.to(dtype)


COVARIANCES = [(rank, kind) for rank in (2, "full") for kind in ("learned", "predicted")]


def covariance_of(p):
    """By the definition, `[..., D, D]`."""
    one = torch.eye(p.loc.shape[-1], dtype=p.loc.dtype)
    inner = (one + p.factor) @ (one + p.factor).mT if p.full else one + p.factor @ p.factor.mT
    scale = p.log_scale.exp()
    return scale.unsqueeze(-1) * inner * scale.unsqueeze(-2)

"""Pairs small enough to know their objectives' gradients exactly, and the gradients.

All latents are single numbers; every datum is the same x, so that rows are independent estimates.
Expectations over Gaussian noise are Gauss-Hermite sums, over discrete latents enumerations.
"""

import math
from itertools import combinations_with_replacement

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import Bernoulli, Normal

import inference
from inference.isolation import own_store, validation
from inference.pair import examine
from inference.tracing import evaluate_loss

X = 0.9
START = {
    "one": {"w": 1.1, "b": 0.2, "m": 0.3, "c": 0.1, "s": -0.4},
    "two": {"w": 1.1, "u": 0.7, "m": 0.4, "s": -0.5, "a": 0.5, "c": 0.1, "t": -0.2},
    "vamp": {"w": 1.1, "b": 0.2, "m": 0.3, "c": 0.1, "s": -0.4, "u": [-1.0, 1.4]},
    "auxiliary": {
        **{"w": 1.1, "b": 0.2, "m": 0.4, "c": 0.1, "s": -0.5, "a": 0.6, "t": -0.4},
        **{"h": 0.5, "r": -0.1},
    },
    "coin": {"w": 1.3, "b": 0.4, "m": 0.5, "c": -0.6},
    "coins": {"w": 1.3, "b": 0.4, "u": 0.8, "m": 0.5, "c": -0.6, "a": 0.9},
}
GUIDE = {"m", "c", "s", "a", "t"}  # of q alone


def start(kind):
    """Leaf tensors, float64."""
    found = {n: torch.tensor(v, dtype=torch.float64) for n, v in START[kind].items()}
    return {name: value.requires_grad_() for name, value in found.items()}


# What Pyro runs ----------------------------------------------------------------------------------


def programs(kind, values=None):
    """Model and guide."""
    values = values or START[kind]

    def at(name):
        return pyro.param(name, torch.tensor(values[name], dtype=torch.float64))

    def model(x):
        with pyro.plate("data", len(x)):
            if kind == "two":
                z2 = pyro.sample("z2", dist.Normal(0.0 * x, 1.0))
                z = pyro.sample("z1", dist.Normal(at("u") * z2, 0.8))
                loc = at("w") * z
            elif kind == "coins":
                z2 = pyro.sample("z2", dist.Bernoulli(logits=at("b") + 0 * x))
                z = pyro.sample("z1", dist.Bernoulli(logits=at("u") * (2 * z2 - 1)))
                loc = at("w") * z
            else:
                loc = at("w") * pyro.sample("z", prior(x)) + (0 if kind == "coin" else at("b"))
            pyro.sample("x", dist.Normal(loc, 0.7), obs=x)

    def prior(x):
        if kind in ("one", "auxiliary"):
            return dist.Normal(0.0 * x, 1.0)
        if kind == "coin":
            return dist.Bernoulli(logits=at("b") + 0 * x)
        parts = dist.Normal(at("m") * at("u") + at("c"), at("s").exp() + torch.zeros(2))
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), parts)

    def guide(x):
        with pyro.plate("data", len(x)):
            if kind == "two":
                z1 = pyro.sample("z1", dist.Normal(at("m") * x, at("s").exp()))
                pyro.sample("z2", dist.Normal(at("a") * z1 + at("c"), at("t").exp()))
            elif kind == "auxiliary":
                q = dist.Normal(at("m") * x + at("c"), at("s").exp())
                a = pyro.sample("extra", q, infer={"is_auxiliary": True})
                z = pyro.sample("z", dist.Normal(at("a") * a, at("t").exp()))
                # log w holds + log r(a|z), the reverse model: no score, but a term to be climbed.
                reverse = dist.Normal(at("h") * z, at("r").exp()).log_prob(a)
                pyro.factor("reverse", -reverse, has_rsample=True)
            elif kind == "coins":
                z1 = pyro.sample("z1", dist.Bernoulli(logits=at("m") * x + at("c")))
                pyro.sample("z2", dist.Bernoulli(logits=at("a") * (2 * z1 - 1)))
            elif kind == "coin":
                pyro.sample("z", dist.Bernoulli(logits=at("m") * x + at("c")))
            else:
                pyro.sample("z", dist.Normal(at("m") * x + at("c"), at("s").exp()))

    return model, guide


def estimates(kind, objective, *, rows=2000, repeats=40, seed=0, vectorize=True, values=None):
    """Gradients of the objective: name -> [repeats, ...], each the mean over `rows` estimates."""
    x = torch.full((rows,), X, dtype=torch.float64)
    torch.manual_seed(seed)
    with own_store():
        pair = examine(*programs(kind, values), (x,), "data")
        params = dict(pyro.get_param_store()._params)
        found = {name: [] for name in params}
        for _ in range(repeats):
            with validation(False):
                loss, _ = evaluate_loss(pair, objective, (x,), 1.0, rows, vectorize=vectorize)
            grads = torch.autograd.grad(-loss, list(params.values()))
            for name, grad in zip(params, grads, strict=True):
                found[name].append(grad)
    return {name: torch.stack(grads) for name, grads in found.items()}


def errors(found, exact):
    """How many standard errors each parameter's mean is off; name -> the largest."""
    off = {}
    for name, grads in found.items():
        error = grads.std(0) / math.sqrt(len(grads))
        off[name] = float(((grads.mean(0) - exact[name]).abs() / error).max())
    return off


# What is exact -----------------------------------------------------------------------------------


def log_w(kind, p, eps, x=X, *, fixed=False):
    """log p(x, z) and log q(z|x) of draws made from noise eps [levels, ...]."""

    def drawn(loc, scale, noise):
        z = loc + scale * noise
        return z.detach() if fixed else z

    if kind == "two":
        first = Normal(p["m"] * x, p["s"].exp())
        z1 = drawn(first.mean, first.stddev, eps[0])
        second = Normal(p["a"] * z1 + p["c"], p["t"].exp())
        z2 = drawn(second.mean, second.stddev, eps[1])
        log_q = first.log_prob(z1) + second.log_prob(z2)
        log_p = Normal(0.0, 1.0).log_prob(z2) + Normal(p["u"] * z2, 0.8).log_prob(z1)
        return log_p + Normal(p["w"] * z1, 0.7).log_prob(torch.tensor(x)), log_q
    q = Normal(p["m"] * x + p["c"], p["s"].exp())
    z = drawn(q.mean, q.stddev, eps[0])
    log_q = q.log_prob(z)
    if kind == "auxiliary":
        a, q = z, Normal(p["a"] * z, p["t"].exp())
        z = drawn(q.mean, q.stddev, eps[1])
        log_q = log_q + q.log_prob(z)
        prior = Normal(0.0, 1.0).log_prob(z) + Normal(p["h"] * z, p["r"].exp()).log_prob(a)
    elif kind == "one":
        prior = Normal(0.0, 1.0).log_prob(z)
    else:
        parts = [Normal(p["m"] * u + p["c"], p["s"].exp()).log_prob(z) for u in p["u"]]
        prior = torch.stack(parts).logsumexp(0) - math.log(2)
    likelihood = Normal(p["w"] * z + p["b"], 0.7).log_prob(torch.tensor(x, dtype=torch.float64))
    return prior + likelihood, log_q


def noise(levels, particles, nodes):
    """Gauss-Hermite nodes [levels, particles, points] of standard normal noise, and weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    count = levels * particles
    axes = torch.meshgrid(*[torch.tensor(points)] * count, indexing="ij")
    weight = torch.ones(())
    for axis in torch.meshgrid(*[torch.tensor(weights / weights.sum())] * count, indexing="ij"):
        weight = weight * axis
    return torch.stack(axes).reshape(levels, particles, -1), weight.reshape(-1)


def exact_gradients(kind, value, particles=2, nodes=None, *, fixed=False):
    """d/dparameters of E value(log p, log q), those [particles, points], by quadrature."""
    levels = 2 if kind in ("two", "auxiliary") else 1
    eps, weight = noise(levels, particles, nodes or (16 if levels * particles > 2 else 60))
    p = start(kind)
    total = (weight * value(*log_w(kind, p, eps, fixed=fixed))).sum()
    return dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))


def coin_tuples(kind, p, particles):
    """log p, log q [particles, tuples] of all draws of K coins, and their log-probabilities.

    Draws of a tuple may come in any order: one tuple stands for all its orders.
    """
    x = torch.tensor(X, dtype=torch.float64)
    if kind == "coin":
        z = torch.tensor([0.0, 1.0], dtype=torch.float64)
        q = Bernoulli(logits=p["m"] * x + p["c"]).log_prob(z)
        prior = Bernoulli(logits=p["b"]).log_prob(z)
    else:
        z, z2 = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]], dtype=torch.float64)
        q = Bernoulli(logits=p["m"] * x + p["c"]).log_prob(z)
        q = q + Bernoulli(logits=p["a"] * (2 * z - 1)).log_prob(z2)
        prior = Bernoulli(logits=p["b"]).log_prob(z2)
        prior = prior + Bernoulli(logits=p["u"] * (2 * z2 - 1)).log_prob(z)
    log_p = prior + Normal(p["w"] * z, 0.7).log_prob(x)
    tuples = torch.tensor(list(combinations_with_replacement(range(len(z)), particles)))
    counts = torch.stack([(tuples == value).sum(1) for value in range(len(z))], 1).double()
    orders = math.lgamma(particles + 1) - torch.lgamma(counts + 1).sum(1)
    return log_p[tuples].T, q[tuples].T, orders + q[tuples].sum(1).detach()


def coin_gradients(kind, value, particles):
    """d/dparameters of value(log p, log q), averaged over all draws of K coins, draws fixed."""
    p = start(kind)
    log_p, log_q, log_weight = coin_tuples(kind, p, particles)
    total = (log_weight.exp() * value(log_p, log_q)).sum()
    return dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))


def bound(objective):
    """The name and settings of an objective as the function whose mean has its gradient."""
    if isinstance(objective, inference.Renyi):
        power = 1 - objective.alpha
        return lambda p, q: (power * (p - q)).exp().mean(0).log() / power
    if isinstance(objective, inference.IWAE | inference.DReG):
        return lambda p, q: (p - q).exp().mean(0).log()
    return lambda p, q: (p - q).mean(0)

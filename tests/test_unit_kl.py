"""KL per latent dimension against closed forms and quadrature, and which units collapsed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import inference
import pyro_vae as pv
from inference.diagnostics.unit_kl import COLLAPSED, KINDS
from pyro_vae.app.pictures.usage import draw_unit_kl
from pyro_vae.errors import RequestError
from tests.exact_models import agrees


def pair_of(q, p):
    """`q(x)` and `p` with event shape `[D]`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return model, guide


GAINS = torch.tensor([1.2, 0.5, 0.0]).double()
SCALES = torch.tensor([0.4, 0.9, 1.0]).double()
STANDARD = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)


def mean_field(x):
    return dist.Normal(GAINS * x, SCALES).to_event(1)


def full_rank(x):
    tril = torch.tensor([[0.5, 0, 0], [0.3, 0.4, 0], [-0.2, 0.1, 0.8]]).double()
    return dist.MultivariateNormal(GAINS * x, scale_tril=tril)


def data(num=40, size=1, seed=0):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed)).double()


def unit_kl(pair, x, **options):
    return inference.unit_kl(*pair, x, progress=False, **options)


def gaussian_kl(x, scales):
    return 0.5 * ((GAINS * x).square() + scales**2 - 1) - scales.log()


def test_closed_form():
    x = data()
    found = unit_kl(pair_of(mean_field, STANDARD), x, num_samples=1)
    exact = gaussian_kl(x, SCALES)
    assert torch.allclose(found.per_datum, exact, atol=1e-12)
    assert torch.allclose(found.kl, exact.mean(0))
    assert torch.allclose(found.std_error, exact.std(0) / math.sqrt(40))
    assert found.mc_std_error.tolist() == [0, 0, 0]
    assert found.kinds == {"z": "analytic"}
    assert found.total == pytest.approx(float(exact.sum(-1).mean()))
    assert found.collapsed.tolist() == [False, False, True]
    assert found.units == ("z[0]", "z[1]", "z[2]")
    assert found.num_unsure == 0
    assert "1 of 3 units lie below 0.005 nats" in str(found)
    kl = inference.bound(*pair_of(mean_field, STANDARD), x, num_samples=1).kl["z"]
    assert found.total == pytest.approx(kl, abs=1e-6)
    assert found.summary()["num_collapsed"] == 1
    assert found.arrays()["per_datum"].shape == (40, 3)


def test_by_draws_where_no_closed_form_is_known():
    prior = dist.StudentT(torch.tensor(3.0).double(), torch.zeros(3).double(), 1.0).to_event(1)
    x = data(30)
    found = unit_kl(pair_of(mean_field, prior), x, num_samples=400)
    line = torch.linspace(-12, 12, 4001).double()
    q = dist.Normal((GAINS * x).unsqueeze(-1), SCALES[:, None])
    p = dist.StudentT(torch.tensor(3.0).double(), 0.0, 1.0)
    log_q = q.log_prob(line)
    exact = (log_q.exp() * (log_q - p.log_prob(line))).sum(-1).mean(0) * float(line[1] - line[0])
    assert found.kinds == {"z": "monte_carlo"}
    assert agrees(found.kl, exact, found.mc_std_error, ceiling=0.02)
    assert found.total == pytest.approx(float(found.kl.sum()))
    assert unit_kl(pair_of(mean_field, prior), x, num_samples=1).mc_std_error.isnan().all()


def test_marginals_of_a_full_rank_guide():
    """What they leave out is the dependence between units: log prod s_i - log |T|, nats."""
    x, q = data(), full_rank(torch.zeros(1, 1).double())
    found = unit_kl(pair_of(full_rank, STANDARD), x, num_samples=300)
    scales = q.variance[0].sqrt()
    assert torch.allclose(found.per_datum, gaussian_kl(x, scales), atol=1e-12)
    assert found.kinds == {"z": "marginal"}
    dependence = float(scales.log().sum() - q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum())
    assert dependence > 0.1
    kl = inference.kl.analytic_kl(full_rank(x), STANDARD.expand([40])).mean()
    assert float(found.kl.sum()) + dependence == pytest.approx(float(kl))
    assert found.total == pytest.approx(float(kl), abs=0.1)


def mixture(size):
    parts = dist.Normal(torch.tensor([[-1.0] * size, [1.0] * size]).double(), 0.7).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2).double()), parts)


@pytest.mark.parametrize("guide", [mean_field, full_rank])
def test_information_where_the_prior_does_not_factorize(guide):
    """Against the aggregate posterior of all data; that of a part of them is another number."""
    x = data(12)
    found = unit_kl(pair_of(guide, mixture(3)), x, num_samples=2000)
    scales = guide(torch.zeros(1, 1).double()).variance[0].sqrt()
    line = torch.linspace(-9, 9, 4001).double()

    def information(x):
        log_q = dist.Normal((GAINS * x).unsqueeze(-1), scales[:, None]).log_prob(line)
        log_mean = log_q.logsumexp(0) - math.log(len(x))
        return (log_q.exp() * (log_q - log_mean)).sum(-1).mean(0) * float(line[1] - line[0])

    assert found.kinds == {"z": "information"}
    assert agrees(found.kl, information(x), found.mc_std_error + 1e-9, ceiling=0.02)
    part = 0.5 * (information(x[:6]) + information(x[6:]))
    assert not agrees(found.kl, part, found.mc_std_error + 1e-9)
    assert found.collapsed.tolist() == [False, False, True]


def vae_of(**options):
    torch.manual_seed(0)
    small = {"name": "mlp", "hidden": (16,)}
    x = (torch.rand(60, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    vae = pv.VAE(data_shape=(6,), encoder=small, decoder=small, **{"latent_dim": 3, **options})
    return vae.initialize(x), x


def test_unknown_marginals_have_a_site_kl_alone(tmp_path):
    vae, x = vae_of(guide="iaf")
    found = unit_kl((vae.model, vae.guide), x, num_samples=100)
    assert found.kinds == {"z": "unknown"}
    assert found.kl.isnan().all()
    assert not found.all_collapsed
    assert found.num_collapsed == 0
    bound = inference.bound(vae.model, vae.guide, x, num_samples=100, seed=1)
    assert found.total == pytest.approx(bound.kl["z"], abs=0.15)
    assert "use active_units" in str(found)
    with pytest.raises(RequestError, match="no unit's KL is known"):
        draw_unit_kl(found, tmp_path / "a.png")


# Collapse --------------------------------------------------------------------------------------


def test_the_line_is_that_of_active_units():
    """A calibrated Gaussian unit of activity a has KL -1/2 log(1 - a): both lines at a = 0.01."""
    assert pytest.approx(-0.5 * math.log(1 - 0.01), abs=3e-5) == COLLAPSED
    activity = torch.tensor([0.5, 0.02, 0.013, 0.007, 0.0]).double()

    def q(x):
        return dist.Normal(activity.sqrt() * x, (1 - activity).sqrt()).to_event(1)

    x = data(20_000, 5)
    x = (x - x.mean(0)) / x.std(0)
    pair = pair_of(q, dist.Normal(torch.zeros(5).double(), 1.0).to_event(1))
    found = unit_kl(pair, x, num_samples=1)
    active = inference.active_units(*pair, x, num_samples=60).activity > 0.01
    assert (~found.collapsed).tolist() == active.tolist() == [True, True, True, False, False]
    assert (found.kl > 0.01).tolist() != active.tolist()  # another line in use, and not this one


def test_all_collapsed_is_said(tmp_path):
    pair = pair_of(lambda x: dist.Normal(0 * GAINS * x, 1.0).to_event(1), STANDARD)
    found = unit_kl(pair, data())
    assert found.all_collapsed
    assert "Posterior collapse" in str(found)
    draw_unit_kl(found, tmp_path / "a.png")
    found = unit_kl(pair_of(mean_field, STANDARD), data())
    assert not found.all_collapsed
    assert "Posterior collapse" not in str(found)


def test_a_costly_unit_that_ignores_x_is_neither_collapsed_nor_active():
    def q(x):
        return dist.Normal(torch.ones(3).double() + 0 * x, 0.5).to_event(1)

    pair, x = pair_of(q, STANDARD), data(200)
    assert unit_kl(pair, x).num_collapsed == 0
    assert inference.active_units(*pair, x).count == 0


# Several sites ---------------------------------------------------------------------------------


def chain(order):
    """p(a) p(b|a); a guide that draws in the model's order, or against it."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
            b = pyro.sample("b", dist.Normal(0.5 * a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[..., 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            if order == "ab":
                a = pyro.sample("a", dist.Normal(0.6 * x[:, 0], 0.5))
                pyro.sample("b", dist.Normal(0.8 * a, 0.7))
            else:
                b = pyro.sample("b", dist.Normal(0.6 * x[:, 0], 0.5))
                pyro.sample("a", dist.Normal(0.8 * b, 0.7))

    return model, guide


def test_terms_of_a_hierarchy():
    x = data(50)
    found = unit_kl(chain("ab"), x, num_samples=500)
    # a: closed form. b: KL given a, where E_q[(.8 a - .5 a)^2] = .09 (.36 x^2 + .25).
    square = x[:, 0].square()
    a = 0.5 * (0.36 * square + 0.25 - 1) - math.log(0.5)
    b = 0.5 * (0.09 * (0.36 * square + 0.25) + 0.49 - 1) - math.log(0.7)
    assert found.kinds == {"a": "analytic", "b": "analytic"}
    assert torch.allclose(found.per_datum[:, 0], a)
    assert agrees(found.kl[1], b.mean(), found.mc_std_error[1], ceiling=0.005)
    assert found.mc_std_error[0] < 1e-12 < found.mc_std_error[1]
    assert found.units == ("a", "b")
    assert found.site_kl["a"] == pytest.approx(float(a.mean()))

    # Against the model's order, b's term holds a cross entropy: named, and the sum is the KL.
    found = unit_kl(chain("ba"), x, num_samples=2000)
    assert found.kinds == {"a": "analytic", "b": "out_of_order"}
    mean = torch.stack([0.48 * x[:, 0], 0.6 * x[:, 0]], -1)
    root = torch.tensor([[0.7, 0.4], [0.0, 0.5]]).double()  # a = .8 b + .7 e, b = .6 x + .5 f
    q = dist.MultivariateNormal(mean, root @ root.T)
    p_root = torch.tensor([[1.0, 0.0], [0.5, 1.0]]).double()
    p = dist.MultivariateNormal(torch.zeros(2).double(), p_root @ p_root.T)
    exact = float(torch.distributions.kl_divergence(q, p.expand([50])).mean())
    error = float(found.mc_std_error.sum())
    assert agrees(found.total, exact, error, ceiling=0.03)
    assert KINDS["out_of_order"] in str(found)


def test_inner_plates_and_folded_networks():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(torch.zeros(()).double(), 1.0))
            loc = a.reshape(-1, 2).sum(-1, keepdim=True) + b.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc[: len(x)], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            loc = torch.stack([x[:, 0], 0 * x[:, 0]], -1).unsqueeze(-2)
            pyro.sample("a", dist.Normal(loc, 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                gains = torch.tensor([0.0, 0.8, 0.0]).double()
                pyro.sample("b", dist.Normal(x[:, :1] * gains, 1.0))

    x = data(30)
    found = unit_kl((model, guide), x, num_samples=3)
    exact = 0.5 * x.square() * torch.tensor([1.0, 0, 0, 0.64, 0]).double()
    assert torch.allclose(found.per_datum, exact, atol=1e-12)
    assert found.units == ("a[0]", "a[1]", "b[0]", "b[1]", "b[2]")


def test_transformed_and_discrete_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.LogNormal(torch.zeros(2).double(), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(3).double()))
            pyro.sample("x", dist.Normal(a.sum(-1) + k, 1.0), obs=x[..., 0])

    logits = torch.tensor([0.0, 1.0, -1.0]).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.expand(-1, 2), 0.5).to_event(1)
            exp = torch.distributions.transforms.ExpTransform()
            pyro.sample("a", dist.TransformedDistribution(base, [exp]))
            pyro.sample("k", dist.Categorical(logits=logits * x))

    x = data(30)
    found = unit_kl((model, guide), x, num_samples=2000)
    a = 0.5 * (x[:, 0].square() + 0.25 - 1) - math.log(0.5)
    q = (logits * x).log_softmax(-1)
    k = (q.exp() * (q + math.log(3))).sum(-1)
    exact = torch.stack([a, a, k], -1).mean(0)
    assert agrees(found.kl, exact, found.mc_std_error + 1e-6, ceiling=0.02)


# What is left behind, and refusals -------------------------------------------------------------


def test_nothing_is_left_behind_and_seeds_repeat():
    vae, x = vae_of(prior="vamp")
    vae.train()
    state = torch.get_rng_state()
    first = unit_kl((vae.model, vae.guide), x, seed=3)
    second = unit_kl((vae.model, vae.guide), x, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert torch.equal(first.kl, second.kl)
    assert not torch.equal(first.kl, unit_kl((vae.model, vae.guide), x, seed=4).kl)


def test_requests_that_make_no_sense_are_refused():
    pair = pair_of(mean_field, STANDARD)
    with pytest.raises(inference.RequestError, match="one datum"):
        unit_kl(pair, data(1))
    with pytest.raises(inference.RequestError, match="num_samples: got 0"):
        unit_kl(pair, data(), num_samples=0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = data(8)[:, 0]
    with pytest.raises(inference.PairError, match="auxiliary site 'z_unconstrained'"):
        unit_kl((model, AutoNormal(model)), x)


@pytest.mark.parametrize(("size", "alive"), [(1, 1), (4, 0), (50, 21), (300, 40)])
def test_picture(size, alive, tmp_path):
    gains = torch.zeros(size).double()
    gains[:alive] = torch.linspace(1, 2, alive)
    q = lambda x: dist.Normal(gains * x, 1.0).to_event(1)  # noqa: E731
    prior = dist.Normal(torch.zeros(size).double(), 1.0).to_event(1)
    found = unit_kl(pair_of(q, prior), data(), num_samples=1)
    assert found.num_collapsed == size - alive
    path = draw_unit_kl(found, tmp_path / "a.png")
    again = draw_unit_kl(found, str(tmp_path / "b.png"))
    assert path.read_bytes() == again.read_bytes()
    assert len(path.read_bytes()) > 5000

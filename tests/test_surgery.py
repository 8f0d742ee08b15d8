"""ELBO surgery against quadrature of the mixture of few guides, and against what is known of many.

The guides are Gaussian, q(z|x) = N(A x, S), so that all terms are integrals in one or two numbers.
"""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Planar

import inference
import pyro_vae as pv
from inference import tiles
from inference.diagnostics import aggregate
from tests.exact_models import agrees, linear_gaussian


def pair_of(gains, tril, prior=None):
    """q(z|x) = N(gains x, tril tril'), prior N(0, I) or a given distribution."""
    gains, tril = (torch.as_tensor(v, dtype=torch.float64) for v in (gains, tril))
    size = len(tril)
    standard = dist.Normal(torch.zeros(size).double(), 1.0).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior or standard)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ gains.T, scale_tril=tril))

    return model, guide


ONE = ([[0.8]], [[0.4]])
TWO = ([[0.7, 0.1], [-0.3, 0.9]], [[0.5, 0.0], [0.3, 0.4]])


def few_data(size, num=6):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(3)).double()


def exact_terms(gains, tril, x, standard_prior=True):
    """All terms by sums over a grid; q(z_i) by sums over the other number."""
    gains, tril = (torch.as_tensor(v, dtype=torch.float64) for v in (gains, tril))
    size = len(tril)
    line = torch.linspace(-9, 9, 20_001 if size == 1 else 601, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    cell = float(line[1] - line[0]) ** size
    q = dist.MultivariateNormal((x @ gains.T).unsqueeze(1), scale_tril=tril)
    log_q = q.log_prob(grid)  # [N, G]
    log_p = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    log_mean = log_q.logsumexp(0) - math.log(len(x))

    def mean(weights, values):
        return float((weights.exp() * values).sum(-1).mean() * cell)

    shape = [len(line)] * size
    log_units = []
    for i in range(size):
        others = [d for d in range(size) if d != i]
        density = log_mean.exp().reshape(shape)
        density = density.sum(others) * (cell / float(line[1] - line[0])) if others else density
        log_units.append(density.clamp_min(1e-300).log())
    index = torch.cartesian_prod(*[torch.arange(len(line))] * size).reshape(-1, size)
    product = sum(log_units[i][index[:, i]] for i in range(size))
    log_prior = dist.Normal(0.0, 1.0).log_prob(line)
    step = float(line[1] - line[0])
    rest = [
        torch.logsumexp(log_q[torch.arange(len(x)) != n], 0) - math.log(len(x) - 1)
        for n in range(len(x))
    ]
    return {
        "kl": mean(log_q, log_q - log_p),
        "information": mean(log_q, log_q - log_mean),
        "information_upper": mean(log_q, log_q - torch.stack(rest)),
        "aggregate_kl": mean(log_mean, log_mean - log_p),
        "total_correlation": mean(log_mean, log_mean - product),
        "dimension_kl": sum(float((u.exp() * (u - log_prior)).sum()) * step for u in log_units),
        "units": [float((u.exp() * (u - log_prior)).sum()) * step for u in log_units],
    }


def surgery(pair, x, num_samples=4, **options):
    return inference.surgery(*pair, x, num_samples=num_samples, progress=False, **options)


@pytest.mark.parametrize("parameters", [ONE, TWO], ids=["one", "two"])
def test_all_terms_are_those_of_quadrature(parameters):
    x = few_data(len(parameters[1]))
    found, exact = surgery(pair_of(*parameters), x, 4000), exact_terms(*parameters, x)
    assert set(found.terms) == set(exact) - {"units"}
    for name, term in found.terms.items():
        assert agrees(term.mean, exact[name], term.mc_std_error, ceiling=0.02), name
    assert found.unit_kl.tolist() == pytest.approx(exact["units"], abs=0.02)
    # The split is one of the same draws: exact up to rounding.
    t = {name: term.mean for name, term in found.terms.items()}
    assert t["information"] + t["aggregate_kl"] == pytest.approx(t["kl"], abs=1e-9)
    split = t["total_correlation"] + t["dimension_kl"]
    assert split == pytest.approx(t["aggregate_kl"], abs=1e-9)
    assert float(found.unit_kl.sum()) == pytest.approx(t["dimension_kl"], abs=1e-9)


def test_a_minibatch_in_the_place_of_the_data_is_wrong():
    """1/M sum over a minibatch that holds the own component: biased towards log M."""
    x = few_data(2, num=12)
    exact = exact_terms(*TWO, x)["information"]
    found = surgery(pair_of(*TWO), x, 2000).terms["information"]
    assert agrees(found.mean, exact, found.mc_std_error, ceiling=0.02)
    batches = [surgery(pair_of(*TWO), part, 2000).terms["information"] for part in x.split(4)]
    mean = sum(term.mean for term in batches) / 3
    error = math.sqrt(sum(term.mc_std_error**2 for term in batches)) / 3
    assert not agrees(mean, exact, error)
    assert mean < exact


def test_monte_carlo_errors_are_as_large_as_they_say():
    x = few_data(2)
    exact = exact_terms(*TWO, x)
    runs = [surgery(pair_of(*TWO), x, 50, seed=seed) for seed in range(60)]
    for name in runs[0].terms:
        z = [(r.terms[name].mean - exact[name]) / r.terms[name].mc_std_error for r in runs]
        assert 0.75 < float(torch.tensor(z).std()) < 1.3, name
        assert abs(sum(z) / len(z)) < 5 / math.sqrt(60), name


def test_the_cap_of_few_data_and_bounds_for_the_population():
    """Narrow guides: N data tell log N nats, whatever the population's information."""
    x = 30 * few_data(1, num=8)
    narrow = surgery(pair_of([[1.0]], [[0.01]]), x, 50)
    assert narrow.terms["information"].mean == pytest.approx(math.log(8), abs=1e-6)
    assert narrow.cap == math.log(8)
    assert narrow.too_few_data
    assert narrow.terms["information_upper"].mean > 100
    low, high = narrow.population_information
    assert low == pytest.approx(math.log(8), abs=1e-6)
    assert high == narrow.terms["kl"].mean  # no information exceeds the mean KL
    assert "too few data" in str(narrow)

    # x ~ N(0, 1), q = N(g x, s^2): I = 1/2 log(1 + g^2/s^2), held from both sides.
    truth = 0.5 * math.log(1 + 0.8**2 / 0.1**2)
    lows, highs = [], []
    for seed in range(30):
        x = torch.randn(20, 1, generator=torch.Generator().manual_seed(seed)).double()
        t = surgery(pair_of([[0.8]], [[0.1]]), x, 20).terms
        lows.append(t["information"].mean)
        highs.append(t["information_upper"].mean)
    low, high = torch.tensor(lows), torch.tensor(highs)
    assert float(low.mean()) + 3 * float(low.std()) / math.sqrt(30) < truth
    assert float(high.mean()) - 3 * float(high.std()) / math.sqrt(30) > truth
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).double()
    many = surgery(pair_of([[0.8]], [[0.1]]), x, 2)
    low, high = many.population_information
    assert high - low < 0.03
    assert low == pytest.approx(truth, abs=0.06)
    assert not many.too_few_data


@pytest.mark.parametrize("parameters", [ONE, TWO], ids=["one", "two"])
def test_errors_for_the_population_are_as_large_as_they_say(parameters):
    """The spread of each term over fresh data sets, though q(z) is another each time."""
    size, runs = len(parameters[1]), []
    for seed in range(60):
        x = torch.randn(150, size, generator=torch.Generator().manual_seed(seed)).double()
        runs.append(surgery(pair_of(*parameters), x, 4, seed=seed))
    for name in runs[0].terms:
        means = torch.tensor([r.terms[name].mean for r in runs])
        claimed = torch.tensor([r.terms[name].std_error for r in runs])
        ratio = float(means.std() / claimed.square().mean().sqrt())
        if name == "total_correlation" and size == 1:  # always 0
            continue
        assert 0.7 < ratio < 1.35, name


def test_blocks_change_nothing(monkeypatch):
    x = few_data(2, num=23)
    whole = surgery(pair_of(*TWO), x, 5)
    monkeypatch.setattr(aggregate, "DRAWS_AT_ONCE", 7)
    monkeypatch.setattr(aggregate, "numbers_per_tile", lambda device: 3 * 7 * 2)
    parts = surgery(pair_of(*TWO), x, 5)
    for name, term in whole.terms.items():
        assert parts.terms[name].mean == pytest.approx(term.mean, abs=1e-10)
    assert torch.allclose(whole.unit_kl, parts.unit_kl, atol=1e-10)


def test_memory_is_bounded(monkeypatch):
    """No array of draws x data x units: the largest has a tile's size."""
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 4096)
    sizes = []
    score = aggregate.Aggregate.log_q

    def watched(self, u, data):
        sizes.append(u.numel())
        return score(self, u, data)

    monkeypatch.setattr(aggregate.Aggregate, "log_q", watched)
    surgery(pair_of(*TWO), few_data(2, num=300), 4)
    assert max(sizes) <= 4096
    assert len(sizes) > 100


def test_one_draw_tells_nothing_of_its_error():
    found = surgery(pair_of(*TWO), few_data(2, num=40), 1)
    assert all(math.isnan(term.mc_std_error) for term in found.terms.values())
    assert all(term.std_error > 0 for term in found.terms.values())


def test_nothing_is_left_behind_and_seeds_repeat():
    pair, x = pair_of(*TWO), few_data(2)
    state = torch.get_rng_state()
    first, second = surgery(pair, x, seed=1), surgery(pair, x, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.terms == second.terms
    assert surgery(pair, x, seed=2).terms != first.terms
    assert set(first.arrays()) == {*first.per_datum, "unit_kl", "unit_kl_std_error"}
    assert first.summary()["kl"] == first.terms["kl"].mean
    assert "information I(x; z)" in str(first)


# Other pairs -----------------------------------------------------------------------------------


def vae_of(**options):
    torch.manual_seed(0)
    small = {"name": "mlp", "hidden": (16,)}
    vae = pv.VAE(data_shape=(6,), encoder=small, decoder=small, **{"latent_dim": 3, **options})
    return vae.initialize(bits(40)), bits(40)


def bits(num):
    return (torch.rand(num, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()


@pytest.mark.parametrize(
    ("options", "terms", "note"),
    [
        ({}, {"total_correlation", "dimension_kl"}, ""),
        ({"guide": "full_rank"}, {"total_correlation", "dimension_kl"}, ""),
        ({"prior": "vamp"}, {"total_correlation"}, "the prior of site 'z' .Mixture. is no product"),
        ({"guide": "iaf"}, set(), "marginals of q.* at site 'z' .TransformedDistribution. are not"),
        ({"guide": "iaf", "prior": "gaussian_mixture"}, set(), "marginals of q"),
    ],
    ids=["plain", "full_rank", "vamp", "iaf", "iaf mixture"],
)
def test_what_is_not_known_is_left_out_and_said(options, terms, note):
    vae, x = vae_of(**options)
    found = surgery((vae.model, vae.guide), x, 20)
    always = {"kl", "information", "information_upper", "aggregate_kl"}
    assert set(found.terms) == always | terms
    assert re.search(note, str(found))
    assert bool(found.notes) == bool(note)
    # The mean KL is that of the bound.
    kl = inference.bound(vae.model, vae.guide, x, num_samples=200)
    term = found.terms["kl"]
    assert agrees(term.mean, sum(kl.kl.values()), 1.2 * term.mc_std_error, ceiling=0.25)


def test_the_aggregate_prior_has_no_kl_to_itself():
    """A VampPrior whose pseudo-inputs are the data is q(z): KL(q(z) || p(z)) = 0, exactly."""
    vae, x = vae_of(prior={"name": "vamp", "components": 40})
    with torch.no_grad():
        vae.prior.pseudo_inputs.copy_(x)
    vae, x = vae.double(), x.double()
    found = surgery((vae.model, vae.guide), x)
    assert found.per_datum["aggregate_kl"].abs().max() < 1e-6
    assert found.terms["information"].mean > 0.05


def two_sites(dependent):
    """q(a, b|x) Gaussian, as a chain or as independent sites; p(b|a) too."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
            b = pyro.sample("b", dist.Normal(0.5 * a if dependent else 0 * a, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x[..., 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.6 * x[:, 0], 0.5))
            mean = 0.8 * a if dependent else 0.2 * x[:, 0]
            pyro.sample("b", dist.Normal(mean - 0.1 * x[:, 0], 0.7))

    return model, guide


@pytest.mark.parametrize("dependent", [True, False])
def test_several_sites(dependent):
    x = few_data(1, num=5)
    found = surgery(two_sites(dependent), x, 4000)
    # The joint guide: a = .6 x + .5 e, b = c a + d x + .7 f.
    c, d = (0.8, -0.1) if dependent else (0.0, 0.1)
    tril = [[0.5, 0.0], [c * 0.5, 0.7]]
    exact = exact_terms([[0.6], [0.6 * c + d]], tril, x)
    t = found.terms["information"]
    assert agrees(t.mean, exact["information"], t.mc_std_error, ceiling=0.02)
    if dependent:
        assert "total_correlation" not in found.terms
        assert "at site 'b'" in found.notes[0]
    else:
        for name in ("kl", "aggregate_kl", "total_correlation", "dimension_kl"):
            t = found.terms[name]
            assert agrees(t.mean, exact[name], t.mc_std_error, ceiling=0.02), name
    assert found.units == ("a", "b")


def test_networks_that_take_no_particles():
    _, guide = pair_of(*TWO)

    def folded(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc = z.view(len(x), 2).sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[:, :1])

    x = few_data(2)
    exact = exact_terms(*TWO, x)
    found = surgery((folded, guide), x, 3000)
    for name, term in found.terms.items():
        assert agrees(term.mean, exact[name], term.mc_std_error, ceiling=0.02), name


def test_discrete_latents():
    """q(z=1|x) = sigmoid(x): I = H(mean) - mean H, exactly."""
    x = few_data(1, num=7)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[..., 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x[:, 0]))

    q = x[:, 0].sigmoid()

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log())

    found = surgery((model, guide), x, 4000)
    t = found.terms["information"]
    assert agrees(t.mean, entropy(q.mean()) - entropy(q).mean(), t.mc_std_error, ceiling=0.01)


# Refusals --------------------------------------------------------------------------------------


def test_a_density_known_at_own_draws_only_is_refused():
    flow = Planar(2)
    model, _ = pair_of(*TWO)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.float(), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    with pytest.raises(inference.PairError, match="site 'z': the guide's density is known at its"):
        surgery((model, guide), few_data(2).float())


def test_a_prior_of_each_datum_is_refused():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    x = torch.randn(200)
    y = (torch.arange(200) >= 100).float()  # sorted: the first data have one y
    with pytest.raises(inference.PairError, match="site 'z': its prior differs from datum to"):
        surgery((model, guide), (x, y))


def test_other_requests_that_make_no_sense_are_refused():
    pair = pair_of(*TWO)
    with pytest.raises(inference.RequestError, match="one datum"):
        surgery(pair, few_data(2)[:1])
    with pytest.raises(inference.RequestError, match="num_samples: got 0"):
        surgery(pair, few_data(2), 0)
    exact = linear_gaussian(L=2)

    def auxiliary(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", exact.q(x), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a, event_dim=1))

    with pytest.raises(inference.PairError, match="auxiliary site 'a'"):
        surgery((exact.model, auxiliary), exact.sample(9))

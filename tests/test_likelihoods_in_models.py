"""Every likelihood through the library: training, log p(x), an encoder of counts, a module."""

import pytest
import torch
from torch import nn

import inference
import pyro_vae as pv
from tests.likelihood_cases import PARTS, VARIANTS, WHOLE, some_data
from tests.tiers import each


def vae_of(name, fields, latent_dim=1, **parts):
    """A VAE of data that vary together, and those data `[300, D]`."""
    torch.manual_seed(0)
    num = 5 if name == "mixed" else 3
    kinds = torch.stack([some_data(name, (num,), torch.float32) for _ in range(2)])
    x = kinds[torch.randint(2, (300,))]
    mlp = pv.networks.MLP(hidden=(16,))
    vae = pv.VAE(
        data_shape=(num,),
        latent_dim=latent_dim,
        likelihood={"name": name, **fields},
        **{"encoder": mlp, "decoder": mlp, **parts},
    )
    return vae.initialize(x), x


def trained(vae, x, **how):
    return inference.fit(
        vae.model,
        vae.guide,
        x[:250],
        validation=x[250:],
        epochs=6,
        batch_size=50,
        learning_rate=5e-3,
        **{"engine": "eager", "progress": False, **how},
    )


@pytest.mark.parametrize(("name", "fields"), each(2, [*VARIANTS, *WHOLE], unpack=True), ids=str)
def test_training_raises_the_bound_and_importance_finds_the_integral(name, fields):
    vae, x = vae_of(name, fields)
    result = trained(vae, x)
    bounds = [row["validation_bound"] for row in result.history]
    assert bounds[-1] > bounds[0]
    pair = vae.model, vae.guide, x[:8]
    exact = inference.log_marginal(*pair, estimator=inference.Quadrature(), engine="eager", seed=0)
    # From the prior, whose weights are bounded: a guide of so few steps may miss the posterior.
    drawn = inference.Importance(num_samples=10_000, proposal="prior")
    found = inference.log_marginal(*pair, estimator=drawn, engine="eager", seed=0)
    assert found.std_error.max() < 0.1
    score = (found.value - exact.value) / found.std_error.clamp_min(1e-3)
    assert score.abs().max() < 5


COMPILED = [  # the others have no other parts
    ("beta", {}),
    ("zero_inflated", {"counts": "negative_binomial"}),
    ("discretized_logistic", {"components": 3}),
    ("gaussian_covariance", {"rank": 2, "covariance": "predicted"}),
    *WHOLE,
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), COMPILED, ids=str)
def test_the_compiled_engine_trains_as_the_eager_one(name, fields):
    bounds = []
    for engine in ("eager", "compiled"):
        vae, x = vae_of(name, fields)
        result = trained(vae, x, engine=engine)
        assert result.engine == engine, result.engine_reason
        bounds.append([row["validation_bound"] for row in result.history])
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-3)


def test_words_through_the_encoder_of_counts():
    vae, x = vae_of("multinomial", {}, encoder=pv.networks.Counts(hidden=(16,)))
    bounds = [row["validation_bound"] for row in trained(vae, x).history]
    assert bounds[-1] > bounds[0]


def test_a_module_of_ones_own_is_a_network_in_a_few_lines():
    """As the README says: subclass, write `build`, return any module."""
    members = dict(pv.Network.registry)

    class Tower(nn.Module):
        def __init__(self, num_inputs, num_outputs):
            super().__init__()
            self.first, self.last = nn.Linear(num_inputs, 7), nn.Linear(7, num_outputs)

        def forward(self, x):  # [n, 3] to [n, num_outputs]
            return self.last(self.first(x).cos())

    try:

        class MyTower(pv.Network, name="my_tower"):
            def build(self, in_shape, out_shape):
                return Tower(in_shape[0], out_shape[0])

        vae, x = vae_of("gaussian", {}, encoder="my_tower")
        bounds = [row["validation_bound"] for row in trained(vae, x).history]
        assert bounds[-1] > bounds[0]
        assert isinstance(vae.guide_module.encoder.body, Tower)
        assert vae.spec.to_dict()["encoder"] == {"name": "my_tower"}
    finally:
        pv.Network.registry._members.clear()
        pv.Network.registry._members.update(members)


def test_a_table_from_an_array(tmp_path):
    import numpy as np

    from pyro_vae.data.arrays import Arrays
    from pyro_vae.data.base import check_fit

    np.save(tmp_path / "table.npy", some_data("mixed", (60, 5)).numpy())
    dataset = Arrays(path=str(tmp_path / "table.npy"), validation=10).load()
    likelihood = pv.likelihoods.Mixed(parts=PARTS)
    check_fit(dataset, likelihood)
    vae = pv.VAE(data_shape=dataset.shape, latent_dim=2, likelihood=likelihood)
    assert vae.initialize(dataset.train).reconstruct(dataset.validation).shape == (10, 5)


@pytest.mark.parametrize("wide", [False, True])
def test_an_exposure_is_that_of_a_tables_counts(wide):
    """One for each row, or one for each value; columns that are no counts have none."""
    parts = [{"likelihood": "gaussian", "columns": 2}, {"likelihood": "poisson", "columns": 2}]
    fields = {"data_shape": (4,), "latent_dim": 1, "exposure": True}
    vae = pv.VAE(**fields, likelihood={"name": "mixed", "parts": parts})
    x = torch.cat([torch.randn(30, 2), torch.poisson(torch.full((30, 2), 4.0))], 1)
    exposure = torch.rand(30, 4) + 0.5 if wide else torch.rand(30) + 0.5
    vae.initialize(x, exposure)
    outputs = torch.randn(30, 4)
    spread = exposure[:, 2:] if wide else exposure[:, None]
    counts = torch.distributions.Poisson(outputs[:, 2:].exp() * spread).log_prob(x[:, 2:])
    real = torch.distributions.Normal(
        outputs[:, :2], vae.likelihood.modules_of_parts[0].fitted_sigma()
    )
    expected = counts.sum(1) + real.log_prob(x[:, :2]).sum(1)
    torch.testing.assert_close(vae.likelihood(outputs, exposure).log_prob(x), expected)
    start = vae.likelihood.initial_output(x, exposure)[2:].exp()
    torch.testing.assert_close(start, x[:, 2:].mean(0) / spread.mean(0))
    result = inference.fit(
        vae.model, vae.guide, (x, exposure), epochs=1, batch_size=10, engine="eager", progress=False
    )
    assert result.steps == 3
    with pytest.raises(pv.SpecError, match="likelihood 'mixed' has not"):
        pv.VAE(**fields, likelihood={"name": "mixed", "parts": [{"columns": 4}]})

"""Values that are missing: the density is that of the known ones; nothing of the others leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.data.arrays import dataset_from_arrays
from pyro_vae.errors import DataError, RequestError

SHAPE = (5,)
NET = pv.networks.MLP(hidden=(8,))
GRID = torch.linspace(-9, 9, 4001, dtype=torch.float64)


def build(guide="mean_field", likelihood="bernoulli"):
    torch.manual_seed(3)
    fields = {"data_shape": SHAPE, "latent_dim": 1, "missing": True}
    vae = pv.VAE(encoder=NET, decoder=NET, guide=guide, likelihood=likelihood, **fields)
    vae.guide_module.encoder.shrink_outputs(0.2)  # near the prior: weights without a heavy tail
    return vae.double().eval()


def data(rows=6):
    torch.manual_seed(0)
    x = (torch.rand(rows, *SHAPE) < 0.5).double()
    mask = torch.rand(rows, *SHAPE) < 0.6
    mask[0] = True
    mask[1] = False  # nothing is known: log p is 0
    return x, mask


@pytest.mark.parametrize("guide", ["mean_field", "product_of_experts"])
def test_log_p_is_that_of_the_known_values(guide):
    vae, (x, mask) = build(guide), data()
    with torch.no_grad():
        p = vae.decode(GRID[:, None]).base_dist.log_prob(x[:, None])  # [N, grid, D]
        each = (p * mask[:, None]).sum(-1) + torch.distributions.Normal(0, 1).log_prob(GRID)
        exact = torch.logsumexp(each, 1) + math.log(float(GRID[1] - GRID[0]))
        whole = p.sum(-1) + torch.distributions.Normal(0, 1).log_prob(GRID)
    found = inference.log_marginal(
        vae.model,
        vae.guide,
        (x, mask),
        estimator=inference.Importance(num_samples=20_000),
        engine="eager",
        precision="float64",
        progress=False,
    )
    assert ((found.value - exact).abs() < 5 * found.std_error + 1e-3).all()
    assert float(exact[1]) == pytest.approx(0.0, abs=1e-6)
    # The wrong twin scores hidden zeros as if they had been seen.
    wrong = torch.logsumexp(whole, 1) + math.log(float(GRID[1] - GRID[0]))
    far = (found.value - wrong).abs() > 5 * found.std_error + 1e-3
    assert far[(~mask).any(1)].all()


@pytest.mark.parametrize("guide", ["mean_field", "product_of_experts"])
def test_hidden_values_leave_no_trace(guide):
    vae, (x, mask) = build(guide), data()
    other = torch.where(mask, x, 1 - x)
    first, second = (
        inference.bound(vae.model, vae.guide, (values, mask), num_samples=4, engine="eager")
        for values in (x, other)
    )
    assert torch.equal(first.per_datum, second.per_datum)
    torch.manual_seed(0)
    made = vae.reconstruct(x, mask)
    torch.manual_seed(0)
    assert torch.equal(made, vae.reconstruct(other, mask))


def test_an_expert_whose_value_is_missing_has_no_say():
    vae, (x, _) = build("product_of_experts"), data()
    module = vae.guide_module
    with torch.no_grad():
        for p in module.encoder.parameters():
            p.zero_()  # what speaks for all values together says N(0, 1)
        mask = torch.zeros_like(x, dtype=torch.bool)
        q = vae.encode(x, mask)
        torch.testing.assert_close(q.variance, torch.full_like(q.variance, 0.5))
        mask[:, 2] = True
        one = vae.encode(x, mask)
        assert bool((one.variance < q.variance).all())
        moved = x.clone()
        moved[:, 3] = 7.0
        torch.testing.assert_close(vae.encode(moved, mask).mean, one.mean)
        moved[:, 2] += 1.0
        assert float((vae.encode(moved, mask).mean - one.mean).abs().min()) > 0


def test_experts_that_grow_wide_keep_their_say():
    """In training scales grow towards the prior's before means tell anything."""
    vae, (x, mask) = build("product_of_experts"), data()

    def outputs(inputs):
        return torch.cat([x.sum(1, keepdim=True), torch.full((len(x), 1), 7.0)], 1)

    vae.guide_module.encoder.forward = outputs
    with torch.no_grad():
        vae.guide_module.log_share.fill_(-100.0)  # the experts of single values, too
        mask[:] = False
        q = vae.encode(x, mask)
    torch.testing.assert_close(q.variance, torch.ones_like(q.variance), atol=1e-5, rtol=0)
    torch.testing.assert_close(q.mean, x.sum(1, keepdim=True), atol=1e-4, rtol=0)


def test_nan_stands_for_a_missing_value():
    x = torch.rand(20, 3)
    x[2, 1] = float("nan")
    found = dataset_from_arrays(x, test=5)
    assert bool(found.train.isfinite().all())
    assert sum(int((~mask).sum()) for mask in found.masks.values()) == 1
    assert dataset_from_arrays(torch.rand(20, 3)).masks == {}


def test_hidden_shares_and_labels():
    data = pv.data.Digits(missing=0.5, labelled=33)
    found, again = data.prepared(), data.prepared()
    for split, mask in found.masks.items():
        share = float(mask.double().mean())
        assert share == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(mask.numel()))
        assert torch.equal(mask, again.masks[split])
        assert float(getattr(found, split)[~mask].abs().sum()) == 0
    known = found.labels["train"]
    counts = np.bincount(known[known >= 0].numpy())
    assert counts.sum() == 33
    assert counts.max() - counts.min() <= 1
    assert bool((found.labels["test"] >= 0).all())
    whole = data.load().labels["train"]
    assert torch.equal(whole[known >= 0], known[known >= 0])
    other = pv.data.Digits(missing=0.5, labelled=33, hiding_seed=1).prepared()
    assert not torch.equal(other.masks["train"], found.masks["train"])


def test_more_labels_than_there_are():
    with pytest.raises(DataError, match=r"labelled: 5000, but data 'digits' has 1200 labels"):
        pv.data.Digits(labelled=5000).prepared()


def test_labelled_data_are_repeated():
    """Whole rows, with the values that are hidden there; and nothing but training data."""
    once = pv.data.Digits(labelled=33, missing=0.5).prepared()
    found = pv.data.Digits(labelled=33, missing=0.5, repeat_labelled=4).prepared()
    known = once.labels["train"] >= 0
    rest = slice(len(once.train), None)
    assert len(found.train) == len(once.train) + 3 * 33
    for name in ("train", "labels", "masks"):
        each, whole = ((getattr(d, name)) for d in (once, found))
        each, whole = (each, whole) if name == "train" else (each["train"], whole["train"])
        assert torch.equal(whole[: len(once.train)], each)
        assert torch.equal(whole[rest], each[known].repeat(3, *[1] * (each.dim() - 1)))
    assert torch.equal(found.test, once.test)
    assert torch.equal(found.labels["test"], once.labels["test"])


@pytest.mark.parametrize("told", ["all", "none"])
def test_nothing_to_repeat(told, tmp_path):
    labels = {"labels": np.arange(20) % 2} if told == "all" else {}
    np.savez(tmp_path / "some.npz", x=np.random.default_rng(0).random((20, 3)), **labels)
    data = pv.data.Arrays(path=str(tmp_path / "some.npz"), repeat_labelled=2)
    with pytest.raises(DataError, match=f"repeat_labelled: 2, but {told} of the training labels"):
        data.prepared()


def test_a_mask_is_asked_for():
    vae, (x, _) = build(), data()
    with pytest.raises(RequestError, match="mask: missing"):
        vae.encode(x)

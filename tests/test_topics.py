"""Bags of words: topics that are mixed, and found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_vae as pv
from benchmarks.uses.corpora import docstrings, made
from benchmarks.uses.topics import matched, topics_of
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.train import train


def build(words=7, topics=3):
    torch.manual_seed(0)
    fields = {"prior": "logistic_normal", "guide": "logistic_normal", "likelihood": "multinomial"}
    return pv.VAE(data_shape=(words,), latent_dim=topics, decoder="topics", **fields).double()


def test_words_are_those_of_topics_in_their_shares():
    vae = build()
    layer = vae.decoder.body[-1]
    topics = (layer.weight + layer.bias.unsqueeze(1)).softmax(0).T  # [K, V]
    z = torch.distributions.Dirichlet(torch.ones(3)).sample((5,)).double()
    x = torch.distributions.Multinomial(20, torch.ones(7)).sample((5,)).double()
    found = vae.decode(z).log_prob(x)
    expected = [torch.distributions.Multinomial(20, p) for p in z @ topics]
    expected = torch.stack([p.log_prob(row) for p, row in zip(expected, x, strict=True)])
    torch.testing.assert_close(found, expected)
    # Topics that are multiplied give other words.
    twin = (z @ topics.log()).softmax(-1)
    assert not torch.allclose(vae.decode(z).mean / vae.likelihood.length, twin, atol=1e-2)


def test_topics_begin_around_the_words_of_the_data_and_apart():
    vae = build(words=300, topics=10)
    x = torch.distributions.Multinomial(50, 0.05 + torch.rand(300)).sample((200,)).double()
    vae.initialize(x)
    topics = torch.from_numpy(topics_of(vae))
    share = x.sum(0) / x.sum()
    assert float(np.corrcoef(topics.mean(0).log(), share.log())[0, 1]) > 0.8
    apart = 0.5 * (topics[:, None] - topics[None]).abs().sum(-1) + torch.eye(10)
    assert float(apart.min()) > 0.3


def test_a_word_that_no_topic_has_costs_much_and_breaks_nothing():
    vae = build()
    with torch.no_grad():
        vae.decoder.body[-1].weight[0] = -2e3
    z = torch.tensor([[1.0, 1e-30, 1e-30]], dtype=torch.float64, requires_grad=True)
    score = vae.decode(z).log_prob(torch.eye(7, dtype=torch.float64)[:1])
    score.sum().backward()
    assert -100 < float(score.detach()) < -50
    grads = [z.grad, vae.decoder.body[-1].weight.grad, vae.decoder.body[-1].bias.grad]
    assert all(grad.isfinite().all() for grad in grads)


def test_topics_are_found_again(tmp_path):
    """By the preset; a topic that is none of them has a distance of more than a half."""
    corpus = made(1_000, words=80, topics=4, length=60)
    np.savez(tmp_path / "words.npz", x=corpus.x)
    changes = [f"data.path={tmp_path / 'words.npz'}", "model.latent_dim=4", "train.epochs=60"]
    spec = load_experiment("topics", [*changes, "train.learning_rate=1e-2"])
    vae = train(spec, tmp_path / "run", progress=False).vae()
    _, distance, cosine = matched(topics_of(vae), corpus.topics)
    assert max(distance) < 0.2
    assert min(cosine) > 0.95
    others = made(10, words=80, topics=4, seed=1)
    assert min(matched(others.topics, corpus.topics)[1]) > 0.5


def test_matching_is_one_to_one_and_whatever_the_order():
    true = made(10, words=50, topics=6).topics
    order = np.array([3, 1, 5, 0, 2, 4])
    found, distance, cosine = matched(true[order], true)
    assert found.tolist() == order.tolist()
    assert distance == pytest.approx([0.0] * 6)
    assert cosine == pytest.approx([1.0] * 6)


def test_docstrings_are_a_bag_of_words():
    corpus = docstrings(50, 5, limit=20)
    assert corpus.x.shape[1] == len(set(corpus.words)) == 50
    assert (corpus.x.sum(1) >= 5).all()
    assert len(np.unique(corpus.x, axis=0)) == len(corpus.x)

"""Topics: are they found, and how well are words of unseen documents told?

The preset `topics` on two bags of words (`corpora`): one made by a known model, whose topics are
matched one to one with those found (least total variation), and one of real text. Perplexity per
word of held-out documents is

    exp(-sum_n log p(w_n) / sum_n L_n),   p(w_n) = int p(z) prod_l p(w_nl | z) dz,

L_n words in document n, by importance sampling; without n! / prod x!, the ways to order a bag,
so that unigrams have the perplexity that one knows. Beside the preset stand its decoder replaced by
ProdLDA's (`linear`: topics multiplied, not mixed) and its prior by a Dirichlet. Of the true model,
too, log p is estimated, with the preset's guide; and, since guides are poor under a Dirichlet, on
fewer documents by annealed chains.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import inference
from benchmarks.uses.common import Bench, Row, mean_and_error, of_run
from benchmarks.uses.corpora import Corpus, docstrings, made
from pyro_vae.app.columns import arguments
from pyro_vae.app.run import Run
from pyro_vae.vae import VAE

ROWS = {
    "preset": [],
    "decoder linear": ["model.decoder=linear"],
    "prior dirichlet": ["model.prior={name: dirichlet, concentration: 0.2}"],
    "preset, seed 1": ["train.seed=1"],
}
NUM_SAMPLES = 1_000
TEST, BY_CHAINS = 500, 100
REAL_TOPICS = 20


def measure(bench: Bench) -> dict[str, Any]:
    """Every row that is missing. Returns topics for the picture, where they were made."""
    shown: dict[str, Any] = {}
    for kind in ("made", "real"):
        names = [f"{kind}, {name}" for name in ROWS if kind == "made" or "seed" not in name]
        beside = [f"{kind}, unigram", *(["made, true model"] if kind == "made" else [])]
        if bench.missing(*names, *beside):
            shown |= _corpus(bench, kind, names)
    return shown


def _corpus(bench: Bench, kind: str, names: list[str]) -> dict[str, Any]:
    corpus = _load(kind, bench.quick)
    path = bench.work / f"{kind}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=corpus.x)
    test = 30 if bench.quick else TEST
    common = [f"data.path={path}", f"data.test={test}", "train.engine=eager"]  # few steps
    if kind == "real":
        common.append(f"model.latent_dim={REAL_TOPICS}")
    shown: dict[str, Any] = {}
    for name in names:
        short = name.removeprefix(f"{kind}, ")
        true = f"{kind}, true model"
        wanted = [name, true] if (kind, short) == ("made", "preset") else [name]
        if short == "preset":
            wanted.append(f"{kind}, unigram")
        if not bench.missing(*wanted):
            continue
        run = bench.trained(
            f"topics-{name}".replace(", ", "-").replace(" ", "-"), "topics", [*common, *ROWS[short]]
        )
        x, vae = arguments(run.spec.data.prepared(), "test", run.spec.model)[0], run.vae()
        row = {**perplexity(bench, vae, x), **of_run(run)}
        found = topics_of(vae)
        if corpus.topics is not None:
            order, row["total_variation"], row["cosine"] = matched(found, corpus.topics)
            if short == "preset":
                bench.keep(true, perplexity(bench, true_model(run, corpus.topics[order]), x))
                shown["made"] = corpus.topics[order], found
        if short == "preset":
            bench.keep(f"{kind}, unigram", unigram(run, x))
            if corpus.words:
                shown["real"] = corpus.words, found, _weight(vae, x)
                row["top_words"] = [[corpus.words[i] for i in t.argsort()[::-1][:8]] for t in found]
        bench.keep(name, row)
    return shown


def _load(kind: str, quick: bool) -> Corpus:
    if kind == "made":
        return made(200, 40) if quick else made()
    return docstrings(50, 5, limit=20) if quick else docstrings()


def perplexity(bench: Bench, vae: VAE, x: Tensor) -> Row:
    """Of held-out documents `[N, V]`, and `each`: nats of every one of them."""
    settings: dict[str, Any] = {"engine": "eager", "progress": False}
    samples = inference.Importance(num_samples=20 if bench.quick else NUM_SAMPLES)
    estimate = inference.log_marginal(vae.model, vae.guide, x, estimator=samples, **settings)
    few = x[: 5 if bench.quick else BY_CHAINS]
    by = inference.AIS(num_temperatures=3 if bench.quick else 100, num_chains=8)
    chains = inference.log_marginal(vae.model, vae.guide, few, estimator=by, **settings)
    there = estimate.value[: len(few)]
    return {
        "chains_perplexity": _per_word(chains.value - _ways(few), few)["perplexity"],
        "chains_flagged": chains.num_flagged / len(few),
        "importance_there": _per_word(there - _ways(few), few)["perplexity"],
        **_per_word(estimate.value - _ways(x), x),
        "bound_perplexity": _per_word(estimate.elbo - _ways(x), x)["perplexity"],
        "mc_std_error": estimate.mc_std_error / float(x.sum(1).mean()),
        "flagged": estimate.num_flagged / len(x),
    }


def unigram(run: Run, x: Tensor) -> Row:
    """One distribution of words for all documents, that of the training data (add 1/2)."""
    count = arguments(run.spec.data.prepared(), "train", run.spec.model)[0].double().sum(0) + 0.5
    return _per_word((x.double() * (count / count.sum()).log()).sum(1), x)


def _per_word(log_p: Tensor, x: Tensor) -> Row:
    """exp(-nats per word); its error by that of a ratio of sums."""
    length = x.double().sum(1)
    nats = float(-log_p.sum() / length.sum())
    _, error = mean_and_error((-log_p - nats * length) / length.mean())
    return {
        "num_data": len(x),
        "num_words": int(length.sum()),
        "nats_per_word": nats,
        "perplexity": math.exp(nats),
        "perplexity_se": math.exp(nats) * error,
        "each": [round(float(v), 4) for v in -log_p],
        "lengths": [int(v) for v in length],
    }


def _ways(x: Tensor) -> Tensor:
    """log of n! / prod_v x_v!, `[N]`."""
    x = x.double()
    return torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)


@torch.no_grad()
def topics_of(vae: VAE) -> np.ndarray:
    """Words' probabilities where one topic alone makes the document, `[K, V]`."""
    dtype = next(vae.parameters()).dtype
    corners = torch.eye(vae.shapes.latent_dim, dtype=dtype).clamp_min(1e-30)
    means = vae.decode(corners).mean.double()
    return (means / means.sum(-1, keepdim=True)).numpy()


def _weight(vae: VAE, x: Tensor) -> np.ndarray:
    """The share of each topic in these documents."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return vae.latent_mean(x).mean(0).numpy()


def matched(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """For each topic found the true one that is its match; total variation and cosine of all."""
    from scipy.optimize import linear_sum_assignment  # arviz brings it

    distance = 0.5 * np.abs(found[:, None] - true[None]).sum(-1)
    rows, columns = linear_sum_assignment(distance)
    sizes = np.linalg.norm(found, axis=1)[:, None] * np.linalg.norm(true, axis=1)
    cosine = (found @ true.T / sizes)[rows, columns]
    return columns, [float(v) for v in distance[rows, columns]], [float(v) for v in cosine]


@torch.no_grad()
def true_model(run: Run, topics: np.ndarray) -> VAE:
    """The model that made the data, under the run's guide: topics `[K, V]` in the guide's order."""
    spec = run.spec.model.to_dict()
    spec |= {"prior": {"name": "dirichlet", "concentration": 0.2}, "decoder": "topics"}
    vae = VAE.from_spec(spec).eval()
    vae.guide_module.load_state_dict(run.vae().guide_module.state_dict())
    layer = vae.decoder.body[-1]
    layer.weight.copy_(torch.from_numpy(topics).clamp_min(1e-30).log().T)
    layer.bias.zero_()
    return vae

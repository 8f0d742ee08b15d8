"""The evidence lower bound, split into reconstruction and KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.errors import PairError
from inference.evidence.weighing import Weighing, check_engine
from inference.kl import site_kl
from inference.pair import Data
from inference.record import LogWeights
from inference.tiles import tiled


@dataclass(frozen=True)
class Bound:
    """ELBO = E_q[log p(x|z)] - sum over sites of E_q[KL(q(z_i|.) || p(z_i|.))], nats per datum.

    `kl_kind[site]` says whether a site's term is `analytic` or `Monte Carlo`. `std_error` is the
    Monte-Carlo error of the data set's mean ELBO, from independent draws.
    """

    elbo: float
    elbo_std_error: float
    reconstruction: float
    kl: dict[str, float]
    kl_kind: dict[str, str]
    num_samples: int
    per_datum: Tensor

    def __str__(self) -> str:
        terms = ", ".join(f"KL({n}) {v:.3f} ({self.kl_kind[n]})" for n, v in self.kl.items())
        return (
            f"ELBO = {self.elbo:.3f} +- {self.elbo_std_error:.2g} nats per datum: reconstruction "
            f"{self.reconstruction:.3f}, {terms}."
        )


def bound(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_samples: int = 10,
    seed: int = 0,
    plate: str | None = "data",
    engine: str = "auto",
    device: str | torch.device | None = None,
) -> Bound:
    """The ELBO of a pair on `data`, with its KL terms in closed form where one is known.

    `engine` as in `log_marginal`; `device` is where data and modules are moved; by default data
    go where the modules are.
    Raises: `PairError` as `log_marginal`, and for a model that observes nothing; `RequestError`.
    """
    check_engine(engine)
    parts: list[list[Tensor]] = []  # of each tile, [K, n]: reconstruction, then each KL term
    with tiled(
        model, guide, data, num_samples, seed=seed, plate=plate, device=device, whole_rows=True
    ) as tiles:
        kinds: dict[str, str] = {}

        def split(record: LogWeights) -> list[Tensor]:
            return _terms(record, tiles.scorer.folded, num_samples, kinds)

        weighing = Weighing(tiles, split, engine)
        for start in tiles.rows():
            tile = tiles.tile(start)
            found = (part.double().reshape(num_samples, -1) for part in weighing(tile))
            parts.append([part[:, tile.skip :] for part in found])
    likelihood, *terms = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    every = likelihood - sum(terms)  # [K, N]
    error = every.var(0, correction=0).sum().sqrt() / every.shape[1]
    if num_samples > 1:
        error = error / math.sqrt(num_samples - 1)
    return Bound(
        elbo=float(every.mean()),
        elbo_std_error=float(error) if num_samples > 1 else math.nan,
        reconstruction=float(likelihood.mean()),
        kl={name: float(term.mean()) for name, term in zip(kinds, terms, strict=True)},
        kl_kind=kinds,
        num_samples=num_samples,
        per_datum=every.mean(0).cpu(),
    )


def _terms(
    record: LogWeights, folded: bool, num_samples: int, kinds: dict[str, str]
) -> list[Tensor]:
    """log p(x|z) and each site's KL term `[K, n]`; fills in each term's kind."""
    if not record.observed:
        raise PairError(
            "the model observes no site, so nothing is reconstructed; hand the data to one "
            "of its sites with obs="
        )
    if record.entangled:
        latent, observed = record.entangled[0]
        raise PairError(
            f"site '{latent}' shares values that are summed over with '{observed}', so its KL term "
            "does not stand by itself; ask log_marginal, whose estimates have the ELBO as a whole"
        )
    found = [record.log_likelihood]
    for name, log_q in record.log_q.items():
        # Auxiliary and observed guide sites have no latent counterpart in the model.
        paired = name in record.latents
        term = log_q - record.log_p[name] if paired else log_q
        kinds[name] = "Monte Carlo"
        closed = site_kl(record, name) if paired else None
        if closed is not None and closed.numel() == log_q.numel():
            if folded:  # rows run over data, then particles
                closed = closed.reshape(-1, num_samples).T
            term, kinds[name] = closed, "analytic"
        found.append(term)
    return found

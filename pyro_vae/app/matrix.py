"""Every prior with every guide: which work together, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_vae.app.tables import say, show_table
from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.priors.base import Prior
from pyro_vae.spec import Reason, VAESpec, refusals

MARKS: dict[str, str] = {
    "levels differ": "L",
    "supports differ": "S",
    "no density there": "D",
    "fields are missing": "F",
}


@dataclass(frozen=True)
class Combination:
    """A prior with a guide, in a spec that gives both what they ask for: levels, labels, a mask.

    `reason` and `text` say why it is refused; empty where it works.
    """

    prior: str
    guide: str
    fields: dict[str, Any]
    reason: Reason | str = ""
    text: str = ""

    @property
    def works(self) -> bool:
        return not self.reason


def combinations(latent_dim: int = 3) -> Iterator[Combination]:
    """Every prior with every guide, by names with their default fields."""
    priors: Any = Prior.registry
    guides: Any = Guide.registry
    for prior in priors:
        for guide in guides:
            yield combination(prior, guide, latent_dim)


def combination(prior: str, guide: str, latent_dim: int = 3) -> Combination:
    """One prior with one guide. The prior says of how many levels, and whether there are labels."""
    p, q = Prior.registry[prior], Guide.registry[guide]
    fields: dict[str, Any] = {"prior": prior, "guide": guide, "latent_dim": latent_dim}
    for part in (p, q):
        needed = [name for name, field in part.model_fields.items() if field.is_required()]
        if needed:
            text = f"{part.family} '{part.name}' has no default for {', '.join(needed)}"  # type: ignore[attr-defined]
            return Combination(prior, guide, fields, "fields are missing", text)
    if p.levels == "many":  # type: ignore[attr-defined]
        fields["latent_dim"] = (latent_dim, 2)
    if p().labelled:  # type: ignore[attr-defined]
        fields |= {"label": "condition", "classes": 3}
    if q.needs_mask:  # type: ignore[attr-defined]
        fields["missing"] = True
    try:
        VAESpec(**fields)
    except SpecError as error:
        # Built unchecked, to ask for the reason that the sentence belongs to.
        plain = VAESpec()
        whole = {name: getattr(plain, name) for name in VAESpec.model_fields}
        spec = VAESpec.model_construct(**{**whole, **fields, "prior": p(), "guide": q()})
        for refusal in refusals(spec):
            return Combination(prior, guide, fields, refusal.reason, refusal.text)
        raise AssertionError(f"{prior} with {guide}: {error}") from error
    return Combination(prior, guide, fields)


def show() -> None:
    """Print the matrix: one row a prior, with the guides that fit and those that do not."""
    found = list(combinations())
    rows = []
    for prior in Prior.registry:  # type: ignore[attr-defined]
        own = [c for c in found if c.prior == prior]
        reasons = Counter(MARKS[c.reason] for c in own if not c.works)
        refused = (f"{n} {mark}" for mark, n in sorted(reasons.items()))
        works = ", ".join(c.guide for c in own if c.works)
        rows.append((prior, works or "none", ", ".join(refused)))
    show_table("priors and guides", ("prior", "guides that work", "refused"), rows)
    say(summary(found))


def summary(found: Sequence[Combination]) -> str:
    """How many work, and how many are refused for which reason."""
    reasons = Counter(c.reason for c in found if not c.works)
    why = ", ".join(f"{n} because {r} ({MARKS[r]})" for r, n in sorted(reasons.items()))
    works = sum(c.works for c in found)
    count = len(Likelihood.registry)  # type: ignore[arg-type]
    return (
        f"{len(found)} pairs of a prior and a guide: {works} work, with every one of {count} "
        f"likelihoods; refused: {why}."
    )

"""A component of each family as the README writes it: short, trained from YAML, loaded back."""

import re
from pathlib import Path

import pydantic
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import inference
import pyro_vae as pv
from pyro_vae.app.cli import main
from pyro_vae.app.importing import import_module
from pyro_vae.app.matrix import combination
from pyro_vae.errors import RequestError

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Your own component\n")[1].split("\n## ")[0]
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", SECTION, re.M | re.S))
MINE = [name for name in FILES if name.endswith(".py")]
# Of each family: the README's file, and what to write in YAML to use it.
FAMILIES = {
    "prior": ("logistic.py", ["model.prior=logistic", "model.prior.scale=0.5"]),
    "guide": ("laplace_guide.py", ["model.guide=laplace_guide"]),
    "likelihood": ("gumbel.py", ["model.likelihood=gumbel"]),
    "network": ("skip.py", ["model.encoder=skip", "model.decoder=skip"]),
    "objective": ("capacity.py", ["objective=capacity", "objective.nats=3"]),
    "prior of two levels": (
        "two_laplaces.py",
        ["model.prior=two_laplaces", "model.latent_dim=[6,2]", "model.guide=bottom_up"],
    ),
}
SHORT = ["train.epochs=1", "data.train_size=200", "data.test_size=20", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch, own_components):
    """A fresh folder with the README's files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "my.yaml").write_text("data: {name: digits}\nmodel: {latent_dim: 4}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_family_has_a_short_example():
    assert {file for file, _ in FAMILIES.values()} == set(MINE)
    for name in MINE:
        lines = [line for line in FILES[name].splitlines() if line.strip()]
        assert 5 < len(lines) < 20, name


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_from_yaml_evaluates_and_loads(family, folder, capsys):
    file, changes = FAMILIES[family]
    name = changes[0].split("=")[1]
    own = ["--import", file]
    assert main(["train", "my.yaml", *changes, *own, *SHORT, "--out", "run"]) == 0
    assert main(["evaluate", "run", *own, "--samples", "20", "--quiet"]) == 0
    assert main(["generate", "run", *own]) == 0
    listed = family.split()[0] + "s"
    assert main(["list", listed, *own]) == 0
    assert name in capsys.readouterr().out
    vae = pv.load("run")
    assert vae.generate(3).shape == (3, 8, 8)
    digits = pv.data.Digits().load()
    estimate = inference.log_marginal(
        vae.model,
        vae.guide,
        digits.test[:20],
        estimator=inference.Importance(num_samples=20),
    )
    assert bool(estimate.value.isfinite().all())
    whole = (folder / "run/spec.yaml").read_text()
    assert re.search(rf"name: {name}\b", whole)


def test_all_of_them_together(folder):
    imports = [word for name in MINE for word in ("--import", name)]
    assert main(["train", "mine.yaml", *imports, *SHORT, "--out", "run"]) == 0
    assert main(["evaluate", "run", *imports, "--samples", "20", "--quiet"]) == 0
    spec = pv.load("run").spec
    names = [spec.prior.name, spec.guide.name, spec.likelihood.name, spec.encoder.name]
    assert names == ["logistic", "laplace_guide", "gumbel", "skip"]


def test_the_capacity_objective_holds_the_kl_where_it_should(folder):
    import_module("capacity.py")
    digits = pv.data.Digits().load()
    kls = []
    for nats in (1.0, 12.0):
        torch.manual_seed(0)
        vae = pv.VAE(data_shape=(8, 8), latent_dim=8).initialize(digits.train)
        objective = inference.OBJECTIVES["capacity"](nats=nats, weight=20.0)
        inference.fit(
            vae.model,
            vae.guide,
            digits.train,
            objective=objective,
            epochs=12,
            learning_rate=5e-3,
            progress=False,
        )
        with torch.no_grad():
            q = vae.encode(digits.test)
            kls.append(
                torch.distributions.kl_divergence(
                    q, vae.prior.distribution().expand([len(digits.test)])
                )
            )
    for kl, nats in zip(kls, (1.0, 12.0), strict=True):
        assert abs(float(kl.mean()) - nats) < 0.3 * nats + 0.3


def test_an_objective_of_ones_own_is_traced_as_it_is(folder):
    import_module("capacity.py")
    digits = pv.data.Digits().load()
    vae = pv.VAE(data_shape=(8, 8), latent_dim=3)
    x = digits.train[:16]
    objective = inference.OBJECTIVES["capacity"](num_particles=4)
    traced = inference.trace(vae.model, vae.guide, x, objective=objective)
    loss = traced(traced.parameters, x, beta=1.0)
    assert loss.shape == ()
    assert bool(loss.isfinite())


def test_the_guide_of_ones_own_goes_with_a_vamp_prior(folder):
    changes = ["model.guide=laplace_guide", "model.prior=vamp", "model.prior.components=20"]
    own = ["--import", "laplace_guide.py"]
    assert main(["train", "my.yaml", *changes, *own, *SHORT, "--out", "run"]) == 0


def test_a_likelihood_of_ones_own_leaves_missing_values_out(folder):
    import_module("gumbel.py")
    vae = pv.VAE(data_shape=(8, 8), latent_dim=2, likelihood="gumbel", missing=True)
    x, mask = torch.rand(5, 8, 8), torch.rand(5, 8, 8) < 0.5
    z = torch.zeros(5, 2)
    p = vae.likelihood.marginal(vae.decode(z), mask)
    each = vae.decode(z).base_dist.log_prob(x)
    torch.testing.assert_close(p.log_prob(x), (each * mask).sum((1, 2)))


def test_a_prior_that_knows_labels(folder):
    class Shifted(pv.Prior, name="shifted"):
        """p(z|y) = N(z; y, I)."""

        labelled = True

        def build(self, shapes):
            return ShiftedModule(shapes)

    class ShiftedModule(pv.priors.PriorModule):
        def distribution(self, y=None):
            loc = y.unsqueeze(-1).expand(*y.shape, *self.shapes.latent).float()
            return dist.Normal(loc, 1.0).to_event(1)

    assert main(["train", "my.yaml", "model.prior=shifted", "model.label=condition", *SHORT]) == 0
    assert main(["train", "my.yaml", "model.prior=shifted", *SHORT]) == 2


# Mistakes of whoever writes one ------------------------------------------------------------------


def said_of(capsys, *words) -> str:
    assert main(["train", "my.yaml", *words, *SHORT]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_component_that_builds_nothing(folder, capsys):
    class Nothing(pv.Prior, name="nothing"):
        """Writes no build."""

    assert "Nothing must write build(shapes)" in said_of(capsys, "model.prior=nothing")


@pytest.mark.parametrize(
    ("family", "field", "expected"),
    [
        (pv.Prior, "prior", "PriorModule"),
        (pv.Guide, "guide", "GuideModule"),
        (pv.Likelihood, "likelihood", "LikelihoodModule"),
        (pv.Network, "encoder", "nn.Module"),
    ],
)
def test_a_component_that_builds_something_else(family, field, expected, folder, capsys):
    class Odd(family, name="odd"):
        """Builds a thing of no use."""

        def build(self, *arguments):
            return 3.0 if family is pv.Network else nn.Linear(2, 2)

    said = said_of(capsys, f"model.{field}=odd")
    assert "'odd': build returned a" in said
    assert expected in said


def test_a_distribution_without_event_dimensions(folder, capsys):
    (folder / "flat.py").write_text(
        FILES["logistic.py"].replace(".to_event(1)", "").replace('"logistic"', '"flat"')
    )
    said = said_of(capsys, "model.prior=flat", "--import", "flat.py")
    assert "site z" in said
    assert ".to_event(" in said


def test_an_objective_that_forgets_the_mean_over_rows(folder, capsys):
    text = FILES["capacity.py"].replace("rows.mean(", "(").replace('"capacity"', '"forgetful"')
    (folder / "forgetful.py").write_text(text)
    said = said_of(capsys, "objective=forgetful", "--import", "forgetful.py")
    assert "returned a tensor [" in said
    assert "rows.mean" in said


def test_a_name_that_is_taken(folder):
    (folder / "again.py").write_text(FILES["capacity.py"].replace('"capacity"', '"elbo"'))
    with pytest.raises(RequestError, match=r"'elbo' is already defined by .*give again\.Capacity"):
        import_module("again.py")
    assert inference.OBJECTIVES["elbo"] is inference.ELBO
    assert list(inference.OBJECTIVES).count("elbo") == 1


def test_an_objective_without_a_name_is_not_found_by_one():
    class Unnamed(inference.Objective):
        """Named by nobody."""

    class Twin(inference.ELBO):
        """Has its parent's name, and leaves it the place."""

    assert not {Unnamed, Twin} & set(inference.OBJECTIVES.values())


def test_a_field_without_a_default_is_no_end_of_the_matrix(folder):
    class Required(pv.Prior, name="required"):
        """Asks for a number."""

        number: pydantic.PositiveInt

    found = combination("required", "mean_field")
    assert not found.works
    assert found.text == "prior 'required' has no default for number"


def test_a_ladder_asks_for_gaussian_levels(folder, capsys):
    changes = FAMILIES["prior of two levels"][1][:2]
    said = said_of(capsys, *changes, "model.guide=ladder", "--import", "two_laplaces.py")
    assert "bottom_up, top_down" in said

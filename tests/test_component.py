"""Values: equal after any round trip, refused in readable lines, extended by subclassing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pydantic import PositiveInt
from torch import nn

import pyro_vae as pv
from pyro_vae.component import Registry, nearest
from pyro_vae.errors import Problem, SpecError
from pyro_vae.guides.base import GuideModule
from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.priors.base import PriorModule
from pyro_vae.yaml_files import dump_yaml, parse_yaml

PACKAGE = Path(pv.__file__).parent

SPECS = [
    pv.VAESpec(),
    pv.VAESpec(data_shape=(3, 8, 9), latent_dim=5),
    pv.VAESpec(
        data_shape=(28, 28),
        prior=pv.priors.VampPrior(components=17, init="noise"),
        guide="full_rank",
        likelihood=pv.likelihoods.Gaussian(sigma="per_pixel", scale=0.5, floor=1e-4),
        encoder=pv.networks.MLP(hidden=(7, 5, 3), activation="gelu"),
        decoder=pv.networks.GatedMLP(hidden=()),
    ),
    pv.VAESpec(
        data_shape=(28, 28),
        prior=pv.priors.GaussianMixture(components=3, spread=1e-3, min_scale=1e-5),
        guide=pv.guides.IAF(depth=4, hidden=(64, 65), context=3),
        encoder=pv.networks.Conv(channels=(4,), hidden=9, activation="elu", role="encoder"),
        decoder="linear",
    ),
]


def lines(call, *args, **fields):
    with pytest.raises(SpecError) as caught:
        call(*args, **fields)
    return str(caught.value).split("\n")


def train(vae, steps=20):
    x = torch.rand(16, *vae.shapes.data).round()
    vae.initialize(x)
    svi = pyro.infer.SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
    )
    return [svi.step(x) for _ in range(steps)]


# Round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_round_trip(spec):
    ways = {
        "dict": pv.VAESpec.from_dict(spec.to_dict()),
        "fields": pv.VAESpec(**{name: getattr(spec, name) for name in pv.VAESpec.model_fields}),
        "yaml": pv.VAESpec.from_dict(parse_yaml(dump_yaml(spec.to_dict()))),
        "json": pv.VAESpec.from_dict(json.loads(json.dumps(spec.to_dict(), allow_nan=False))),
        "pydantic json": pv.VAESpec.model_validate_json(spec.model_dump_json()),
        "pydantic python": pv.VAESpec.model_validate(spec.model_dump()),
        "copy": spec.model_copy(deep=True),
    }
    for way, back in ways.items():
        assert back == spec, way
        assert hash(back) == hash(spec), way
        assert back.to_dict() == spec.to_dict(), way
    assert len({spec, *ways.values()}) == 1


def test_specs_that_differ_are_unequal():
    assert len(set(SPECS)) == len(SPECS)
    one, other = (pv.VAESpec(prior=pv.priors.VampPrior(components=n)) for n in (10, 11))
    assert one != other


@pytest.mark.parametrize(
    "value",
    [
        cls()
        for family in (pv.Prior, pv.Guide, pv.Likelihood, pv.Network)
        for cls in family.registry.values()
    ],
    ids=lambda value: f"{value.family}-{value.name}",
)
def test_a_component_by_itself_round_trips(value):
    held = json.loads(json.dumps(value.to_dict()))
    assert held["name"] == value.name
    assert type(value).from_dict(held) == value
    assert type(value).resolve(held) == value == type(value).resolve(value.name)
    fields = {key: item for key, item in held.items() if key != "name"}
    assert type(value).from_dict(fields) == value


def test_from_dict_refuses_another_component_of_the_family():
    [line] = lines(pv.priors.VampPrior.from_dict, {"name": "standard_normal"})
    assert "StandardNormal" in line
    assert "VampPrior" in line


def test_name_mapping_and_value_are_the_same():
    by_name = pv.VAESpec(prior="vamp")
    assert by_name == pv.VAESpec(prior={"name": "vamp"}) == pv.VAESpec(prior=pv.priors.VampPrior())


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        pv.VAESpec().latent_dim = 3
    with pytest.raises(ValueError, match="frozen"):
        pv.VAESpec(prior="vamp").prior.components = 3


# Mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"prior": "vmap"}, "prior", "no prior is called 'vmap'; did you mean 'vamp'?"),
        ({"guide": {"name": "meanfield"}}, "guide", "did you mean 'mean_field'?"),
        ({"likelihood": "bernouli"}, "likelihood", "did you mean 'bernoulli'?"),
        ({"encoder": "cnov"}, "encoder", "no network is called 'cnov'; did you mean 'conv'?"),
        (
            {"prior": "qqqqq"},
            "prior",
            "Choices: categorical, conditional, dirichlet, exemplar, flow",
        ),
        ({"latent_dims": 3}, "latent_dims", "no such field of VAESpec; did you mean 'latent_dim'?"),
        (
            {"prior": {"name": "vamp", "componets": 3}},
            "prior.componets",
            "no such field of VampPrior; did you mean 'components'?",
        ),
        ({"latent_dim": "many"}, "latent_dim", "(got 'many')"),
        ({"latent_dim": 2.5}, "latent_dim", "(got 2.5)"),
        ({"latent_dim": None}, "latent_dim", "(got None)"),
        ({"data_shape": (28, 0)}, "data_shape.1", "expected a number above 0 (got 0)"),
        ({"data_shape": ()}, "data_shape", "expected a list of 1 or more (got"),
        ({"data_shape": 28}, "data_shape", "(got 28)"),
        ({"encoder": {"name": "mlp", "hidden": [10, -1]}}, "encoder.hidden.1", "(got -1)"),
        ({"encoder": {"name": "mlp", "activation": "tan"}}, "encoder.activation", "'tanh'"),
        (
            {"encoder": {"name": "conv", "channels": []}},
            "encoder.channels",
            "expected a list of 1 or more (got",
        ),
        ({"prior": {"components": 3}}, "prior", "a mapping with 'name'"),
        ({"prior": {"name": 3}}, "prior", "a mapping with 'name'"),
        ({"prior": 3}, "prior", "expected the name of a prior"),
        ({"prior": None}, "prior", "expected the name of a prior"),
        ({"prior": pv.priors.VampPrior}, "prior", "expected the name of a prior"),
        ({"prior": pv.guides.MeanField()}, "prior", "MeanField is no prior"),
        ({"encoder": pv.VAESpec()}, "encoder", "VAESpec is no network"),
        (
            {"likelihood": {"name": "gaussian", "scale": 0}},
            "likelihood.scale",
            "expected a number above 0",
        ),
        (
            {"likelihood": {"name": "gaussian", "scale": float("nan")}},
            "likelihood.scale",
            "finite number (got nan)",
        ),
        (
            {"likelihood": {"name": "gaussian", "scale": float("inf")}},
            "likelihood.scale",
            "finite number (got inf)",
        ),
        (
            {"likelihood": {"name": "gaussian", "scale": 1e-3}},
            "likelihood",
            "scale 0.001 lies below floor 0.01",
        ),
        ({"latent_dim": torch.zeros(3, 3)}, "latent_dim", "(got tensor"),
        ({"prior": "two\nlines"}, "prior", "no prior is called 'two\\nlines'"),
        ({"two\nlines": 1}, "two lines", "no such field"),
        ({"latent_dim": "x" * 10_000}, "latent_dim", "..."),
    ],
)
def test_a_mistake_is_one_line_with_the_field_and_the_choices(fields, path, said):
    [line] = lines(pv.VAESpec.from_dict, fields)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert len(line) < 400
    with pytest.raises(SpecError, match="^" + path.split(".")[0].split(" ")[0]):
        pv.VAE(**{"data_shape": (4,), **fields})


def test_several_mistakes_are_one_line_each():
    fields = {
        "prior": {"name": "vamp", "components": 0, "colour": "red"},
        "guide": "meen_field",
        "encoder": {"name": "mlp", "hidden": ["a", 3, -1]},
        "latent_dim": "x",
        "priors": 1,
    }
    found = lines(pv.VAESpec.from_dict, fields)
    assert sorted(line.split(": ")[0] for line in found) == [
        "encoder.hidden.0",
        "encoder.hidden.2",
        "guide",
        "latent_dim",
        "prior.colour",
        "prior.components",
        "priors",
    ]


@pytest.mark.parametrize("junk", [None, 3, "vamp", ["prior"], []])
def test_a_spec_that_is_no_mapping(junk):
    [line] = lines(pv.VAESpec.from_dict, junk)
    assert "expected a mapping of VAESpec fields" in line


def test_errors_are_value_errors_with_their_problems():
    with pytest.raises(ValueError) as caught:
        pv.VAESpec(latent_dim=0)
    assert isinstance(caught.value, pv.PyroVAEError)
    [problem] = caught.value.problems
    assert problem.path == ("latent_dim",)
    assert str(Problem(("a", "b"), "bad")) == "a.b: bad"
    assert nearest("x", []).endswith("(none)")


# Names -------------------------------------------------------------------------------------


def test_two_classes_of_one_name_are_refused():
    [line] = lines(lambda: type("Other", (pv.Prior,), {"__module__": "elsewhere"}, name="vamp"))
    assert line.startswith("prior 'vamp' is already defined by pyro_vae.priors.vamp.VampPrior")
    assert "elsewhere.Other" in line
    assert pv.Prior.registry["vamp"] is pv.priors.VampPrior


def test_defining_the_same_class_again_is_accepted():
    def define():
        class Again(pv.Prior, name="again"):
            width: PositiveInt = 1

        return Again

    first, second = define(), define()
    try:
        assert pv.Prior.registry["again"] is second
        assert pv.VAESpec(prior="again").prior == second()
        [line] = lines(pv.VAESpec, prior=first())
        assert "make the value again" in line
    finally:
        del pv.Prior.registry._members["again"]


def test_families_have_names_of_their_own():
    assert "mean_field" in pv.Guide.registry
    assert "mean_field" not in pv.Prior.registry
    assert list(pv.Network.registry) == sorted(pv.Network.registry)
    assert len(Registry("empty")) == 0


def test_an_unnamed_subclass_is_no_component():
    class Unnamed(pv.priors.VampPrior):
        pass

    [line] = lines(pv.VAESpec, prior=Unnamed())
    assert line.startswith("prior: Unnamed is no prior")


# JSON schema -------------------------------------------------------------------------------


def test_json_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(pv.VAESpec.model_json_schema()))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for field, family in {
        "prior": pv.Prior,
        "guide": pv.Guide,
        "likelihood": pv.Likelihood,
        "encoder": pv.Network,
        "decoder": pv.Network,
    }.items():
        names, *mappings = schema["properties"][field]["anyOf"]
        assert names["enum"] == list(family.registry)
        assert [one["title"] for one in mappings] == list(family.registry)
        assert all(one["description"] for one in mappings)
    for spec in SPECS:
        validator.validate(spec.to_dict())
    validator.validate(parse_yaml("prior: vamp\nlikelihood: {name: gaussian, floor: 1e-3}"))
    for bad in (
        "prior: vmap",
        "prior: {name: vamp, components: 0}",
        "prior: {name: vamp, componets: 3}",
        "prior: {components: 3}",
        "guide: vamp",
        "latent_dims: 3",
        "latent_dim: x",
        "data_shape: []",
        "encoder: {name: mlp, activation: tan}",
    ):
        assert not validator.is_valid(parse_yaml(bad)), bad
        lines(pv.VAESpec.from_dict, parse_yaml(bad))


# One's own components ----------------------------------------------------------------------


@pytest.fixture
def own_components():
    """A prior, a guide, a likelihood and a network of a user, for the length of a test."""
    families = [pv.Prior, pv.Guide, pv.Likelihood, pv.Network]
    held = [dict(family.registry) for family in families]

    class Shifted(pv.Prior, name="test_shifted"):
        """p(z) = N(z; shift, I)."""

        shift: float = 0.5

        def build(self, shapes):
            return ShiftedModule(shapes, self.shift)

    class ShiftedModule(PriorModule):
        def __init__(self, shapes, shift):
            super().__init__(shapes)
            self.loc = nn.Parameter(torch.full(shapes.latent, shift))

        def distribution(self, y=None):
            return dist.Normal(self.loc, 1.0).to_event(1)

    class HeavyTails(pv.Guide, name="test_heavy_tails"):
        """q(z|x) = Laplace(z; m(x), 0.1)."""

        def build(self, shapes, encoder):
            return HeavyTailsModule(shapes, encoder, shapes.latent_dim)

    class HeavyTailsModule(GuideModule):
        def encode(self, x, y=None):
            return self.encoder(x)

        def distribution(self, parameters):
            return dist.Laplace(parameters, 0.1).to_event(1)

    class Absolute(pv.Likelihood, name="test_absolute"):
        """p(x|z) = Laplace(x; decoder(z), 1)."""

        def build(self, shapes):
            return AbsoluteModule(shapes)

    class AbsoluteModule(LikelihoodModule):
        def forward(self, outputs):
            return dist.Laplace(outputs, 1.0).to_event(len(self.shapes.data))

    class Narrow(pv.Network, name="test_narrow"):
        """One hidden layer."""

        width: PositiveInt = 3

        def build(self, in_shape, out_shape):
            sizes = torch.Size(in_shape).numel(), torch.Size(out_shape).numel()
            first, last = nn.Linear(sizes[0], self.width), nn.Linear(self.width, sizes[1])
            return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)

    yield
    for family, members in zip(families, held, strict=True):
        family.registry._members.clear()
        family.registry._members.update(members)


@pytest.mark.parametrize("prior", ["test_shifted", "vamp"])
def test_own_components_by_name(prior, own_components, own_store):
    vae = pv.VAE.from_spec(
        {
            "data_shape": [2, 3],
            "latent_dim": 2,
            "prior": prior,
            "guide": "test_heavy_tails",
            "likelihood": {"name": "test_absolute"},
            "encoder": "test_narrow",
            "decoder": {"name": "test_narrow", "width": 4},
        }
    )
    before = {name: p.clone() for name, p in vae.named_parameters()}
    losses = train(vae)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert pv.VAESpec.from_dict(vae.spec.to_dict()) == vae.spec


@pytest.mark.parametrize("family", [pv.Prior, pv.Guide, pv.Likelihood, pv.Network])
def test_what_a_component_must_write_is_said(family):
    class Empty(family):
        pass

    arguments = [None] * (1 if family in (pv.Prior, pv.Likelihood) else 2)
    with pytest.raises(NotImplementedError, match="Empty must write build"):
        Empty().build(*arguments)


def test_deleting_a_file_removes_that_feature_only(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "pyro_vae", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "inference", tmp_path / "inference")
    for gone in ("priors/vamp.py", "guides/iaf.py", "networks/conv.py"):
        (tmp_path / "pyro_vae" / gone).unlink()
    program = """
import pyro_vae as pv
assert not hasattr(pv.priors, "VampPrior")
for prior in pv.Prior.registry:
    for guide in pv.Guide.registry:
        for likelihood in ("bernoulli", "gaussian"):
            try:
                fields = {"prior": prior, "guide": guide, "likelihood": likelihood}
                pv.VAE(data_shape=(4, 4), **fields).generate(2)
            except pv.SpecError as error:
                assert "that fit: " in str(error), error
print(*pv.Prior.registry, *pv.Guide.registry, *pv.Network.registry)
try:
    pv.VAE(data_shape=(4, 4), prior="vamp")
except pv.SpecError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names, refusal = done.stdout.splitlines()
    there = [*pv.Prior.registry, *pv.Guide.registry, *pv.Network.registry]
    assert names.split() == [name for name in there if name not in ("vamp", "iaf", "conv")]
    assert refusal.startswith("prior: no prior is called 'vamp'")

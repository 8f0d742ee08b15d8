"""VAE: the Pyro model and guide that a VAESpec builds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from os import PathLike
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.errors import Problem, RequestError, SpecError
from pyro_vae.given import Given, check_exposure, check_labels, check_values, read
from pyro_vae.guides.base import GuideModule
from pyro_vae.labels import Labels
from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.part import Shapes
from pyro_vae.priors.base import PriorModule
from pyro_vae.spec import VAESpec

FINALIZED = 1000  # training data decoded at a time


class VAE(nn.Module):
    """A variational autoencoder whose `model` and `guide` are Pyro programs.

        z ~ p(z),  x ~ p(x | decoder(z));    q(z|x) = guide(encoder(x))

    With labels (`label=`) p(z|y), p(x|z,y) and q(z|x,y); see `VAESpec` for their roles, for missing
    values and for exposures. All of its functions take the batch's tensors in the order of
    `columns`, or by name: `vae.encode(x, y)`, `vae.encode(x, mask=mask)`.

    Args: the fields of `VAESpec` (`data_shape` is required).
    Raises: `SpecError`, one line per mistake.
    References: Kingma and Welling, arXiv:1312.6114; Rezende et al., arXiv:1401.4082.

    >>> import pyro_vae as pv, torch
    >>> vae = pv.VAE(data_shape=(8, 8), latent_dim=2, prior="gaussian_mixture")
    >>> vae.generate(3).shape
    torch.Size([3, 8, 8])
    """

    def __init__(self, **fields: Any):
        super().__init__()
        self.spec = spec = VAESpec(**fields)
        _check_whole(spec)
        self.columns, data = spec.columns, spec.data_shape or ()
        classes = spec.classes or 0
        label = [(classes,)] if spec.label in ("condition", "latent") else []
        beside = [data] if spec.missing else []
        self.joining = spec.encoder.joining(data, [*beside, *label])
        latent = (sum(spec.levels),) if spec.levels else spec.prior.latent_shape(spec.latent_dim)
        self.shapes = shapes = Shapes(
            data, latent, spec.levels, seen=self.joining.shape, classes=classes
        )
        self.bayesian = spec.decoder.bayesian
        self.prior = _built(spec.prior, PriorModule, shapes)
        self.guide_module = _built(spec.guide, GuideModule, shapes, spec.encoder)
        self.decoder_joining = spec.decoder.joining(self.prior.decoded, label)
        self.decoder = spec.decoder.make(
            self.decoder_joining.shape, spec.likelihood.param_shape(data)
        )
        self.likelihood = _built(spec.likelihood, LikelihoodModule, shapes)
        self.labels: Any = None
        if spec.label != "none":
            classifier = None
            if spec.label == "latent":
                self.classifier_joining = spec.classifier.joining(data, beside)
                classifier = spec.classifier.make(self.classifier_joining.shape, (classes,))
            self.labels = Labels(classes, classifier, needed=spec.label == "condition")
        for part in self.parts():
            part.bind(self)

    @classmethod
    def from_spec(cls, spec: VAESpec | Mapping | str | PathLike) -> VAE:
        """Build from a `VAESpec`, a mapping, or the path of a YAML file."""
        if isinstance(spec, str | PathLike):
            from pyro_vae.yaml_files import load_yaml

            spec = load_yaml(spec)
        if not isinstance(spec, VAESpec):
            spec = VAESpec.from_dict(spec)
        return cls(**{name: getattr(spec, name) for name in VAESpec.model_fields})

    def parts(self) -> tuple:
        return self.prior, self.guide_module, self.likelihood

    # The Pyro programs ---------------------------------------------------------------------

    def model(self, *values: Tensor | None, **named: Tensor | None) -> Tensor:
        """p(z) p(x|z). `x [batch, *data_shape]`; without x, one datum (or one a label) is drawn."""
        given = self.read(*values, **named)
        for name in ("prior", "decoder", "likelihood"):
            pyro.module(name, getattr(self, name))
        if self.spec.label in ("latent", "cluster"):
            pyro.module("labels", self.labels)
        weights = self.decoder.sample_prior() if self.bayesian else None
        with pyro.plate("data", given.size, dim=-1):
            prior = self._prior_for(given)
            given = replace(given, y=self._label(given))
            z = prior(given.y)
            x = pyro.sample("x", self.observation(z, given, weights), obs=given.x)
            if self.spec.guide.widens_model:
                self.guide_module.widen_model(self._seen(replace(given, x=x)), z)
            return x

    def guide(self, *values: Tensor | None, **named: Tensor | None) -> Tensor:
        """q(z|x). `x [batch, *data_shape]`."""
        given = self.read(*values, **named)
        if given.x is None:
            raise RequestError("guide: q(z|x) needs x; use model() alone to draw from the prior")
        pyro.module("guide", self.guide_module)
        if self.spec.label == "latent":
            pyro.module("labels", self.labels)
        if self.bayesian:
            pyro.module("decoder", self.decoder)
            self.decoder.sample_guide()
        with pyro.plate("data", given.size, dim=-1):
            if self.spec.label == "latent":
                y = self.labels.sample_posterior(self._classified(given), given.y)
                given = replace(given, y=y)
            return self.guide_module(self._seen(given), given)

    def read(self, *values: Tensor | None, **named: Tensor | None) -> Given:
        """The batch by name, checked. Raises: `RequestError`."""
        given = read(self.columns, self.shapes, values, named)
        if self.spec.label == "condition" and given.x is not None and given.y is None:
            raise RequestError("y: missing; this VAE is p(x|y), so give the labels of x")
        check_values(given.y, self.shapes.classes, needed=self.spec.label == "condition")
        check_exposure(given.exposure)
        if self.spec.missing and given.x is not None and given.mask is None:
            raise RequestError("mask: missing; give one like x, True where a value is known")
        if given.mask is not None and given.x is not None:  # nothing leaks
            given = replace(given, x=torch.where(given.mask, given.x, 0.0))
        if self.spec.exposure and given.x is not None and given.exposure is None:
            raise RequestError("exposure: missing; give one positive number for each datum")
        return given

    def _label(self, given: Given) -> Tensor | None:
        """The model's label: none, the condition, or the site "y"."""
        if self.spec.label == "none":
            return None
        if self.spec.label == "condition":
            if given.y is None:
                raise RequestError("y: missing; this VAE is p(x|y), so say of which labels")
            return given.y
        return self.labels.sample_prior()

    def _prior_for(self, given: Given) -> Any:
        """The prior; in training, where it leaves the data themselves out, that of these data."""
        if given.x is None or not self.spec.prior.leaves_out or not self.training:
            return self.prior
        return self.prior.for_data(self._seen(given))

    def _seen(self, given: Given) -> Tensor:
        """What the encoder sees: x, the mask and the label (zeros for one that is missing)."""
        beside = self._mask(given)
        if self.spec.label in ("condition", "latent"):
            beside.append(self._code(given))
        return self.joining(given.x, beside)  # type: ignore[arg-type]

    def _code(self, given: Given) -> Tensor:
        x: Tensor = given.x  # type: ignore[assignment]
        y = given.y
        if y is None:
            y = torch.full(x.shape[:1], -1, device=x.device)
        return self.labels.one_hot(y)

    def _classified(self, given: Given) -> Tensor:
        return self.classifier_joining(given.x, self._mask(given))  # type: ignore[arg-type]

    def _mask(self, given: Given) -> list[Tensor]:
        if not self.spec.missing:
            return []
        return [torch.ones_like(given.x) if given.mask is None else given.mask]  # type: ignore

    def observation(self, z: Tensor, given: Given, weights: Tensor | None = None) -> Any:
        """p(x|z, y), of the values that are known."""
        outputs = self.outputs(z, given.y, weights)
        if given.exposure is not None:
            p = self.likelihood(outputs, given.exposure)
        else:
            p = self.likelihood(outputs)
        return p if given.mask is None else self.likelihood.marginal(p, given.mask)

    def outputs(self, z: Tensor, y: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """The decoder's numbers `[..., *param_shape]`, of which the likelihood is made.

        `weights` of a Bayesian decoder; their means unless given.
        """
        handed = self.prior.handed(z)
        if self.decoder_joining.extras:
            handed = self.decoder_joining(handed, [self.labels.one_hot(y)])
        return self.decoder(handed, weights) if self.bayesian else self.decoder(handed)

    def log_prior(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(z|y) `[...]`; without a label log p(z), in which clusters are summed over."""
        if y is not None or self.spec.label == "none":
            return self.prior.distribution(y).log_prob(z)
        return self._with_every_label(z).logsumexp(-1)

    def _with_every_label(self, z: Tensor) -> Tensor:
        """log p(z, y) `[..., classes]`."""
        classes = torch.arange(self.shapes.classes, device=z.device)
        scores = torch.stack([self.prior.distribution(y).log_prob(z) for y in classes], -1)
        return scores + self.labels.prior().logits

    # In plain words ------------------------------------------------------------------------

    def initialize(self, *values: Tensor, **named: Tensor) -> VAE:
        """Set what comes from training data `x [N, *data_shape]`: output bias, scales, ..."""
        given = self.read(*values, **named)
        x: Tensor = given.x  # type: ignore[assignment]
        seen = self._seen(given)
        self.prior.initialize(seen)
        self.guide_module.initialize(seen)
        if given.mask is not None:  # as if the missing values were like the others
            known = given.mask.to(x.dtype)
            mean = (x * known).sum(0) / known.sum(0).clamp_min(1)
            x = torch.where(given.mask, x, mean)
        self.likelihood.initialize(x)
        told = () if given.exposure is None else (given.exposure,)
        start = self.likelihood.initial_output(x, *told)
        if start is not None:
            self.decoder.set_output_bias(start)
        return self

    def encode(self, *values: Tensor, **named: Tensor):
        """q(z|x) as a distribution with batch shape `[batch]` and event shape `shapes.latent`.

        Where a latent label is missing, the most probable one under q(y|x) stands for it.
        """
        given = self.read(*values, **named)
        given = replace(given, y=self._known(given))
        parameters = self.guide_module.encode(self._seen(given), given)
        return self.guide_module.distribution(parameters)

    @torch.no_grad()
    def finalize(self, *values: Tensor, **named: Tensor) -> VAE:
        """Set what is fitted to all training data in closed form: an `optimal` sigma."""
        given = self.read(*values, **named)
        columns = given_values(given, self.columns)

        def decoded():
            for rows in zip(*(item.split(FINALIZED) for item in columns), strict=True):
                some = self.read(*rows)
                y = self._known(some)
                yield self.outputs(self.encode(*rows).sample(), y), some.x, some.mask

        self.likelihood.finalize(decoded())
        return self

    def likely_labels(self, *values: Tensor, **named: Tensor) -> Tensor | None:
        """Labels `[batch]`: those given, and where a latent one is missing the most probable."""
        return self._known(self.read(*values, **named))

    def _known(self, given: Given) -> Tensor | None:
        if self.spec.label != "latent":
            return given.y
        likely = self.labels.posterior(self._classified(given)).logits.argmax(-1)
        return likely if given.y is None else torch.where(given.y < 0, likely, given.y)

    def decode(self, z: Tensor, y: Tensor | None = None, exposure: Tensor | None = None):
        """p(x|z), or p(x|z,y), as a distribution, for `z [..., *latent]` and `y [...]`."""
        if self.decoder_joining.extras and y is None:
            raise RequestError("y: missing; the decoder of this VAE is p(x|z,y)")
        check_values(y, self.shapes.classes, needed=self.spec.label == "condition")
        return self.observation(z, Given(y=y, exposure=exposure))

    def draw_prior(self, num: int, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`num` draws of the latent `[num, *latent]`, and their labels `[num]` where there are any.

        Labels are drawn, too, unless they are given.
        """
        if self.spec.label == "none":
            y = None
        elif y is None:
            y = self.labels.prior().expand([num]).sample()
        return self.prior.distribution(y).expand([num]).sample(), y

    @torch.no_grad()
    def latent_mean(self, *values: Tensor, num_samples: int = 64, **named: Tensor) -> Tensor:
        """E_q[z|x] `[batch, *latent]`: exact where the guide knows it, else a sample mean."""
        q = self.encode(*values, **named)
        try:
            return q.mean
        except NotImplementedError:
            return q.sample((num_samples,)).mean(0)

    @torch.no_grad()
    def generate(self, num: int = 1, *, y: Tensor | int | None = None, mean: bool = True) -> Tensor:
        """`num` data from the model `[num, *data_shape]`: means of p(x|z), or draws.

        `y`: their labels `[num]`, or one for all; drawn from p(y) unless given.
        """
        if num < 1:
            raise RequestError(f"num: {num}; ask for one or more")
        if isinstance(y, Integral):
            y = torch.full((num,), int(y), device=next(self.parameters()).device)
        if y is not None:
            if self.spec.label == "none":
                raise RequestError("y: this VAE has no labels; leave it out")
            if not isinstance(y, Tensor) or tuple(y.shape) != (num,):
                got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else repr(y)
                raise RequestError(f"y: {got}; expected one label, or a tensor of {num}")
            check_labels(y, self.shapes.classes)
            check_values(y, self.shapes.classes, needed=True)
        z, y = self.draw_prior(num, y)
        p = self.decode(z, y)
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, *values: Tensor, mean: bool = True, **named: Tensor) -> Tensor:
        """x passed through one draw of q(z|x) and back: `[batch, *data_shape]`.

        With a mask, all values come back: what was missing is imputed.
        """
        given = self.read(*values, **named)
        z = self.encode(*given_values(given, self.columns)).sample()
        p = self.decode(z, self._known(given), given.exposure)
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def classify(self, *values: Tensor, num_samples: int = 64, **named: Tensor) -> Tensor:
        """Probabilities of labels `[batch, classes]`: q(y|x), or of clusters E_q[p(y|z)]."""
        given = self.read(*values, **named)
        if self.spec.label == "latent":
            return self.labels.posterior(self._classified(given)).probs
        if self.spec.label != "cluster":
            raise RequestError(
                f"classify: label is '{self.spec.label}'; this needs a latent label or a cluster"
            )
        z = self.encode(*given_values(given, self.columns)).sample((num_samples,))
        return self._with_every_label(z).softmax(-1).mean(0)

    @property
    def num_weights(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters())


def given_values(given: Given, columns) -> list[Tensor]:
    return [getattr(given, name) for name in columns]


def _built(component: Any, kind: type, *arguments: Any) -> Any:
    """What a component builds. Raises: `SpecError` if it is no module of its family."""
    module = component.build(*arguments)
    if not isinstance(module, kind):
        raise SpecError(
            f"{component.family} '{component.name}': build returned a {type(module).__name__}; "
            f"expected a subclass of {kind.__name__}"
        )
    return module


def _check_whole(spec: VAESpec) -> None:
    if spec.data_shape is None:
        text = "missing; give the shape of one datum, e.g. (28, 28)"
        raise SpecError(Problem(("data_shape",), text))
    if spec.label != "none" and spec.classes is None:
        raise SpecError(Problem(("classes",), f"missing; label '{spec.label}' needs their number"))

"""Effect handlers run once: a Pyro pair as a pure function of tensors.

Pyro's handlers are Python and cost milliseconds a step, while the tensor program beneath them stays
the same from step to step. Here it is recorded once, below autograd, with parameters, batch and
beta as inputs; gradients are part of the record, so that custom ones are kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from inference.capture import capture, put_back, tensors_alone
from inference.errors import PairError, RequestError, Untraceable
from inference.isolation import (
    derived_seed,
    modes,
    modules_of,
    own_randomness,
    own_store,
    validation,
)
from inference.objectives.base import OBJECTIVES, Objective
from inference.objectives.elbo import ELBO
from inference.optimizer import by_name
from inference.pair import Pair, as_arguments, examine
from inference.particles import Scorer, record_of
from inference.precision import products
from inference.record import LogWeights
from inference.requests import member
from inference.suitability import check_gradients, check_objective

# Traced and eager run the same operations; this only forgives a library that sums in another order.
TOLERANCE = 1e-5
# The same for numbers that are 0 by cancellation.
SMALL = 1e-6

# So many particles that cannot be run at once are recorded one by one in a graph.
MOST_LOOPED = 8


def trace(
    model: Callable,
    guide: Callable,
    *arguments: Tensor,
    objective: Objective | str = ELBO(),  # noqa: B008  (a frozen value)
    num_data: int | None = None,
    plate: str | None = "data",
) -> Traced:
    """A pair's loss as a pure tensor function, recorded through Pyro's handlers once.

        loss(parameters, batch, beta) = -objective, in nats per datum

    For a training loop of one's own: the function costs what its tensor operations cost, draws
    fresh noise at each call from torch's generator, and can be compiled (`torch.compile(traced)`).
    What the handlers met is fixed: shapes and dtypes, modules' modes, numbers that are no tensors.
    Where one of them changes, trace once more; `Traced.check` tells.

    Args:
        model, guide: any Pyro pair whose latents can be reparametrized or enumerated; any at all
            for objectives that hold draws fixed.
        arguments: an example batch; other batches must have its shapes.
        objective: one of `inference.OBJECTIVES`, or its name; its warm-up is the caller's (`beta`).
        num_data: size of the data set, which latents outside the plate are divided by; by default
            that of the batch.
        plate: name of the data plate, or None.
    Returns: a `Traced`; its parameters are the live ones. Plain `pyro.param`s that the caller's
        store lacks are put there. Modules are traced in the mode that they are in.
    Raises: `Untraceable`, naming the site or the operation; `PairError`; `RequestError`.
    """
    arguments = as_arguments(arguments, "arguments")
    objective = member("objective", objective, Objective, OBJECTIVES)
    with own_store(share=True) as keep_params, own_randomness():
        with modes(modules_of(model, guide), training=False):  # a look leaves no statistics
            pair = objective.ready(examine(model, guide, arguments, plate))
            vectorize = False
            if objective.num_particles > 1:
                with contextlib.suppress(PairError):  # one particle at a time always works
                    vectorize = not Scorer(pair, arguments).folded
        check_objective(pair, objective, arguments, modules_of(model, guide))
        traced = trace_loss(
            pair, objective, arguments, num_data or len(arguments[0]), vectorize=vectorize
        )
        keep_params()
    return traced


@dataclass(frozen=True, repr=False)
class Traced:
    """The loss of a pair: a pure function of parameters, batch and beta.

    `graph(*parameters, *batch, beta)` returns `(loss, site_values, *gradients)`: the loss a float64
    scalar, and one float64 number for each sentence in `complaints`, which is true where that
    number is not finite. `parameters` maps names to the live, unconstrained tensors. Losses that
    are not finite are returned as they are.
    """

    graph: fx.GraphModule
    parameters: dict[str, Tensor]
    complaints: tuple[str, ...]
    shapes: tuple[tuple[torch.Size, torch.dtype], ...]
    # What was recorded, through the handlers: `(*batch, beta)` -> what the graph returns.
    eager: Callable
    pair: Pair

    def __call__(
        self, parameters: Mapping[str, Tensor], *batch: Tensor, beta: float | Tensor = 1.0
    ) -> Tensor:
        """The loss, differentiable once in `parameters` (all of `self.parameters`, by name).

        Raises: `RequestError` for other names or shapes, or where a gradient of data or beta is
            wanted, which was not recorded.
        """
        for name, item in (*((f"argument {i}", b) for i, b in enumerate(batch)), ("beta", beta)):
            if isinstance(item, Tensor) and item.requires_grad:
                raise RequestError(
                    f"{name} requires a gradient, but those recorded are of parameters alone; "
                    "hand in its values (.detach()), or make it a parameter of the pair"
                )
        return _Loss.apply(self, self._checked(batch), self._beta(beta), *self._values(parameters))

    def loss_and_grads(
        self, parameters: Mapping[str, Tensor], *batch: Tensor, beta: float | Tensor = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its gradients by parameter name."""
        inputs = *self._values(parameters), *self._checked(batch), self._beta(beta)
        with torch.no_grad():
            loss, _, *gradients = self.graph(*inputs)
        return loss, dict(zip(self.parameters, gradients, strict=True))

    def check(self, *batch: Tensor) -> None:
        """Is it still what the handlers compute, for these data and the parameters as they are?

        Raises: `Untraceable` if not: a number, a mode or a tensor that the pair reads is another.
        """
        owned = [p for m in modules_of(self.pair.model, self.pair.guide) for p in m.parameters()]
        before = [p.requires_grad for p in owned]
        try:
            with own_store(share=True):
                self.check_here(*batch)
        finally:  # Pyro unfreezes what it registers
            for p, requires in zip(owned, before, strict=True):
                p.requires_grad_(requires)

    def check_here(self, *batch: Tensor) -> None:
        """The same in the store at hand, where the pair's parameters are registered."""
        batch = tuple(b.contiguous() for b in self._checked(batch))
        beta = torch.full((), 0.5, dtype=torch.float64, device=batch[0].device)
        inputs = (*batch, beta)
        try:
            hold_against_eager(self.eager, self.graph, self.parameters, inputs, self.complaints)
        except Untraceable:
            store = pyro.get_param_store()._params
            for name, parameter in self.parameters.items():
                if store.get(name) is not parameter:
                    raise Untraceable(
                        f"parameter '{name}' is another tensor than when the pair was traced; "
                        "trace it once more, or change values in place "
                        "(`with torch.no_grad(): parameter.copy_(...)`)"
                    ) from None
            raise

    def __repr__(self) -> str:
        batch = shapes_of(self.shapes)
        return f"Traced({len(self.parameters)} parameters, for batches of {batch})"

    def _values(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        try:
            return [parameters[name] for name in self.parameters]
        except (KeyError, TypeError, IndexError):
            raise RequestError(
                f"parameters: expected a mapping with {', '.join(self.parameters)}; hand in "
                "`traced.parameters`, or tensors by those names"
            ) from None

    def _beta(self, beta: float | Tensor) -> Tensor:
        return torch.as_tensor(beta, dtype=torch.float64)

    def _checked(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = tuple((b.shape, b.dtype) for b in batch)
        if found != self.shapes:
            raise RequestError(
                f"batch: got {shapes_of(found) or 'nothing'}, but the function was traced for "
                f"{shapes_of(self.shapes)}; trace it once more for another shape"
            )
        return batch


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, traced, batch, beta, *parameters):
        loss, _, *gradients = traced.graph(*parameters, *batch, beta)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):  # type: ignore[override]
        return None, None, None, *((outer * g).to(g.dtype) for g in ctx.saved_tensors)


def trace_loss(
    pair: Pair,
    objective: Objective,
    arguments: tuple[Tensor, ...],
    num_data: int,
    *,
    vectorize: bool,
    precision: str = "float32",
) -> Traced:
    """The traced loss of a pair that was looked at, over the parameters in the current store.

    The trace is held against the eager evaluation with other rows, other parameters and other
    noise; what differs is refused.
    Raises: `Untraceable`.
    """
    check_particles(objective, vectorize=vectorize)
    complaints: list[str] = []
    arguments = tuple(a.contiguous() for a in arguments)

    def evaluate(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *batch, beta = inputs
        with products(precision):
            return evaluate_loss(
                pair,
                objective,
                tuple(batch),
                beta,
                num_data,
                vectorize=vectorize,
                complaints=complaints,
            )

    beta = torch.tensor(1.0, dtype=torch.float64, device=arguments[0].device)
    with own_randomness(0), validation(False), torch.enable_grad():
        with put_back() as closed, tensors_alone(closed):
            loss, _ = evaluate(*arguments, beta)
        # A tensor of two names is one parameter.
        live = {name: p for name, p in by_name().items() if p.requires_grad}
        found: Sequence[Tensor | None] = ()
        if live and loss.requires_grad:
            with put_back():
                found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
        parameters = {
            name: p for (name, p), g in zip(live.items(), found, strict=False) if g is not None
        }
        if not parameters:
            raise Untraceable("the pair has no parameter that requires a gradient")

        def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
            loss, values = evaluate(*inputs)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            return loss.detach(), values, *gradients

        graph = capture(whole, (*arguments, beta), list(parameters.values()))
        with _moved(list(parameters.values())):
            others = (*(_other_rows(a) for a in arguments), 0.5 * beta)
            hold_against_eager(whole, graph, parameters, others, tuple(complaints))
    shapes = tuple((a.shape, a.dtype) for a in arguments)
    return Traced(graph, parameters, tuple(complaints), shapes, whole, pair)


def check_particles(objective: Objective, *, vectorize: bool) -> None:
    """Refuse a graph of very many passes, which would take minutes to record and compile."""
    if objective.num_particles > MOST_LOOPED and not vectorize:
        raise Untraceable(
            f"its {objective.num_particles} particles would be recorded one by one (up to "
            f"{MOST_LOOPED} are): let its networks take [particles, batch, ...]"
        )


def evaluate_loss(
    pair: Pair,
    objective: Objective,
    batch: tuple[Tensor, ...],
    beta: float | Tensor,
    num_data: int,
    *,
    vectorize: bool,
    complaints: list[str] | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """-objective of a batch, and one number a site that is finite if draws and density are.

    `keep [rows]` marks the rows that count.
    """
    record = record_of(
        pair, batch, objective.num_particles, vectorize=vectorize, scoring=objective.scoring
    )
    if objective.scoring != "fixed draws":
        check_gradients(record, pair)
    values = site_values(record)
    if complaints is not None:
        complaints[:] = values
    loss = objective.loss(record, beta, num_data, keep)
    return loss, torch.stack([v.detach().double() for v in values.values()])


_DENSITY = "has a log-density that is not finite"
_DRAW = "drew a value that is not finite"


def site_values(record: LogWeights) -> dict[str, Tensor]:
    """One number a site; not finite where its draws or its log-density are not.

    In the order of the programs: the first that is not finite is the culprit.
    """
    drawn = {**record.auxiliary, **record.latents}
    values: dict[str, Tensor] = {}
    for name, score in record.log_q.items():
        if name in drawn and drawn[name].is_floating_point():
            # 0 for finite draws, NaN otherwise.
            values[f"site '{name}' of the guide {_DRAW}"] = (drawn[name].detach() * 0).sum()
        values[f"site '{name}' of the guide {_DENSITY}"] = score.sum()
    for name, score in record.log_p.items():
        values[f"site '{name}' of the model {_DENSITY}"] = score.sum()
    return values


def hold_against_eager(
    whole: Callable,
    graph: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    complaints: Sequence[str],
) -> None:
    """Compare the graph with the handlers' own evaluation under the same noise.

    The sites' values are compared unscaled: in the loss a term outside the plate weighs 1/N.
    Raises: `Untraceable`, naming the first site that differs.
    """
    seed = derived_seed("trace")
    with own_randomness(seed), validation(False), torch.enable_grad(), put_back():
        loss, values, *gradients = whole(*inputs)
    with own_randomness(seed), torch.no_grad(), put_back():
        found_loss, found_values, *found = graph(*parameters.values(), *inputs)
    if values.shape != found_values.shape:
        raise _stale("number of sites")
    for said, a, b in zip(complaints, values, found_values, strict=True):
        if not _close(a, b, SMALL):
            what = "log-density" if said.endswith(_DENSITY) else "draw"
            raise _stale(f"{what} of {said.removesuffix(_DENSITY).removesuffix(_DRAW).strip()}")
    if not _close(loss, found_loss, TOLERANCE):
        raise _stale("loss")
    # Gradients that are 0 but for rounding are told by their size beside the others.
    floor = 0.1 * SMALL * max((_size(g) for g in gradients), default=0.0)
    for name, a, b in zip(parameters, gradients, found, strict=False):  # a bound has none
        if not _close(a, b, max(TOLERANCE * _size(a), floor)):
            raise _stale(f"gradient of '{name}'")


def _close(a: Tensor, b: Tensor, absolute: float) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=absolute, equal_nan=True)


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().nan_to_num(0, 0, 0).max()) if tensor.numel() else 0.0


def _stale(what: str) -> Untraceable:
    return Untraceable(
        f"on other data and noise its traced {what} is not the eager one: something beside tensors "
        "has changed since, or changes from call to call (a mode, a number, numpy, a counter)"
    )


def _other_rows(batch: Tensor) -> Tensor:
    """As many data, but others: also their mean is another one."""
    return batch[torch.arange(len(batch), device=batch.device).flip(0) // 2]


@contextlib.contextmanager
def _moved(parameters: list[Tensor]) -> Iterator[None]:
    """Parameters a little off, those at 0 too, then exactly as they were."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p in parameters:
                p.mul_(1.01).add_(0.01)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def shapes_of(found: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {list(s)}" for s, dtype in found)


def first_bad(names: Iterable[str], numbers: Iterable[float]) -> str | None:
    """The first name whose number is not finite."""
    return next((n for n, v in zip(names, numbers, strict=True) if not math.isfinite(v)), None)

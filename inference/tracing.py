"""Effect handlers run once: a Pyro pair as a pure function of tensors.

Pyro's handlers are Python and cost milliseconds a step, while the tensor program beneath them stays
the same from step to step. Here it is recorded once, below autograd, with parameters, batch and
beta as inputs; gradients are part of the record, so that custom ones are kept.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inference.errors import InferenceError, RequestError, Untraceable
from inference.isolation import (
    derived_seed,
    modes,
    modules_of,
    own_randomness,
    own_store,
    validation,
)
from inference.log_weights import LogWeights, Scorer, record_of
from inference.objectives.elbo import ELBO, OBJECTIVES
from inference.pair import Pair, as_arguments, examine
from inference.precision import products
from inference.requests import member

# Traced and eager run the same operations; this only forgives a library that sums in another order.
TOLERANCE = 1e-5


def trace(
    model: Callable,
    guide: Callable,
    *arguments: Tensor,
    objective: ELBO | str = ELBO(),  # noqa: B008  (a frozen value)
    num_data: int | None = None,
    plate: str | None = "data",
) -> Traced:
    """A pair's loss as a pure tensor function, recorded through Pyro's handlers once.

        loss(parameters, batch, beta) = -objective, in nats per datum

    For a training loop of one's own: the function costs what its tensor operations cost, draws
    fresh noise at each call from torch's generator, and can be compiled (`traced.graph`).

    Args:
        model, guide: any Pyro pair whose latents can be reparametrized or enumerated.
        arguments: an example batch; other batches must have its shapes.
        objective: an `ELBO`, or its name; its warm-up is the caller's (`beta`).
        num_data: size of the data set, which latents outside the plate are divided by; by default
            that of the batch.
        plate: name of the data plate, or None.
    Returns: a `Traced`; its parameters are the live ones. Plain `pyro.param`s that the caller's
        store lacks are put there. Modules are traced in the mode that they are in.
    Raises: `Untraceable`, naming the site or the operation; `PairError`; `RequestError`.
    """
    arguments = as_arguments(arguments, "arguments")
    objective = member("objective", objective, ELBO, OBJECTIVES)
    with own_store(share=True) as keep_params, own_randomness():
        with modes(modules_of(model, guide), training=False):  # a look leaves no statistics
            pair = examine(model, guide, arguments, plate)
            vectorize = objective.num_particles > 1 and not Scorer(pair, arguments).folded
        traced = trace_loss(
            pair, objective, arguments, num_data or len(arguments[0]), vectorize=vectorize
        )
        keep_params()
    return traced


@dataclass(frozen=True)
class Traced:
    """The loss of a pair: a pure function of parameters, batch and beta.

    `graph(*parameters, *batch, beta)` returns `(loss, site_values, *gradients)`: the loss a float64
    scalar, and one float64 number for each sentence in `complaints`, which is true where that
    number is not finite. `parameters` maps names to the live, unconstrained tensors.
    """

    graph: fx.GraphModule
    parameters: dict[str, Tensor]
    complaints: tuple[str, ...]
    shapes: tuple[tuple[torch.Size, torch.dtype], ...]
    # What was recorded, through the handlers: `(*batch, beta)` -> what the graph returns.
    eager: Callable = field(repr=False)

    def __call__(
        self, parameters: Mapping[str, Tensor], *batch: Tensor, beta: float | Tensor = 1.0
    ) -> Tensor:
        """The loss, differentiable in `parameters` (all of `self.parameters`, by name)."""
        values = [parameters[name] for name in self.parameters]
        return _Loss.apply(self, self._checked(batch), self._beta(beta), *values)

    def loss_and_grads(
        self, parameters: Mapping[str, Tensor], *batch: Tensor, beta: float | Tensor = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its gradients by parameter name."""
        values = [parameters[name] for name in self.parameters]
        with torch.no_grad():
            loss, _, *gradients = self.graph(*values, *self._checked(batch), self._beta(beta))
        return loss, dict(zip(self.parameters, gradients, strict=True))

    def check(self, *batch: Tensor) -> None:
        """Is it still what the handlers compute, for these data and the parameters as they are?

        Raises: `Untraceable` if not: a number or a tensor that the pair reads was replaced.
        """
        batch = tuple(b.contiguous() for b in self._checked(batch))
        beta = torch.full((), 0.5, dtype=torch.float64, device=batch[0].device)
        with own_store(share=True):
            _hold_against_eager(self.eager, self.graph, self.parameters, (*batch, beta))

    def _beta(self, beta: float | Tensor) -> Tensor:
        return torch.as_tensor(beta, dtype=torch.float64)

    def _checked(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = tuple((b.shape, b.dtype) for b in batch)
        if found != self.shapes:
            raise RequestError(
                f"batch: got {_shapes(found)}, but the function was traced for "
                f"{_shapes(self.shapes)}; trace it once more for another shape"
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
    objective: ELBO,
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
        with _put_back() as closed, _tensors_alone(closed):
            loss, _ = evaluate(*arguments, beta)
        live = {name: p for name, p in pyro.get_param_store()._params.items() if p.requires_grad}
        if not live:
            raise Untraceable("the pair has no parameter that requires a gradient")
        found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
        parameters = {
            name: p for (name, p), g in zip(live.items(), found, strict=True) if g is not None
        }

        def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
            loss, values = evaluate(*inputs)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            return loss.detach(), values, *gradients

        graph = capture(whole, (*arguments, beta), list(parameters.values()))
        with _moved(list(parameters.values())):
            _hold_against_eager(
                whole, graph, parameters, (*(_other_rows(a) for a in arguments), 0.5 * beta)
            )
    shapes = tuple((a.shape, a.dtype) for a in arguments)
    return Traced(graph, parameters, tuple(complaints), shapes, whole)


def evaluate_loss(
    pair: Pair,
    objective: ELBO,
    batch: tuple[Tensor, ...],
    beta: Tensor,
    num_data: int,
    *,
    vectorize: bool,
    complaints: list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """-objective of a batch, and one number a site that is finite if draws and density are."""
    record = record_of(pair, batch, objective.num_particles, vectorize=vectorize)
    check_gradients(record, pair)
    values = _site_values(record)
    if complaints is not None:
        complaints[:] = values
    loss = objective.loss(record, beta, num_data)
    return loss, torch.stack([v.detach().double() for v in values.values()])


def check_gradients(record: LogWeights, pair: Pair) -> None:
    """Refuse latents whose gradient is not that of a path through their draws."""
    for name, fn in record.guide_fn.items():
        latent = name in record.latents or name in record.auxiliary
        if latent and name not in pair.enumerated and not getattr(fn, "has_rsample", False):
            while type(fn).__name__ in (
                "Independent",
                "MaskedDistribution",
                "ExpandedDistribution",
            ):
                fn = fn.base_dist
            raise Untraceable(
                f"site '{name}' draws from {type(fn).__name__}, which has no reparametrized "
                "sample: its gradient is a score function"
            )


def _site_values(record: LogWeights) -> dict[str, Tensor]:
    """One number a site; not finite where its draws or its log-density are not.

    In the order of the programs: the first that is not finite is the culprit.
    """
    drawn = {**record.auxiliary, **record.latents}
    values: dict[str, Tensor] = {}
    for name, score in record.log_q.items():
        if name in drawn and drawn[name].is_floating_point():
            # 0 for finite draws, NaN otherwise.
            told = f"site '{name}' of the guide drew a value that is not finite"
            values[told] = (drawn[name].detach() * 0).sum()
        values[f"site '{name}' of the guide has a log-density that is not finite"] = score.sum()
    for name, score in record.log_p.items():
        values[f"site '{name}' of the model has a log-density that is not finite"] = score.sum()
    return values


# Recording -------------------------------------------------------------------------------------


def capture(
    function: Callable,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
    *,
    mutable: int = 0,
) -> fx.GraphModule:
    """`function(*inputs)` as a graph of `(*parameters, *inputs)`.

    `parameters` are tensors the function closes over; what else it closes over stays in the graph
    as it is, by reference. The first `mutable` inputs may be changed in place. Random states are
    left to the caller; buffers end as they were.
    Raises: `Untraceable`.
    """
    # make_fx tells inputs apart by identity: each is a clone.
    clones = [i.clone() for i in inputs]
    with _put_back() as closed:

        def watched(*args: Tensor):
            with _tensors_alone(closed, args[:mutable]):
                return function(*args)

        # One fake mode for all values noted in the graph; torch would make one for each of them.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            graph = make_fx(watched)(*clones)
    return lift(graph, parameters)


class _Closed:
    """Tensors from outside that were changed in place: what they held, and who did it."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.changed = ""


@contextlib.contextmanager
def _put_back() -> Iterator[_Closed]:
    """Tensors from outside end as they were, and it is refused to change them.

    Raises: `Untraceable`, also for whatever else fails.
    """
    closed = _Closed()
    try:
        yield closed
    except InferenceError:
        raise
    except Exception as error:
        raise Untraceable(_first_line(error)) from error
    finally:
        with torch.no_grad():
            for tensor, value in closed.kept.values():
                tensor.copy_(value)
    if closed.changed:
        raise Untraceable(closed.changed)


@contextlib.contextmanager
def _tensors_alone(closed: _Closed, mutable: Sequence[Tensor] = ()) -> Iterator[None]:
    """Refuse what hands values of tensors to Python, and note what is changed in place."""
    with _NoArrays(), _NoValues(closed, mutable):
        yield


class _NoArrays(TorchFunctionMode):
    """Refuses methods that hand out all values of a tensor, which are no operations."""

    methods = (
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.methods:
            raise _handed_out(f"'{func.__name__}'")
        return func(*args, **(kwargs or {}))


# Operations whose result, or its shape, is known only by looking at values.
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class _NoValues(TorchDispatchMode):
    """Refuses operations that hand tensor values to Python, and notes changed buffers."""

    def __init__(self, closed: _Closed, mutable: Sequence[Tensor]):
        super().__init__()
        self.closed = closed
        self.made = {_storage(tensor) for tensor in mutable}
        self.alive: list[Tensor] = []  # ids are unique among living tensors only

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(tag in func.tags for tag in _BY_VALUE) and not _by_position(func, args):
            raise _handed_out(_name(func))
        for value in _written(func, args):
            self._changes(value)
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.made.add(_storage(item))
                self.alive.append(item)
        return result

    def _changes(self, tensor: Tensor) -> None:
        if _storage(tensor) in self.made:
            return
        key = id(tensor)
        if key not in self.closed.kept:
            self.closed.kept[key] = (tensor, tensor.detach().clone())
            self.alive.append(tensor)
        self.closed.changed = self.closed.changed or (
            f"the pair changes a tensor of shape {tuple(tensor.shape)} in place (running "
            f"statistics, a counter){_where()}"
        )


def _written(func, args: Sequence[Any]) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    written = []
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
    for argument in func._schema.arguments:
        value = named.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        # Some kernels of batch normalization do so without declaring it.
        tracks = argument.name in ("running_mean", "running_var") and named.get("training")
        if isinstance(value, Tensor) and (writes or tracks):
            written.append(value)
    return written


def _handed_out(name: str) -> Untraceable:
    return Untraceable(
        f"{name} hands values of tensors to Python (`.item()`, `if tensor:`, a boolean index)"
        f"{_where()}"
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _by_position(func, args) -> bool:
    """Indexing by positions has a shape known beforehand; by a mask it has not."""
    if func not in (torch.ops.aten.index.Tensor,):
        return False
    return all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])


def _name(func) -> str:
    name = func._schema.name.partition("::")[2]
    return "'item'" if name == "_local_scalar_dense" else f"'{name}'"


# Frames of these packages are not the user's.
_LIBRARIES = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (torch, pyro))
_OURS = os.path.dirname(__file__) + os.sep


def _where() -> str:
    """', at line 12 of model.py': the innermost line of the pair that is not torch's or Pyro's."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename
        if path == __file__ or path.startswith(_LIBRARIES) or path.endswith("contextlib.py"):
            continue
        if path.startswith(_OURS):  # who called the pair
            return ""
        return f", at line {frame.lineno} of {os.path.basename(path)}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lift(graph_module: fx.GraphModule, parameters: Sequence[Tensor]) -> fx.GraphModule:
    """The graph with `parameters` as first inputs; other constants merged into one node each."""
    graph = graph_module.graph
    first = next(iter(graph.nodes))
    places: dict[int, fx.Node] = {}
    with graph.inserting_before(first):
        for i, parameter in enumerate(parameters):
            places[id(parameter)] = graph.placeholder(f"parameter_{i}")
    seen: dict[int, fx.Node] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph_module, node.target)
        place = places.get(id(tensor)) or seen.get(id(tensor))
        if place is None:
            with graph.inserting_after(last):
                place = seen[id(tensor)] = graph.get_attr(node.target)
        node.replace_all_uses_with(place)
        graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def _hold_against_eager(
    whole: Callable,
    graph: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
) -> None:
    """Compare the graph with the handlers' own evaluation under the same noise."""
    seed = derived_seed("trace")
    with own_randomness(seed), validation(False), torch.enable_grad(), _put_back():
        expected = whole(*inputs)
    with own_randomness(seed), torch.no_grad():
        found = graph(*parameters.values(), *inputs)
    loss, _, *gradients = expected
    names = ["loss", *(f"gradient of '{name}'" for name in parameters)]
    for name, a, b in zip(names, (loss, *gradients), (found[0], *found[2:]), strict=True):
        size = TOLERANCE * (1 + float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 1)
        if not torch.allclose(a, b, rtol=TOLERANCE, atol=size, equal_nan=True):
            raise Untraceable(
                f"on other data and noise its traced {name} is not the eager one: something beside "
                "tensors changes from call to call (numpy, a counter, a number read from the data)"
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


def _shapes(found: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {list(s)}" for s, dtype in found)

"""A function of tensors, recorded as a graph of the operations below autograd.

What is no operation on tensors is refused with the line that does it: values handed to Python,
tensors from outside that are changed in place.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inference.errors import InferenceError, Untraceable


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
    with put_back() as closed:

        def watched(*args: Tensor):
            with tensors_alone(closed, args[:mutable]):
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
def put_back() -> Iterator[_Closed]:
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
def tensors_alone(closed: _Closed, mutable: Sequence[Tensor] = ()) -> Iterator[None]:
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
        for value in _written(func, args, kwargs or {}):
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


def _written(func, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation changes in place, those of lists and `out=` too."""
    written: list[Tensor] = []
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
    named |= kwargs
    for argument in func._schema.arguments:
        value = named.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        # Some kernels of batch normalization do so without declaring it.
        tracks = argument.name in ("running_mean", "running_var") and named.get("training")
        if writes or tracks:
            values = value if isinstance(value, tuple | list) else (value,)
            written += [v for v in values if isinstance(v, Tensor)]
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

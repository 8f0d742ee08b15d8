"""In which floating-point arithmetic a pair is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from inference.errors import RequestError
from inference.isolation import is_plain

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


def check_precision(name: str, device: torch.device) -> None:
    """Refuse, in one sentence, a precision that is unknown or that the device does not have."""
    if name not in PRECISIONS:
        raise RequestError(f"precision: {name!r} is unknown. Choices: {', '.join(PRECISIONS)}")
    if name == "tf32" and device.type != "cuda":
        raise RequestError("precision: tf32 is a mode of NVIDIA GPUs; use float32 or bfloat16")


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Evaluate a loss, forward and backward, in `precision`, whatever the caller's settings.

    `float32` is full float32: no TF32 (torch's default for convolutions), no autocast. `tf32`
    switches that mode on. `bfloat16` is for the matrix products and convolutions of networks alone,
    where they are of float32; they return float32, so that samples, log-densities, losses and
    log-weights are float32, which under `torch.autocast` they are not. Attention, recurrent layers
    and einsum stay in full float32. `float64` is what the tensors are: see `in_dtype`.

    A graph traced in here holds bfloat16's casts itself; replaying it takes `switches` alone.
    """
    with switches(precision, device), products(precision):
        yield


def products(precision: str) -> AbstractContextManager:
    """The part of `arithmetic` that is not process-wide: bfloat16 products, else nothing."""
    return _Bfloat16() if precision == "bfloat16" else nullcontext()


@contextmanager
def switches(precision: str, device: torch.device) -> Iterator[None]:
    """The process-wide part of `arithmetic`: TF32 as the precision says, autocast off."""
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    gpu = [backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    cpu = [mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    inherited = [cudnn.fp32_precision] * 3 + [mkldnn.fp32_precision] * 3
    before = [op.fp32_precision for op in gpu + cpu]
    before = ["none" if b == i else b for b, i in zip(before, inherited, strict=True)]
    # torch has an older and a newer set of switches, and raises when the older is read (which
    # inductor does) while they disagree. So both are set; what the older said can be read for sure
    # once the newer says that all is off.
    _set(gpu + cpu, ["ieee"] * 6)
    matmul = torch.get_float32_matmul_precision()
    try:
        convolutions = cudnn.allow_tf32
    except RuntimeError:
        convolutions = True
    try:
        tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.allow_tf32 = tf32
        _set(gpu + cpu, ["tf32" if tf32 else "ieee"] * 3 + ["ieee"] * 3)
        outside = torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if outside else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = convolutions
        _set(gpu + cpu, before)


def _set(operations: list[Any], values: list[str]) -> None:
    for operation, value in zip(operations, values, strict=True):
        operation.fp32_precision = value


_PRODUCTS = frozenset(
    [F.linear]
    + [getattr(F, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)]
    + [getattr(torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")]
    + [getattr(Tensor, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")]
)


def _of_density(caller: FrameType) -> bool:
    """Is the calling function a distribution's or transform's method, or a helper of theirs?"""
    places = ("torch.distributions", "pyro.distributions", "pyro.ops")
    if caller.f_globals.get("__name__", "").startswith(places):
        return True
    return isinstance(caller.f_locals.get("self"), Distribution | Transform)


class _Bfloat16(TorchFunctionMode):
    """Products of float32 tensors, in bfloat16: from float32, to float32.

    Those that a distribution makes (low-rank Gaussians do) are part of its density: left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or "out" in kwargs:
            return func(*args, **kwargs)
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if any(t.dtype is not torch.float32 for t in tensors) or _of_density(sys._getframe(1)):
            return func(*args, **kwargs)
        low = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return func(*(v.bfloat16() if isinstance(v, Tensor) else v for v in args), **low).float()


def cast(arguments: tuple[Tensor, ...], precision: str) -> tuple[Tensor, ...]:
    """Data as `precision` wants them: float64 only on demand, else as the user gave them."""
    if precision != "float64":
        return arguments
    return tuple(a.double() if a.is_floating_point() else a for a in arguments)


@contextmanager
def in_dtype(modules: Iterable[nn.Module], precision: str) -> Iterator[None]:
    """For `float64`: modules, plain `pyro.param`s and the default dtype are float64 inside.

    Every parameter and buffer stays the object that it is, and has its own dtype, storage and
    gradient back at the end, with the (rounded) value that it was given; those made inside get
    the dtype of their predecessor of the same name, else the former default dtype. Gradients are
    None at the beginning, and no graph made inside can be differentiated outside.
    """
    if precision != "float64":
        yield
        return
    modules = list(modules)
    default = torch.get_default_dtype()
    former: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    dtypes: dict[tuple[int, str], torch.dtype] = {}
    try:
        torch.set_default_dtype(torch.float64)
        for holder, name, tensor in _floating(modules):
            if id(tensor) not in former:  # shared ones come twice
                former[id(tensor)] = (tensor, tensor.data, tensor.grad if tensor.is_leaf else None)
                tensor.grad = None
                tensor.data = tensor.data.double()
            dtypes[id(holder), name] = former[id(tensor)][1].dtype
        yield
    finally:
        torch.set_default_dtype(default)
        for holder, name, tensor in _floating(modules):
            if id(tensor) not in former and tensor.dtype is torch.float64:
                tensor.grad = None
                tensor.data = tensor.data.to(dtypes.get((id(holder), name), default))
        for tensor, data, grad in former.values():
            value, tensor.grad = tensor.data, None
            if value.shape != data.shape or value.device != data.device:
                data = value.to(data.dtype)
            elif not torch.equal(data.double(), value):
                data.copy_(value)
            tensor.data, tensor.grad = data, grad


def _floating(modules: list[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Parameters and buffers of modules and plain `pyro.param`s: where they stand, name, tensor."""
    children = [child for module in modules for child in module.modules()]
    store: dict[str, Any] = pyro.get_param_store()._params
    for holder in [h for c in children for h in (c._parameters, c._buffers)] + [store]:
        for name, tensor in list(holder.items()):
            if tensor is None or not tensor.is_floating_point():
                continue
            if holder is not store or is_plain(tensor):
                yield holder, name, tensor

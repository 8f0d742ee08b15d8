"""One torch optimizer for all parameters, behind Pyro's optimizer interface."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from inference.errors import NonFiniteError, RequestError

# Optimizers whose step is something else than one update from the gradients at hand.
_UNFIT = {"LBFGS", "SparseAdam", "Optimizer"}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """A torch optimizer by name, in any case. Raises `RequestError` naming the choices."""
    if not isinstance(name, str):
        raise RequestError(
            f"optimizer: got {type(name).__name__}; expected the name of a torch optimizer, e.g. "
            "'adam', with learning_rate and optimizer_options beside it"
        )
    choices = {
        key.lower(): cls
        for key, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and key not in _UNFIT
    }
    if name.lower() not in choices:
        raise RequestError(f"optimizer: '{name}' is unknown. Choices: {', '.join(sorted(choices))}")
    return choices[name.lower()]


def by_name() -> dict[str, Tensor]:
    """The unconstrained tensors of the store at hand, each once.

    One that is registered under several names (tied weights) bears the first of them.
    """
    stored = pyro.get_param_store()._params
    first: dict[int, str] = {}
    for name in sorted(stored):
        first.setdefault(id(stored[name]), name)
    return {name: p for name, p in stored.items() if first[id(p)] == name}


class SingleOptimizer(PyroOptim):
    """A `PyroOptim` that drives *one* torch optimizer, with global clipping and a schedule.

    Pyro's own builds one optimizer per tensor, so that nothing fuses and clipping is per tensor.
    Parameters are kept in the order of their names: the update does not depend on set order.

    Args:
        name: a torch optimizer, e.g. "adam".
        learning_rate: multiplied by `factor`, which the training loop sets before each step.
        options: further arguments of the optimizer.
        clip_norm: largest global gradient norm, or None.
    Raises: `NonFiniteError` before anything is touched, if a gradient is NaN or infinite.
    """

    def __init__(
        self,
        name: str = "adam",
        learning_rate: float = 1e-3,
        options: Mapping[str, Any] | None = None,
        clip_norm: float | None = None,
    ):
        self.cls = optimizer_class(name)
        _check_options(name, self.cls, options or {})
        self.options = {"lr": learning_rate, **(options or {})}
        own_way = self.options.keys() & {"foreach", "differentiable"}
        if self.cls in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) and not own_way:
            self.options.setdefault("fused", True)
        try:
            self.cls([torch.zeros(1, requires_grad=True)], **self.options)
        except (TypeError, ValueError) as error:
            raise RequestError(f"optimizer '{name}': {error}") from None
        super().__init__(self.cls, self.options)
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.factor = 1.0
        self.grad_norm = 0.0
        self.optimizer: torch.optim.Optimizer | None = None
        self.names: list[str] = []
        self._params: list[Tensor] = []
        self._pending: dict[str, dict] = {}

    def __call__(self, params, *args: Any, **kwargs: Any) -> None:
        self.adopt(params)
        assert self.optimizer is not None
        used = [p for p in self._params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in used])  # type: ignore[misc]
        self.grad_norm = float(norm)
        if not torch.isfinite(norm):
            bad = next(
                (n for n, p in zip(self.names, self._params, strict=True) if _bad_gradient(p)),
                None,
            )
            what = f"the gradient of parameter '{bad}'" if bad else "the norm of all gradients"
            raise NonFiniteError(f"{what} is not finite")
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(used, self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.factor
        self.optimizer.step(*args, **kwargs)
        # No gradient is left over, so that a resumed run meets the same gradients as this one.
        self.optimizer.zero_grad(set_to_none=True)

    def adopt(self, params) -> None:
        """Take on parameters not seen before; states that wait for them are loaded."""
        known = {id(p) for p in self._params}
        fresh = {id(p): p for p in params if id(p) not in known}
        if not fresh:
            return
        names = {id(p): name for name, p in by_name().items()}
        new = sorted(
            ((names.get(i, "None"), p) for i, p in fresh.items()), key=lambda item: item[0]
        )
        self.names += [name for name, _ in new]
        self._params += [p for _, p in new]
        if self.optimizer is None:
            self.optimizer = self.cls([p for _, p in new], **self._options_for(new[0][1]))
        else:
            self.optimizer.add_param_group({"params": [p for _, p in new]})
        for name, p in new:
            if name in self._pending:
                self.optimizer.state[p] = self._pending.pop(name)

    def _options_for(self, parameter: Tensor) -> dict[str, Any]:
        """The options; on a GPU also that all state is kept there, and no step waits for it."""
        options = dict(self.options)
        known = inspect.signature(self.cls).parameters
        if parameter.is_cuda and "capturable" in known and not options.get("fused"):
            options.setdefault("capturable", not options.get("differentiable", False))
        return options

    def state_of(
        self, parameters: Sequence[Tensor], keys: Sequence[Sequence[str]]
    ) -> list[Tensor] | None:
        """The live state tensors of these parameters, or None before a first step made them."""
        if self.optimizer is None:
            return None
        state = self.optimizer.state
        found = []
        for parameter, names in zip(parameters, keys, strict=True):
            own = state.get(parameter, {})
            if any(name not in own for name in names):
                return None
            found += [own[name] for name in names]
        return found

    def example_state(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        """States of the shapes that one step gives them; nothing of this optimizer is touched."""
        copies = [p.detach().clone().requires_grad_(True) for p in parameters]
        scratch = self.cls(copies, **self._options_for(copies[0]))
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        scratch.step()
        return [dict(scratch.state[copy]) for copy in copies]

    def update(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        learning_rate: Tensor,
    ) -> None:
        """One step of the same optimizer on other tensors, in place and without reading values.

        It can be recorded in a graph: torch's optimizers write their steps so where they believe
        that a compiler is watching. The learning rate is a tensor, so that a schedule is data.
        """
        options = {**self.options, "lr": 1.0}
        options.pop("fused", None)
        known = inspect.signature(self.cls).parameters
        options |= {name: True for name in ("foreach", "capturable") if name in known}
        optimizer = self.cls(list(parameters), **options)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            parameter.grad = gradient
            # Bias corrections such as 1 - 0.999^step are Python numbers elsewhere: double here.
            wide = {key: item.double() for key, item in state.items() if key == "step"}
            optimizer.state[parameter] = state | wide
        with _as_if_compiling(), torch.no_grad():
            inspect.unwrap(self.cls.step)(optimizer)  # type: ignore[arg-type]
            for parameter, state in zip(parameters, states, strict=True):
                parameter.grad = None
                for key, item in state.items():
                    after = optimizer.state[parameter][key]
                    if after is not item:
                        item.copy_(after)

    def get_state(self) -> dict[str, dict[str, Any]]:
        """The optimizer's state by parameter name: tensors and plain numbers."""
        if self.optimizer is None:
            return dict(self._pending)
        state = self.optimizer.state
        return self._pending | {
            name: dict(state[p])
            for name, p in zip(self.names, self._params, strict=True)
            if p in state
        }

    def set_state(self, state_dict: dict[str, dict[str, Any]]) -> None:
        """Take a state of `get_state`, now or when its parameters first appear."""
        self._pending = dict(state_dict)
        for name, p in zip(self.names, self._params, strict=True):
            if name in self._pending and self.optimizer is not None:
                self.optimizer.state[p] = self._pending.pop(name)


@contextlib.contextmanager
def _as_if_compiling() -> Iterator[None]:
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _check_options(name: str, cls: type, options: Mapping[str, Any]) -> None:
    """Refuse options that the optimizer does not know, naming those it does."""
    known = inspect.signature(cls).parameters.keys() - {"params", "lr"}
    for option in options:
        if option == "lr":
            raise RequestError("optimizer_options: 'lr' is given as learning_rate")
        if option not in known:
            raise RequestError(
                f"optimizer_options: '{option}' is unknown to {name}. Choices: "
                f"{', '.join(sorted(known))}"
            )


def _bad_gradient(p: Tensor) -> bool:
    return p.grad is not None and not bool(torch.isfinite(p.grad).all())

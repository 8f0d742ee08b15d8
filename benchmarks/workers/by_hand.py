"""Training by hand in PyTorch: eager, compiled, and with the whole step in one graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.workers.hand_models import HandVAE, build
from benchmarks.workers.search import fastest
from benchmarks.workers.torch_parts import batches, data_of, steps

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
}


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    data = data_of(task)
    if task["kind"] == "whole-step":
        ways = ["Python wrapper", "C++ wrapper"][: 2 if task["search"] else 1]

        def make(way: str) -> Callable[[Tensor], Tensor]:
            return whole_step(build(task, data, "product"), data, way == "C++ wrapper")
    else:
        ways = ["product", "bce"][: 2 if task["search"] else 1]

        def make(way: str) -> Callable[[Tensor], Tensor]:
            return step(build(task, data, way), data, OPTIONS.get(task["kind"]))

    def trial(way: Callable[[Tensor], Tensor]) -> None:
        for rows in itertools.islice(batches(task), task["trial"]):
            way(rows)
        if task["device"] == "cuda":
            torch.cuda.synchronize()

    found, best = fastest(ways, make, trial)
    run = steps(task, best)
    run(task["warmup"])
    forms = "loss as x l - softplus(l)" if found == "product" else "loss by torch's bce"
    return run, found if task["kind"] == "whole-step" else forms


def step(
    model: HandVAE, data: Tensor, options: dict[str, Any] | None
) -> Callable[[Tensor], Tensor]:
    """Gather, loss, backward, and one fused Adam outside the graph."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    loss_of = model if options is None else torch.compile(model, dynamic=False, **options)

    def update(rows: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(data[rows])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


def whole_step(model: HandVAE, data: Tensor, cpp_wrapper: bool) -> Callable[[Tensor], Tensor]:
    """Gather, loss, gradient and Adam as one function of tensors, in one compiled graph."""
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    # Filled in before each step: in the graph, 0.9^t would be taken anew for every weight, and more
    # slowly yet once it underflows, from step 1000 on.
    rate, correction = (torch.zeros((), device=data.device) for _ in range(2))
    count = 0

    def loss_of(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,))

    def update(parameters, first, second, rate, correction, rows):
        gradients, loss = torch.func.grad_and_value(loss_of)(parameters, data[rows])
        for name, gradient in gradients.items():
            first[name].lerp_(gradient, 1 - BETA1)
            second[name].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            scale = second[name].sqrt() * correction + EPSILON
            parameters[name].sub_(rate * first[name] / scale)
        return loss

    options = {"cpp_wrapper": True} if cpp_wrapper else None
    compiled = torch.compile(update, fullgraph=True, dynamic=False, options=options)

    def run(rows: Tensor) -> Tensor:
        nonlocal count
        count += 1
        rate.fill_(RATE / (1 - BETA1**count))
        correction.fill_((1 - BETA2**count) ** -0.5)
        with torch.no_grad():
            return compiled(parameters, first, second, rate, correction, rows)

    return run

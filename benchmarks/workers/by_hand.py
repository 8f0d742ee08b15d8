"""Training by hand in PyTorch: eager, compiled, and with the whole step in one graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.network import Sizes
from benchmarks.workers.hand_models import HandVAE, build
from benchmarks.workers.search import fastest
from benchmarks.workers.torch_parts import batches, data_of, steps

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
Noise = Callable[[Tensor], Tensor] | None


class Way(NamedTuple):
    """One way of writing the same step: trials tell which is fastest on this machine."""

    form: str  # of log p(x|z), see `HandVAE`
    noise: str = "inside"  # inductor's own draws are slow on some processors
    wrapper: str = "Python"  # of the compiled graph


COMPILED = [Way("product", "outside"), Way("bce", "outside"), Way("product", "inside")]
WAYS = {
    "eager": [Way("product"), Way("bce")],
    "whole-step": [
        Way("product", "outside"),
        Way("product", "outside", "C++"),
        Way("product", "inside", "C++"),
    ],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
}


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    data = data_of(task)
    latent = Sizes.of(task).latent

    def make(way: Way) -> Callable[[Tensor], Tensor]:
        noise = None
        if way.noise == "outside":

            def noise(rows: Tensor) -> Tensor:
                return torch.randn(len(rows), latent, device=rows.device)

        model = build(task, data, way.form)
        if task["kind"] == "whole-step":
            return whole_step(model, data, way.wrapper == "C++", noise)
        return step(model, data, OPTIONS.get(task["kind"]), noise)

    def trial(update: Callable[[Tensor], Tensor]) -> None:
        for rows in itertools.islice(batches(task), task["trial"]):
            update(rows)
        if task["device"] == "cuda":
            torch.cuda.synchronize()

    ways = WAYS.get(task["kind"], COMPILED)
    found, update = fastest(ways if task["search"] else ways[:1], make, trial)
    run = steps(task, update)
    run(task["warmup"])
    form = "x l - softplus(l)" if found.form == "product" else "torch's bce"
    note = f"log p(x|z) as {form}"
    if task["kind"] != "eager":
        note += f"; noise drawn {found.noise} the graph"
    return run, note + (f"; {found.wrapper} wrapper" if task["kind"] == "whole-step" else "")


def step(
    model: HandVAE, data: Tensor, options: dict[str, Any] | None, noise: Noise = None
) -> Callable[[Tensor], Tensor]:
    """Gather, loss, backward, and one fused Adam outside the graph."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    loss_of = model if options is None else torch.compile(model, dynamic=False, **options)

    def update(rows: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(data[rows]) if noise is None else loss_of(data[rows], noise(rows))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


def whole_step(
    model: HandVAE, data: Tensor, cpp_wrapper: bool, noise: Noise = None
) -> Callable[[Tensor], Tensor]:
    """Gather, loss, gradient and Adam as one function of tensors, in one compiled graph."""
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    # Filled in before each step: in the graph, 0.9^t would be taken anew for every weight, and more
    # slowly yet once it underflows, from step 1000 on.
    rate, correction = (torch.zeros((), device=data.device) for _ in range(2))
    count = 0

    def loss_of(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, inputs)

    def update(parameters, first, second, rate, correction, rows, *drawn):
        gradients, loss = torch.func.grad_and_value(loss_of)(parameters, data[rows], *drawn)
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
        drawn = () if noise is None else (noise(rows),)
        with torch.no_grad():
            return compiled(parameters, first, second, rate, correction, rows, *drawn)

    return run

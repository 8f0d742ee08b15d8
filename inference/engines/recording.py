"""A whole training step as one graph: loss, gradients, clipping, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from inference.capture import capture
from inference.errors import Untraceable
from inference.optimizer import SingleOptimizer
from inference.tracing import Traced


@dataclass(frozen=True)
class Recorded:
    """A step as a graph of `(parameters, states, board, batch, beta, learning_rate)`, flat.

    Parameters, states and board are changed in place. The board is what a step reports:
    `sums [2]`, objective times data and gradient norm, added up; `failed []`, how many steps were
    run since and including the first that was not finite; `culprits`, of that step the loss, one
    number a complaint and each gradient's norm.
    """

    graph: fx.GraphModule
    traced: Traced
    state_keys: tuple[tuple[str, ...], ...]

    @cached_property
    def held(self) -> list[Tensor]:
        """The tensors that the graph refers to where they are."""
        nodes = (node for node in self.graph.graph.nodes if node.op == "get_attr")
        found = (getattr(self.graph, str(node.target)) for node in nodes)
        return [tensor for tensor in found if isinstance(tensor, Tensor)]

    def states(self, states: Sequence[dict[str, Any]]) -> list[Tensor]:
        return [
            state[key] for state, keys in zip(states, self.state_keys, strict=True) for key in keys
        ]


@dataclass(frozen=True)
class Board:
    """What a step reports, see `Recorded`."""

    sums: Tensor
    failed: Tensor
    culprits: Tensor

    @classmethod
    def of(cls, traced: Traced, device: torch.device) -> Board:
        size = 1 + len(traced.complaints) + len(traced.parameters)
        return cls(
            torch.zeros(2, dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            torch.zeros(size, dtype=torch.float64, device=device),
        )

    def tensors(self) -> list[Tensor]:
        return [self.sums, self.failed, self.culprits]


def record_step(
    traced: Traced, optimizer: SingleOptimizer, batch: Sequence[Tensor], size: int
) -> Recorded:
    """Record the step of a traced loss. Raises: `Untraceable` where the optimizer's cannot be."""
    parameters = [p.detach() for p in traced.parameters.values()]
    examples = optimizer.example_state(parameters)
    keys = tuple(
        tuple(key for key, item in state.items() if isinstance(item, Tensor)) for state in examples
    )
    numbers = [
        {key: item for key, item in state.items() if not isinstance(item, Tensor)}
        for state in examples
    ]
    if any(value is not None for state in numbers for value in state.values()):
        raise Untraceable(f"optimizer '{optimizer.cls.__name__}' counts in Python numbers")
    device = batch[0].device
    lost = [name for name, p in traced.parameters.items() if p.device != device]
    if lost:
        raise Untraceable(f"parameter '{lost[0]}' is not on {device}, where the data are")
    kept = [item for state in examples for item in state.values() if isinstance(item, Tensor)]
    if any(item.device != device for item in kept):
        raise Untraceable(
            f"optimizer '{optimizer.cls.__name__}' keeps a part of its state away from {device}"
        )
    board = Board.of(traced, device).tensors()
    flat_states = [state[key] for state, names in zip(examples, keys, strict=True) for key in names]

    def step(*inputs: Tensor) -> tuple[()]:
        rest = list(inputs)

        def take(count: int) -> list[Tensor]:
            taken, rest[:] = rest[:count], rest[count:]
            return taken

        weights, states = take(len(parameters)), take(len(flat_states))
        sums, failed, culprits = take(3)
        *data, beta, learning_rate = rest
        loss, complaints, *gradients = traced.graph(*weights, *data, beta)
        norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients])
        norm = torch.linalg.vector_norm(norms)
        report = torch.cat([loss.reshape(1), complaints, norms.double()])
        good = torch.isfinite(loss) & torch.isfinite(norm) & (failed == 0)
        if optimizer.clip_norm is not None:
            shrink = (optimizer.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [g * shrink.to(g.dtype) for g in gradients]
        new_weights = [w.clone() for w in weights]
        new_states = [s.clone() for s in states]
        queue = iter(new_states)
        optimizer.update(
            new_weights,
            gradients,
            [{key: next(queue) for key in names} for names in keys],
            learning_rate,
        )
        culprits.copy_(torch.where(failed == 0, report, culprits))
        for old, new in zip([*weights, *states], [*new_weights, *new_states], strict=True):
            old.copy_(torch.where(good, new, old))
        gained = torch.stack([-size * loss, norm.double()])
        sums.copy_(torch.where(good, sums + gained, sums))
        failed.copy_(torch.where(good, 0, failed + 1))
        return ()

    beta = torch.ones((), dtype=torch.float64, device=device)
    inputs = [*parameters, *flat_states, *board, *batch, beta, beta.clone()]
    with torch.no_grad():
        graph = capture(step, inputs, mutable=len(parameters) + len(flat_states) + len(board))
    return Recorded(graph, traced, keys)

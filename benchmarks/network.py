"""The network and the data that every row works on, in numpy: no framework is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PIXELS = 784
SIDE = 28
SHARE_OF_ONES = 0.13  # of MNIST's pixels


@dataclass(frozen=True)
class Sizes:
    """PIXELS - hidden - hidden - 2 x latent, and latent - hidden - hidden - PIXELS, tanh."""

    hidden: int = 200
    latent: int = 50

    @classmethod
    def of(cls, task: dict[str, Any]) -> Sizes:
        return cls(hidden=task.get("hidden", cls.hidden), latent=task.get("latent", cls.latent))

    @property
    def encoder(self) -> tuple[int, ...]:
        return PIXELS, self.hidden, self.hidden, 2 * self.latent

    @property
    def decoder(self) -> tuple[int, ...]:
        return self.latent, self.hidden, self.hidden, PIXELS


def weights(sizes: Sizes, seed: int = 0) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Untrained weights `[outputs, inputs]` and biases of every layer, the same for every row.

    Glorot-uniform; the last layers are a tenth of that, so that q(z|x) lies near p(z|x) and all
    rows that estimate log p(x) must agree on it.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, widths in (("encoder", sizes.encoder), ("decoder", sizes.decoder)):
        layers = []
        for i in range(len(widths) - 1):
            inputs, outputs = widths[i], widths[i + 1]
            bound = np.sqrt(6 / (inputs + outputs)) * (0.1 if i == len(widths) - 2 else 1.0)
            matrix = generator.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
            layers.append((matrix, np.zeros(outputs, np.float32)))
        made[name] = layers
    return made


def binary_data(count: int, seed: int = 1) -> np.ndarray:
    """`[count, PIXELS]` of zeros and ones, float32."""
    generator = np.random.default_rng(seed)
    return (generator.random((count, PIXELS), dtype=np.float32) < SHARE_OF_ONES).astype(np.float32)


def products_of_step(
    batch: int, sizes: Sizes, pseudo_inputs: int = 0
) -> list[tuple[int, int, int]]:
    """(m, k, n) of every matrix product [m, k] x [k, n] of one training step.

    Per layer: outputs, gradient of the weights, gradient of the inputs. Data need no gradient;
    pseudo-inputs of a VampPrior do, and its density is one more product.
    """

    def layer(rows: int, inputs: int, outputs: int, with_inputs: bool) -> list:
        made = [(rows, inputs, outputs), (outputs, rows, inputs)]
        return [*made, (rows, outputs, inputs)] if with_inputs else made

    def net(rows: int, widths: tuple[int, ...], first: bool) -> list:
        pairs = enumerate(pairwise(widths))
        return [p for i, w in pairs for p in layer(rows, *w, first or i > 0)]

    made = net(batch, sizes.encoder, False) + net(batch, sizes.decoder, True)
    if pseudo_inputs:
        made += net(pseudo_inputs, sizes.encoder, True)
        made += layer(batch, 2 * sizes.latent, pseudo_inputs, True)
    return made

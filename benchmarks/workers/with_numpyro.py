"""NumPyro: jitted `svi.update`, the same under `lax.scan`, and a vmapped, jitted log weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density

from benchmarks.network import Sizes, binary_data, weights
from benchmarks.workers.search import fastest
from benchmarks.workers.tiles import TILES


def apply(layers: list, x: jax.Array) -> jax.Array:
    for i, (matrix, bias) in enumerate(layers):
        x = x @ matrix.T + bias
        x = jnp.tanh(x) if i < len(layers) - 1 else x
    return x


def pair(sizes: Sizes) -> tuple[Callable, Callable]:
    """Model and guide of a batch `x [n, 784]`."""
    start = jax.tree.map(jnp.asarray, weights(sizes))

    def model(x):
        decoder = numpyro.param("decoder", start["decoder"])
        with numpyro.plate("data", len(x)):
            zero = jnp.zeros((len(x), sizes.latent))
            z = numpyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            logits = apply(decoder, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        encoder = numpyro.param("encoder", start["encoder"])
        with numpyro.plate("data", len(x)):
            loc, raw = jnp.split(apply(encoder, x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(raw)).to_event(1))

    return model, guide


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    return evidence(task) if task["work"] == "evidence" else training(task)


def training(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    data = jnp.asarray(binary_data(task["num_data"]))
    size, count = task["batch"], task["num_data"]
    svi = SVI(*pair(Sizes.of(task)), numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(random.key(0), data[:size])

    def epochs() -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        while True:
            order = generator.permutation(count)[: count - count % size]
            yield from order.reshape(-1, size).astype(np.int32)

    batches = epochs()

    @jax.jit
    def one(state, total, data, rows):
        state, loss = svi.update(state, data[rows])
        return state, total + loss / size

    @jax.jit
    def many(state, total, data, order):
        return lax.scan(lambda s, rows: (one(*s, data, rows), None), (state, total), order)[0]

    def run(n: int) -> dict[str, Any]:
        nonlocal state
        total = jnp.zeros(())
        if task["kind"] == "scan":
            order = jnp.asarray(np.stack([next(batches) for _ in range(n)]))
            state, total = many(state, total, data, order)
        else:
            for _ in range(n):
                state, total = one(state, total, data, next(batches))
        jax.block_until_ready(state)
        return {"value": float(total) / n}

    run(task["warmup"])
    if task["kind"] == "scan" and task["warmup"] != task["n"]:
        run(task["n"])  # compiled for its own length
    return run, "gather inside the jitted step"


def evidence(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """log 1/K sum_k w_k of one datum: `log_density` of guide and model, vmapped over draws."""
    data = jnp.asarray(binary_data(task["num_data"]))
    model, guide = pair(Sizes.of(task))
    samples = task["num_samples"]

    def log_weight(key, x):
        drawn = numpyro.handlers.seed(guide, key)
        log_q, trace = log_density(drawn, (x,), {}, {})
        replayed = numpyro.handlers.substitute(model, data={"z": trace["z"]["value"]})
        log_p, _ = log_density(replayed, (x,), {}, {})
        return log_p - log_q

    def make(rows: int) -> Callable[[int], dict]:
        @jax.jit
        def log_px(key, x):
            keys = random.split(key, (samples // rows, rows))
            each = lax.map(lambda some: jax.vmap(log_weight, (0, None))(some, x), keys)
            return jax.scipy.special.logsumexp(each.reshape(-1)) - math.log(samples)

        def run(n: int) -> dict[str, Any]:
            keys = random.split(random.key(1), n)
            found = [log_px(keys[i], data[i : i + 1]) for i in range(n)]
            return {"value": float(jnp.stack(found).mean())}

        return run

    whole = [rows for rows in TILES if samples % rows == 0] or [samples]
    if not task["search"]:
        whole = whole[:1]
    found, run = fastest(whole, make, lambda way: way(2))
    if task["warm"]:
        run(task["n"])  # the keys' splitting is compiled for its number
    return run, f"tiles of {found} samples of one datum"

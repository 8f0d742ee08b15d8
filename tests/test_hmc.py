"""The steps of chains: reversible, volume-preserving, of the right order, and stationary."""

import math

import pytest
import torch

from inference.evidence.hmc import begin, move
from inference.evidence.space import Ends
from tests.exact_models import agrees

D = 3


def ends(u):
    """From N(0, I) to a bent density: all in float64."""
    start = -0.5 * (u.double().square() + math.log(2 * math.pi)).sum(-1)
    x, y, z = u.double().unbind(-1)
    target = -0.5 * (x**2 + (y - 0.3 * x**2) ** 2 / 0.5 + (z - y) ** 2)
    return Ends(start, target)


def gaussian_ends(mean, root):
    """To N(mean, root root')."""

    def both(u):
        whitened = torch.linalg.solve_triangular(root, (u - mean).unsqueeze(-1), upper=False)
        target = -0.5 * whitened.squeeze(-1).square().sum(-1)
        return Ends(-0.5 * u.square().sum(-1), target)

    return both


def points(chains, seed=0, num=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, num, D, generator=generator, dtype=torch.float64)


def leapfrogs(u, v, step, count, beta=0.7, accept=True):
    """`count` leapfrog steps without fresh momentum; always accepted."""
    chains = begin(ends, u, v)
    return move(
        ends,
        chains,
        torch.zeros_like(u),
        torch.full(u.shape[:2], -math.inf if accept else math.inf, dtype=torch.float64),
        torch.full(u.shape[1:2], beta, dtype=torch.float64),
        torch.full_like(u, step),
        num_leapfrog=count,
        keep=1.0,
    )


def test_steps_are_reversible():
    u, v = points(5), points(5, seed=1)
    there = leapfrogs(u, v, 0.3, 7).chains
    assert not torch.allclose(there.u, u, atol=0.1)
    back = leapfrogs(there.u, -there.v, 0.3, 7).chains
    assert torch.allclose(back.u, u, atol=1e-10)
    assert torch.allclose(-back.v, v, atol=1e-10)


def test_steps_preserve_volume():
    def walk(both):
        u, v = both.reshape(2, 1, 1, D)
        found = leapfrogs(u, v, 0.3, 4).chains
        return torch.cat([found.u.flatten(), found.v.flatten()])

    both = torch.cat([points(1).flatten(), points(1, seed=1).flatten()])
    columns = []
    for i in range(2 * D):  # the slopes are detached, so by differences
        bump = torch.zeros_like(both)
        bump[i] = 1e-5
        columns.append((walk(both + bump) - walk(both - bump)) / 2e-5)
    assert float(torch.linalg.det(torch.stack(columns, 1))) == pytest.approx(1.0, abs=1e-6)


def test_the_error_of_the_energy_is_of_second_order():
    u, v = 0.5 * points(200), points(200, seed=1)
    beta, size = 0.7, {}

    def energy(chains):
        return chains.start + beta * chains.log_ratio - 0.5 * chains.v.square().sum(-1)

    for step, count in ((0.1, 10), (0.05, 20)):
        change = energy(leapfrogs(u, v, step, count).chains) - energy(begin(ends, u, v))
        size[step] = float(change.abs().mean())
    assert size[0.1] / size[0.05] == pytest.approx(4.0, rel=0.15)


def test_a_rejected_step_turns_back():
    u, v = points(4), points(4, seed=1)
    found = leapfrogs(u, v, 0.3, 3, accept=False).chains
    assert torch.equal(found.u, u)
    assert torch.equal(found.v, -v)


def test_what_is_no_number_is_rejected():
    def broken(u):
        start, target = ends(u)
        return Ends(start, torch.where(u[..., 0] > 0, torch.nan, target))

    u = -points(50).abs()
    chains = begin(broken, u, points(50, seed=1))
    for seed in range(20):
        moved = step_of(broken, chains, seed)
        chains = moved.chains
        assert bool(chains.target.isfinite().all())
        assert bool(moved.acceptance.isfinite().all())
        assert bool((chains.u[..., 0] <= 0).all())


def test_what_is_infinite_is_rejected():
    """A density that overflows is no place to stay; a start without density is one to leave."""

    def poles(u):
        start, target = ends(u)
        target = torch.where(u[..., 0] > 0, math.inf, target)
        return Ends(start, torch.where(u[..., 0] < -3, -math.inf, target))

    u = -points(50).abs()
    u[:25, :, 0] -= 3
    chains = begin(poles, u, points(50, seed=1))
    for seed in range(20):
        chains = step_of(poles, chains, seed).chains
        assert bool((chains.u[..., 0] <= 0).all())
    assert bool(chains.target.isfinite().any(1)[:25].sum() > 15)


def step_of(both, chains, seed, step=0.8, beta=1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = chains.u.shape
    return move(
        both,
        chains,
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.rand(shape[:2], generator=generator, dtype=torch.float64).log(),
        torch.full(shape[1:2], beta, dtype=torch.float64),
        torch.full(shape, step, dtype=torch.float64),
        num_leapfrog=2,
        keep=0.5,
    )


@pytest.mark.parametrize("always", [False, True])
def test_the_target_is_stationary(always):
    """Chains that begin in the target stay there; if every proposal is taken, they do not."""
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.4, 0.7]], dtype=torch.float64)
    both = gaussian_ends(mean, root)
    u = mean + points(20_000, seed=2) @ root.T
    chains = begin(both, u, points(20_000, seed=3))
    accepted = 0.0
    for seed in range(12):
        if always:
            moved = step_of(both, chains, seed, step=0.3)
            taken = move(
                both, chains, torch.zeros_like(u), torch.full_like(chains.start, -math.inf),
                torch.ones(1, dtype=torch.float64), torch.full_like(u, 0.3),
                num_leapfrog=2, keep=1.0,
            )  # fmt: skip
            generator = torch.Generator().manual_seed(seed)
            v = torch.randn(u.shape, generator=generator, dtype=torch.float64)
            chains = taken.chains._replace(v=v)
        else:
            moved = step_of(both, chains, seed, step=0.3)
            chains = moved.chains
        accepted += float(moved.acceptance.mean()) / 12
    assert 0.5 < accepted < 0.98
    z = torch.linalg.solve_triangular(root, (chains.u[:, 0] - mean).T, upper=False).T
    right = all(
        agrees(part.mean(0), truth, part.std(0) / math.sqrt(len(part)), ceiling=0.02)
        for part, truth in ((z, torch.zeros(D)), (z.square(), torch.ones(D)))
    )
    assert right != always

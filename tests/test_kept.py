"""A stopped estimate goes on where it stood, with an equal result."""

from dataclasses import replace

import pytest
import torch

import inference
from inference.evidence import importance, kept
from inference.evidence.ais import AIS
from inference.evidence.smc import SMC
from tests.exact_models import linear_gaussian

ESTIMATORS = [
    inference.Importance(num_samples=200),
    inference.Importance(num_samples=200, proposal="defensive"),
    AIS(num_chains=16, num_temperatures=5, pilot_temperatures=6),
    SMC(num_chains=16, num_temperatures=5, pilot_temperatures=6),
    inference.Sandwich(
        num_data=12, by=AIS(num_chains=16, num_temperatures=5, pilot_temperatures=6)
    ),
    inference.Sandwich(num_data=12, by=inference.Importance(num_samples=200)),
    inference.Auto(look=100, chains=AIS(num_chains=16, num_temperatures=5, pilot_temperatures=6)),
    inference.Auto(look=100, chains=SMC(num_chains=16, num_temperatures=5, pilot_temperatures=6)),
    inference.Quadrature(),
]


@pytest.fixture
def pair(monkeypatch):
    """A model of 12 data, each tile of which holds a few."""
    monkeypatch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 6 * 64)
    monkeypatch.setattr(importance, "DATA_AT_ONCE", 3)
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    held = linear_gaussian(seed=1, D=6, L=2)
    scale = torch.diag(torch.tensor([1.5, 0.5]).double() / torch.diagonal(held.A))
    return replace(held, S=scale)


def estimate(pair, x, estimator, **options):
    return inference.log_marginal(
        pair.model, pair.guide, x, estimator=estimator, progress=False, seed=3, **options
    )


class Stop(KeyboardInterrupt):
    pass


def stop_after(count, monkeypatch):
    """Break off when so many parts are kept."""
    put = kept.Kept.put

    def counted(self, name, tensors):
        put(self, name, tensors)
        if self.path is not None and self.num_parts >= count:
            raise Stop

    monkeypatch.setattr(kept.Kept, "put", counted)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{e.name}")
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_an_interrupted_estimate_goes_on(pair, estimator, count, tmp_path, monkeypatch):
    x, path = pair.sample(12, seed=5), tmp_path / "kept.safetensors"
    whole = estimate(pair, x, estimator)
    with monkeypatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(Stop):
            estimate(pair, x, estimator, checkpoint=path)
    assert path.exists()
    resumed = estimate(pair, x, estimator, checkpoint=path)
    for name, tensor in whole.arrays().items():
        assert torch.equal(tensor.nan_to_num(-1.0), resumed.arrays()[name].nan_to_num(-1.0)), name
    told = [str(found.summary() | {"seconds": 0}) for found in (resumed, whole)]  # NaN is not NaN
    assert told[0] == told[1]
    assert not path.exists()


def test_what_is_finished_is_not_done_again(pair, tmp_path, monkeypatch):
    x, path = pair.sample(12, seed=5), tmp_path / "kept.safetensors"
    estimator = AIS(num_chains=16, num_temperatures=5, pilot_temperatures=6)
    moves = []
    real = inference.evidence.tempering.Walk.move
    monkeypatch.setattr(
        inference.evidence.tempering.Walk,
        "move",
        lambda *args: moves.append(1) or real(*args),
    )
    estimate(pair, x, estimator)
    whole, tiles = len(moves), 3
    assert whole == tiles * (6 + 5)
    with monkeypatch.context() as patch:
        stop_after(tiles + 2, patch)
        with pytest.raises(Stop):
            estimate(pair, x, estimator, checkpoint=path)
    moves.clear()
    estimate(pair, x, estimator, checkpoint=path)
    assert len(moves) == (tiles - 1) * 5 - 1  # the second tile's first move is kept


OF_CHAINS = {"num_chains": 16, "num_temperatures": 12, "pilot_temperatures": 6}


@pytest.mark.parametrize(
    ("estimator", "stop", "moves_in_all"),
    [
        (AIS(**OF_CHAINS), 13, 18),
        (SMC(**OF_CHAINS), 13, 18),
        (inference.Sandwich(num_data=3, by=AIS(**OF_CHAINS)), 13, 30),
        (inference.Sandwich(num_data=3, by=AIS(**OF_CHAINS)), 22, 30),
    ],
    ids=["ais", "smc", "sandwich, there", "sandwich, back"],
)
def test_a_tile_goes_on_where_its_chains_stood(
    pair, estimator, stop, moves_in_all, tmp_path, monkeypatch
):
    x, path = pair.sample(3, seed=5), tmp_path / "kept.safetensors"
    whole = estimate(pair, x, estimator)
    moves = []
    real = inference.evidence.tempering.Walk.move

    def stopped(*args):
        if len(moves) == stop:
            raise Stop
        moves.append(1)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(inference.evidence.tempering.Walk, "move", stopped)
        with pytest.raises(Stop):
            estimate(pair, x, estimator, checkpoint=path)
    monkeypatch.setattr(
        inference.evidence.tempering.Walk, "move", lambda *args: moves.append(1) or real(*args)
    )
    resumed = estimate(pair, x, estimator, checkpoint=path)
    assert len(moves) == moves_in_all
    for name, tensor in whole.arrays().items():
        assert torch.equal(tensor.nan_to_num(-1.0), resumed.arrays()[name].nan_to_num(-1.0)), name


def test_another_question_is_refused(pair, tmp_path, monkeypatch):
    x, path = pair.sample(12, seed=5), tmp_path / "kept.safetensors"
    estimator = inference.Importance(num_samples=200)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            estimate(pair, x, estimator, checkpoint=path)
    with pytest.raises(inference.CheckpointError, match="differs in data"):
        estimate(pair, x + 1.0, estimator, checkpoint=path)
    with pytest.raises(inference.CheckpointError, match="differs in estimator"):
        estimate(pair, x, inference.Importance(num_samples=100), checkpoint=path)
    other = replace(pair, mu=pair.mu + 0.1)  # the program closes over it
    with pytest.raises(inference.CheckpointError, match="differs in pair"):
        estimate(other, x, estimator, checkpoint=path)
    with monkeypatch.context() as patch:
        patch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 2**20)
        with pytest.raises(inference.CheckpointError, match="differs in pair"):
            estimate(pair, x, estimator, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-7] + b"1234567")
    with pytest.raises(inference.CheckpointError, match="damaged"):
        estimate(pair, x, estimator, checkpoint=path)


def test_settings_of_the_chains_are_part_of_the_question(pair, tmp_path, monkeypatch):
    """All of them: `resample_below` is of `SMC` alone."""
    x, path = pair.sample(12, seed=5), tmp_path / "kept.safetensors"
    of_chains = {"num_chains": 16, "num_temperatures": 5, "pilot_temperatures": 6}
    estimators = [
        inference.Auto(look=100, chains=SMC(resample_below=share, **of_chains))
        for share in (0.5, 1.0)
    ]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            estimate(pair, x, estimators[0], checkpoint=path)
    with pytest.raises(inference.CheckpointError, match="differs in estimator"):
        estimate(pair, x, estimators[1], checkpoint=path)


def test_parameters_are_part_of_the_question(tmp_path, monkeypatch):
    """The same program with other weights is another question."""
    import pyro
    import pyro.distributions as dist

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    pyro.clear_param_store()
    pyro.param("loc", torch.tensor(0.0))
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    x, path = torch.randn(10), tmp_path / "kept.safetensors"
    options = {"estimator": inference.Importance(num_samples=50), "progress": False}
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            inference.log_marginal(model, guide, x, checkpoint=path, **options)
    pyro.get_param_store()["loc"] = torch.tensor(1.0)
    with pytest.raises(inference.CheckpointError, match="differs in pair"):
        inference.log_marginal(model, guide, x, checkpoint=path, **options)
    pyro.clear_param_store()

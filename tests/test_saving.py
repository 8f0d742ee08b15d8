"""Estimates in files, several as one, and two of them compared."""

import math
from dataclasses import fields, replace

import pytest
import torch

import inference
from inference.evidence import sandwich
from tests.exact_models import linear_gaussian

PAIR = linear_gaussian(seed=1, D=5, L=2)
POOR = replace(PAIR, S=torch.diag(1.5 / torch.diagonal(PAIR.A)))
AIS = inference.AIS(num_chains=4, num_temperatures=4)
KINDS = {
    "importance": inference.Importance(num_samples=100),
    "ais": AIS,
    "smc": inference.SMC(num_chains=8, num_temperatures=4),
    "sandwich": inference.Sandwich(num_data=12, by=AIS),
    "quadrature": inference.Quadrature(),
    "auto": inference.Auto(look=100, chains=AIS),
    "auto by smc": inference.Auto(look=100, chains=inference.SMC(num_chains=8, num_temperatures=4)),
}


def estimated(estimator, x=None, pair=POOR, **options):
    x = PAIR.sample(12, seed=2) if x is None else x
    return inference.log_marginal(
        pair.model, pair.guide, x, estimator=estimator, progress=False, **options
    )


def test_parts_of_which_one_needed_no_chains():
    x = PAIR.sample(12, seed=2)
    parts = [estimated(KINDS["auto"], x[:6], PAIR), estimated(KINDS["auto"], x[6:])]
    assert parts[0].num_chains == 0
    assert inference.Estimate.concatenate(parts).num_chains == parts[1].num_chains


def test_every_kind_can_be_read():
    from inference.evidence.loading import KINDS as known

    def kinds(kind):
        return {kind.__name__, *(name for sub in kind.__subclasses__() for name in kinds(sub))}

    assert kinds(inference.Estimate) == set(known)


@pytest.mark.parametrize("name", KINDS)
def test_written_and_read_it_is_the_same(name, tmp_path):
    found = estimated(KINDS[name])
    found.save(tmp_path / "estimate.safetensors")
    again = inference.load_estimate(tmp_path / "estimate.safetensors")
    assert type(again) is type(found)
    assert str(again) == str(found)
    for field in fields(found):
        a, b = getattr(found, field.name), getattr(again, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(-9.0), b.nan_to_num(-9.0)), field.name
            assert a.dtype == b.dtype
        else:
            assert a == b or (math.isnan(a) and math.isnan(b)), field.name


def test_files_that_hold_no_estimate(tmp_path):
    path = tmp_path / "estimate.safetensors"
    with pytest.raises(inference.CheckpointError, match=r"no such file.*Estimate.save"):
        inference.load_estimate(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(inference.CheckpointError, match="damaged"):
        inference.load_estimate(path)
    found = estimated(AIS)
    found.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(inference.CheckpointError, match="digest"):
        inference.load_estimate(path)
    from inference.tensor_files import write_tensors

    write_tensors(path, {"value": torch.zeros(3)}, {"format": 1, "kind": "Module"})
    with pytest.raises(inference.CheckpointError, match="holds no estimate"):
        inference.load_estimate(path)


@pytest.fixture(scope="module")
def ordinary():
    """What a whole file of five data holds."""
    from inference.evidence.saving import _split

    found = estimated(inference.Importance(num_samples=100), PAIR.sample(5))
    tensors, scalars = _split(found)
    return tensors, {"format": 1, "kind": "WeightedEstimate", "scalars": scalars}


FIVE = torch.zeros(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tensors", "meta", "scalars", "said"),
    [
        ({}, {"format": 9}, {}, "holds no estimate .*format 9"),
        ({}, {"kind": ["WeightedEstimate"]}, {}, r"holds no estimate .*kind \['WeightedEst"),
        ({}, {"kind": None}, {}, "holds no estimate .*kind None"),
        ({}, {"scalars": [1, 2]}, {}, "scalars: got a list; expected values by name"),
        ({}, {"scalars": None}, {}, "scalars: got a NoneType"),
        ({"value": None}, {}, {}, "value: is missing"),
        ({"ess": None}, {}, {}, "ess: is missing"),
        ({}, {}, {"quantity": None}, "quantity: is missing"),
        ({"value": torch.zeros(3).double()}, {}, {}, r"std_error: has shape \[5\]; expected \[3\]"),
        ({"elbo": torch.zeros(2).double()}, {}, {}, r"elbo: has shape \[2\]; expected \[5\]"),
        ({"khat": FIVE[:, None]}, {}, {}, r"khat: has shape \[5, 1\]; expected \[5\]"),
        ({"value": FIVE[0]}, {}, {}, r"value: has shape \[\]; expected \[N\]"),
        ({"value": FIVE[:0]}, {}, {}, r"value: has shape \[0\]; expected \[N\]"),
        ({"value": FIVE.long()}, {}, {}, "value: has dtype torch.int64; expected torch.float64"),
        ({"flagged": FIVE}, {}, {}, "flagged: has dtype torch.float64; expected torch.bool"),
        ({"quantity": FIVE}, {}, {"quantity": None}, "quantity: got a tensor; expected none"),
        ({"other": FIVE}, {}, {}, "other: WeightedEstimate has no such field"),
        ({}, {}, {"colour": "red"}, "colour: WeightedEstimate has no such field"),
        ({"value": None}, {}, {"value": [1.0, 2.0]}, "value: got .* instance of Tensor"),
        ({}, {}, {"quantity": 5}, "quantity: got 5 .*valid string"),
        ({}, {}, {"num_samples": "many"}, "num_samples: got 'many' .*valid integer"),
        ({}, {}, {"tile": [1, 2, 3]}, r"tile: got \(1, 2, 3\) "),
        ({}, {}, {"tile": {"data": 1}}, "tile: got {'data': 1} .*valid tuple"),
        ({}, {}, {"notes": ["a", 3]}, "notes: got .*valid string"),
        ({}, {}, {"seconds": [1.0]}, "seconds: got .*valid number"),
    ],
)
def test_a_file_that_is_wrong_inside_is_refused(ordinary, tensors, meta, scalars, said, tmp_path):
    """One sentence that names the file and the field, however it was written."""
    from inference.tensor_files import write_tensors

    path = tmp_path / "estimate.safetensors"
    held, whole = ordinary
    write_tensors(path, held, whole)
    assert inference.load_estimate(path).num_data == 5
    held = {k: v for k, v in {**held, **tensors}.items() if v is not None}
    inner = {k: v for k, v in {**whole["scalars"], **scalars}.items() if v is not None}
    write_tensors(path, held, {**whole, "scalars": inner, **meta})
    with pytest.raises(inference.CheckpointError, match=said) as caught:
        inference.load_estimate(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_metadata_that_are_no_mapping(tmp_path):
    from inference.tensor_files import write_tensors

    path = tmp_path / "estimate.safetensors"
    write_tensors(path, {"value": FIVE}, [1, 2])
    with pytest.raises(inference.CheckpointError, match="metadata are a list; expected a mapping"):
        inference.load_estimate(path)


def test_draws_of_a_predictive_estimate_are_of_its_data(tmp_path):
    from inference.evidence.predictive import PredictiveEstimate
    from inference.evidence.saving import _split

    tensors, scalars = _split(estimated(inference.Quadrature(), PAIR.sample(5)))
    own = {name: tensors[name] for name in ("value", "std_error", "elbo")}
    given = torch.zeros(5, 3, dtype=torch.float64)
    whole = PredictiveEstimate(**own, **scalars, given=given, draws_std_error=FIVE)
    path = tmp_path / "estimate.safetensors"
    whole.save(path)
    assert torch.equal(inference.load_estimate(path).given, given)
    replace(whole, given=given[:2]).save(path)
    with pytest.raises(
        inference.CheckpointError, match=r"given: has shape \[2, 3\]; expected \[5, d"
    ):
        inference.load_estimate(path)


@pytest.mark.parametrize("name", [n for n in KINDS if n != "sandwich"])
def test_parts_make_a_whole(name):
    x = PAIR.sample(12, seed=2)
    first, second = estimated(KINDS[name], x[:5]), estimated(KINDS[name], x[5:], seed=1)
    whole = inference.Estimate.concatenate([first, second])
    assert type(whole) is type(first)
    assert torch.equal(whole.value, torch.cat([first.value, second.value]))
    assert whole.compare(estimated(KINDS["importance"], x)).difference.shape == (12,)
    with pytest.raises(inference.RequestError, match="of other data"):
        whole.compare(estimated(KINDS["importance"], x.flip(0)))
    assert whole.num_data == 12
    assert whole.seconds == first.seconds + second.seconds
    for arrays in (whole.arrays(),):
        assert all(len(tensor) == 12 for tensor in arrays.values())
    assert "mean of 12" in str(whole)


def test_what_does_not_make_a_whole():
    few, more = (estimated(inference.Importance(num_samples=k)) for k in (50, 100))
    with pytest.raises(inference.RequestError, match=r"num_samples is 50, 100"):
        inference.Estimate.concatenate([few, more])
    with pytest.raises(inference.RequestError, match="one estimator"):
        inference.Estimate.concatenate([few, estimated(AIS)])
    with pytest.raises(inference.RequestError, match="no estimate"):
        inference.Estimate.concatenate([])
    joint = estimated(inference.Importance(num_samples=50), PAIR.sample(3), plate=None)
    with pytest.raises(inference.RequestError, match="do not add up"):
        inference.Estimate.concatenate([joint, joint])


def test_compared_datum_by_datum():
    x = PAIR.sample(400, seed=3)
    shifted = replace(PAIR, mu=PAIR.mu + 0.3)
    a = estimated(inference.Importance(num_samples=500), x, PAIR)
    b = estimated(inference.Importance(num_samples=500), x, shifted, seed=9)
    found = a.compare(b)
    exact = PAIR.log_px(x) - shifted.log_px(x)
    assert torch.allclose(found.difference, exact, atol=1e-5)  # both guides are exact
    assert found.std_error == pytest.approx(float(exact.std() / 20), rel=1e-3)
    # Paired: far below what two separate errors would say.
    assert found.std_error < 0.5 * math.hypot(a.test_std_error, b.test_std_error)
    assert found.mc_std_error == math.hypot(a.mc_std_error, b.mc_std_error)
    assert f"{found.mean:+.3g}" in str(found)
    assert found.summary()["num_data"] == 400


def test_only_the_same_data_are_compared():
    x = PAIR.sample(12, seed=2)
    a = estimated(AIS, x)
    with pytest.raises(inference.RequestError, match="of other data"):
        a.compare(estimated(AIS, x + 1))
    two = [estimated(KINDS["sandwich"], x, pair) for pair in (POOR, replace(POOR, mu=POOR.mu + 1))]
    with pytest.raises(inference.RequestError, match="of other data"):  # each made its own
        two[0].compare(two[1])
    with pytest.raises(inference.RequestError, match="num_data"):
        a.compare(estimated(AIS, x[:5]))
    with pytest.raises(inference.RequestError, match="quantity"):
        a.compare(replace(a, quantity="log p(x|y)"))
    flagged = replace(a, flagged=torch.ones(12, dtype=torch.bool))
    said = str(flagged.compare(estimated(inference.Importance(num_samples=100), x)))
    assert "an error is not to be believed" in said
    assert "by ais, the second by importance" in said


def test_a_notebook_shows_a_table():
    found = estimated(KINDS["sandwich"])
    shown = found._repr_html_()
    assert "<table>" in shown
    assert f"{found.gap:.3f}" in shown
    assert "<script" not in replace(found, notes=("<script>",))._repr_html_()
    assert isinstance(found, sandwich.SandwichEstimate)

"""The speed benchmark runs in small, survives what fails, and writes what the README shows."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).parent.parent
ROWS = "^training-20/(products|hand-eager|numpyro-scan)$|^gpu-training-128/svi$"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """`benchmarks` stands beside the packages; it is not installed with them."""
    monkeypatch.syspath_prepend(ROOT)


def call(module, *arguments):
    """`python -m module`, with warnings as errors and peers whose interpreter is not there."""
    environment = {**os.environ, "PYRO_VAE_PEERS": str(ROOT / "no" / "such" / "python")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The file of a tiny run."""
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    call("benchmarks.speed", "--quick", "--threads", 1, "--only", ROWS, "--out", path)
    return path


@pytest.mark.slow
def test_rows_are_measured_side_by_side(result):
    found = json.loads(result.read_text())
    section = found["sections"]["training-20"]
    rows = {row["name"]: row for row in section["rows"]}
    assert list(rows) == ["products", "hand-eager", "numpyro-scan"]
    for name in ("products", "hand-eager"):
        row = rows[name]
        assert len(row["times"]) == len(section["load"]) == 2
        assert 0 < row["lower"] <= row["median"] <= row["upper"]
        assert row["baseline_mib"] > 10
    times, products = rows["hand-eager"]["times"], rows["products"]["times"]
    told = rows["hand-eager"]["ratios"]["products"]["median"]
    assert told == pytest.approx((times[0] / products[0] + times[1] / products[1]) / 2)
    # 784 pixels of which 13% are ones, and untrained weights: about 784 log 2 at first.
    assert 100 < rows["hand-eager"]["value"] < 784 * math.log(2)
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert str(ROOT) not in result.read_text()


@pytest.mark.slow
def test_a_missing_peer_is_a_row_with_its_reason(result):
    sections = json.loads(result.read_text())["sections"]
    row = sections["training-20"]["rows"][-1]
    assert row["reason"].startswith("its interpreter does not start")
    assert "median" not in row
    if not torch.cuda.is_available():
        assert sections["gpu-training-128"]["rows"][0]["reason"] == "no CUDA device"


@pytest.mark.slow
def test_report_rewrites_its_part_of_the_readme(result, tmp_path):
    from benchmarks.report import BEGIN, END

    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nstale\n{END}\n\nAfter.\n")
    shown = call("benchmarks.report", "--result", result, "--readme", readme)
    text = readme.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}\n**Quick settings")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "stale" not in text
    assert "| PyTorch by hand, eager | " in text
    assert "| NumPyro, lax.scan | not measured |" in text
    assert "* not measured (its interpreter does not start" in text
    assert "PyTorch by hand, eager" in shown.stdout
    call("benchmarks.report", "--result", result, "--readme", readme)
    assert readme.read_text() == text


@pytest.mark.slow
def test_report_wants_its_marks(result, tmp_path):
    from benchmarks.report import main

    readme = tmp_path / "README.md"
    readme.write_text("# No marks\n")
    with pytest.raises(SystemExit, match="speed:begin"):
        main(["--result", str(result), "--readme", str(readme)])
    assert readme.read_text() == "# No marks\n"


def test_plot_of_costs(tmp_path):
    from benchmarks.plot import draw

    def row(name, seconds, sliced):
        return {"name": name, "median": 1e-6, "whole_seconds": seconds, "extrapolated": sliced}

    sections = {
        f"cost-{axis}-{value}": {
            "axis": axis,
            "value": value,
            "rows": [
                row("ours-compiled", 2.0 * value, value > 1),
                row("products", 1.0 * value, False),
            ],
        }
        for axis in ("samples", "data", "latent", "width")
        for value in (1, 10)
    }
    assert draw({"sections": sections}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    assert not draw({"sections": {}}, tmp_path / "none.png")


def section_of(*rows, **more):
    from benchmarks.plan import Section

    return Section("test", "a test", "step", rows, rounds=2, **more)


def bench(python=sys.executable):
    from benchmarks.measure import Bench
    from benchmarks.plan import Settings

    settings = Settings(quick=True, threads=1)
    return Bench(settings, {False: python, True: python}, "default", lambda text: None)


def test_rows_that_fail_do_not_stop_the_others(tmp_path, monkeypatch):
    from benchmarks.plan import Row

    (tmp_path / "made_here.py").write_text(
        "import os, time\n"
        "def prepare(task):\n"
        "    assert task['n'] == 3\n"
        "    def run(n):\n"
        "        kind = task['kind']\n"
        "        if kind == 'dies': os._exit(7)\n"
        "        if kind == 'raises': raise ValueError('no such thing in /a/b/c.txt\\nmore')\n"
        "        if kind == 'own time': return {'seconds': 3.0, 'once': 4.0}\n"
        "        print('chatter'); time.sleep(0.01)\n"
        "        return {}\n"
        "    return run, 'a note'\n"
    )
    import benchmarks.workers

    folders = [*benchmarks.workers.__path__, str(tmp_path)]
    starter = tmp_path / "sitecustomize.py"
    starter.write_text(f"import benchmarks.workers\nbenchmarks.workers.__path__ = {folders!r}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    kinds = ["sleeps", "dies", "raises", "own time"]
    rows = [Row(k, k, "made_here", {"kind": k}, n=3, units=2, whole=30) for k in kinds]
    rows.append(Row("unknown", "unknown", "no_such_worker", {}, n=3))
    rows.append(Row("absent", "absent", "made_here", {}, n=3, absent="no CUDA device"))
    with bench() as running:
        record = running.run(section_of(*rows, references=("sleeps",)))
    found = {row["name"]: row for row in record["rows"]}
    assert 0.01 / 6 <= found["sleeps"]["median"] < 1
    assert found["sleeps"]["note"] == "a note"
    assert found["dies"]["reason"].startswith("its process ended with 7")
    assert found["raises"]["reason"] == "ValueError: no such thing in c.txt"
    assert found["unknown"]["reason"].startswith("ModuleNotFoundError")
    assert found["absent"]["reason"] == "no CUDA device"
    # 3 seconds are work on 3 data of 2 samples; 30 data pay once what was done before the first.
    assert found["own time"]["whole_seconds"] == pytest.approx(4 + 30 * 2 * 0.5)
    assert found["own time"]["median"] == pytest.approx(0.5 + 4 / 60)
    assert found["own time"]["extrapolated"]
    assert len(record["load"]) == 2


def test_a_row_that_takes_too_long_is_ended():
    from benchmarks.process import WorkerError

    with bench() as running:
        worker = running.start(peer=False)
        with pytest.raises(WorkerError, match="took longer than 0 s"):
            worker.ask({"do": "probe", "packages": ["torch"]}, 0.01)
    assert worker.process.returncode is not None


def test_sections_are_measured_again_into_what_is_kept(tmp_path):
    from benchmarks import speed
    from benchmarks.report import how

    names = "evidence", "memory", "training-20"
    sections = [replace(section_of(), name=name) for name in names]
    assert [s.name for s in speed.whole(sections, "evid|mem")] == ["evidence", "memory"]
    with pytest.raises(SystemExit, match="--again: no section matches 'x'"):
        speed.whole(sections, "x")
    fresh = {
        "started": "2026-01-01",
        "settings": {"quick": False, "threads": 2},
        "machine": {"cpu": "fast", "cores": 2, "cuda": None},
        "versions": {"torch": "2.15"},
        "commit": "b" * 40,
        "sections": {},
    }
    path = tmp_path / "speed.json"
    with pytest.raises(SystemExit, match="is not there; run the whole first"):
        speed.to_be_renewed(path, fresh)
    record = {"load": [], "rows": [], "commit": "c" * 40}
    kept = {**fresh, "commit": "a" * 40, "sections": {"evidence": record, "memory": record}}
    speed.write(path, kept)
    assert speed.to_be_renewed(path, fresh) == kept
    told = " ".join(how(kept).split())
    assert "commit aaaaaaaaaa. Measured again at commit cccccccccc: evidence, memory." in told
    other = {**fresh, "versions": {"torch": "2.16"}}
    with pytest.raises(SystemExit, match="--again: torch of the kept result's versions"):
        speed.to_be_renewed(path, other)


def test_spread_and_ratios():
    from benchmarks.summary import ratio, spread

    assert spread([4.0, 1.0, 3.0, 2.0]) == {"median": 2.5, "lower": 1.75, "upper": 3.25}
    # Twice the reference in every round, however slow the round.
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0])["upper"] == 2.0


def task_of(model, **more):
    task = {"work": "training", "model": model, "batch": 4, "components": 6, "num_data": 40}
    return {**task, "kind": "", "device": "cpu", "hidden": 20, "latent": 5, **more}


@pytest.mark.parametrize("form", ["product", "bce"])
@pytest.mark.parametrize("model", ["mlp", "conv", "vamp"])
def test_the_loss_by_hand_is_that_of_the_pair(model, form, own_store):
    """Rows may be compared: with the same weights and noise, every loss is the same."""
    from benchmarks.workers import hand_models, our_vae
    from benchmarks.workers.torch_parts import data_of

    task = task_of(model)
    data = data_of(task)
    ours, by_hand = our_vae.build(task, data), hand_models.build(task, data, form)
    parts = [(ours.guide_module.encoder, by_hand.encoder), (ours.decoder, by_hand.decoder)]
    with torch.no_grad():
        for mine, copy in parts:
            for here, there in zip(copy.parameters(), mine.parameters(), strict=True):
                here.copy_(there)
        if model == "vamp":
            by_hand.pseudo_inputs.copy_(ours.prior.pseudo_inputs)
    x = data[:4]
    torch.manual_seed(3)
    expected = pyro.infer.Trace_ELBO().loss(ours.model, ours.guide, x) / 4
    torch.manual_seed(3)
    assert by_hand(x).item() == pytest.approx(expected, rel=1e-5)


def test_the_whole_step_by_hand_is_adam(monkeypatch):
    from benchmarks.workers import by_hand, hand_models
    from benchmarks.workers.torch_parts import data_of

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    task = task_of("mlp")
    data = data_of(task)
    losses = []
    for make in (
        lambda model: by_hand.step(model, data, None),
        lambda model: by_hand.whole_step(model, data, False),
    ):
        update = make(hand_models.build(task, data, "product"))
        torch.manual_seed(1)
        losses.append([float(update(torch.arange(i, i + 4))) for i in range(20)])
    assert losses[0][-1] < losses[0][0] - 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_products_of_a_step():
    """Forward 2 m k n, and twice that backward, but for the gradient of the data."""
    from benchmarks.network import Sizes, products_of_step

    made = products_of_step(128, Sizes())
    weights = 784 * 200 + 200 * 200 + 200 * 100 + 50 * 200 + 200 * 200 + 200 * 784
    assert len(made) == 17
    assert sum(m * k * n for m, k, n in made) == 128 * (3 * weights - 784 * 200)


@pytest.mark.slow
def test_evidence_of_a_run_and_its_report(tmp_path):
    """Every row runs, a second call measures none again, and the README's part is rewritten."""
    from cli_runs import trained_runs

    from benchmarks import evidence

    readme, result = tmp_path / "README.md", tmp_path / "results" / "evidence.json"
    readme.write_text(f"Before\n{evidence.BEGIN}\nstale\n{evidence.END}\nAfter\n")
    arguments = ["--quick", "--result", str(result), "--readme", str(readme)]
    run = str(trained_runs() / "a")
    evidence.main([run, *arguments])
    held = json.loads(result.read_text())["runs"]["a"]
    wanted = evidence.rows(first=True, start="guide")
    assert list(held["rows"]) == list(wanted)
    assert all(row["num_data"] in (10, 20) for row in held["rows"].values())
    for name, row in held["rows"].items():
        assert ("gap" in row) == name.startswith("sandwich")
        assert row["seconds"] > 0
    del held["rows"]["smc T=50, all"]
    held["rows"]["auto"]["commit"] = "b" * 40
    result.write_text(json.dumps({"runs": {"a": held}}))
    evidence.main([run, *arguments, "--untimed"])
    held = json.loads(result.read_text())["runs"]["a"]
    assert [n for n, row in held["rows"].items() if "seconds" not in row] == ["smc T=50, all"]
    before = result.read_text()
    evidence.main([run, *arguments, "--report"])
    again = json.loads(result.read_text())["runs"]["a"]
    assert again == json.loads(before)["runs"]["a"]
    text = readme.read_text()
    assert text.startswith(f"Before\n{evidence.BEGIN}\n`python -m benchmarks.evidence`")
    assert text.endswith(f"{evidence.END}\nAfter\n")
    assert "nats below AIS with 200 temperatures" in " ".join(text.split())
    assert "bbbbbbbbbb" in text.partition("Measured at commits ")[2].partition(".")[0]
    assert (tmp_path / "results" / "evidence.png").exists()


def test_models_side_by_side_and_their_report(tmp_path):
    """Two rows, one with two seeds; a second call measures none again; then the README's part."""
    from benchmarks import models

    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"Before\n{models.BEGIN}\nstale\n{models.END}\nAfter\n")
    folders = ["--results", str(results), "--runs", str(tmp_path / "runs")]
    rows = ["standard", "full rank"]
    models.main([*rows, "--quick", *folders])
    assert {p.stem for p in results.glob("*.json")} == {"standard-0", "standard-1", "full-rank-0"}
    before = {path: path.read_bytes() for path in results.iterdir()}
    models.main([*rows, "--quick", *folders])
    assert {path: path.read_bytes() for path in results.iterdir()} == before
    models.main(["--report", *folders, "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("Before")
    assert text.endswith("After\n")
    found = models.held(results)
    gap, error = models.against(found["full rank"], found["standard"])
    assert f"{gap:+.2f} +- {error:.2f}" in text
    assert "Two seeds of a row differ by: standard" in text
    with pytest.raises(SystemExit, match="'nothing' is unknown; choices: standard, vamp"):
        models.main(["nothing", *folders])


def test_likelihoods_in_bits_and_their_report(tmp_path):
    """Every row runs, none is measured again, and the README's part tells bounds from lengths."""
    from safetensors.torch import load_file

    from benchmarks import likelihoods

    readme, result = tmp_path / "README.md", tmp_path / "results" / "likelihoods.json"
    readme.write_text(f"Before\n{likelihoods.BEGIN}\nstale\n{likelihoods.END}\nAfter\n")
    arguments = ["--quick", "--result", str(result), "--readme", str(readme)]
    with pytest.raises(SystemExit, match="is not there; measure first"):
        likelihoods.main([*arguments, "--report"])
    likelihoods.main(arguments)
    held = json.loads(result.read_text())
    rows, values = held["rows"], load_file(result.with_suffix(".safetensors"))
    assert list(rows) == list(likelihoods.ROWS)
    assert set(values) == set(rows)
    discrete = [name for name, row in rows.items() if not row["bound"]]
    assert sorted({name.partition(",")[0] for name in discrete}) == [
        "categorical",
        "discretized_logistic",
    ]
    for name, row in rows.items():
        # Nats per datum of 64 pixels; densities are of x in (0, 1), of 17 levels.
        scale = math.log(17) if row["bound"] else 0.0
        assert row["bits"] == pytest.approx((scale - row["log_px"] / 64) / math.log(2))
        assert float(values[name].mean()) == pytest.approx(row["bits"], rel=1e-5)
        assert 0 < row["bits"] < 6  # without the scale, densities would have less than nothing
    assert len({row["data_fingerprint"] for row in rows.values()}) == 2  # with noise and without
    rows["beta"]["bits"] = 99.0
    result.write_text(json.dumps(held))
    likelihoods.main(arguments)
    assert json.loads(result.read_text())["rows"]["beta"]["bits"] == 99.0, "measured again"
    with pytest.raises(SystemExit, match="have 1; give another --result"):
        likelihoods.main([*arguments, "--epochs", "2"])
    likelihoods.main([*arguments, "--report"])
    text = readme.read_text()
    assert text.startswith(f"Before\n{likelihoods.BEGIN}\n`python -m benchmarks.likelihoods`")
    assert text.endswith(f"{likelihoods.END}\nAfter\n")
    assert "\n| beta | at most **99.000** | " in text
    told = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert [name for name in rows if "at most" not in told[name]] == discrete


@pytest.mark.parametrize("name", ["discretized_logistic", "gaussian, sigma predicted", "beta"])
def test_bits_of_a_row_by_hand(name):
    """On the scale of the levels, from the decoder's outputs alone: no code is shared."""
    from benchmarks import likelihoods
    from inference.isolation import own_randomness
    from pyro_vae.app.experiment import resolve
    from pyro_vae.app.train import build
    from pyro_vae.data.bits import bits_per_dim

    spec = likelihoods.spec_of(likelihoods.ROWS[name], quick=True)
    dataset = spec.data.prepared()
    vae = build(resolve(spec, dataset), dataset).eval()
    x = dataset.test[:50]
    levels = dataset.levels if dataset.dequantized else None
    with own_randomness(0), torch.no_grad():
        z = vae.encode(x).sample()
        first, second = vae.outputs(z).double().movedim(-3, 0)
        log_px = float(vae.decode(z).log_prob(x).mean())
    if name == "discretized_logistic":
        level = (x.double() * 16).round()
        loc, scale = 16 * first, 16 * second.exp()
        below = torch.where(level == 0, 0.0, ((level - 0.5 - loc) / scale).sigmoid())
        above = torch.where(level == 16, 1.0, ((level + 0.5 - loc) / scale).sigmoid())
        bits = -(above - below).log2()
    elif name == "beta":  # of y = 17 x, the level and its noise: p(y) = p(x) / 17
        level, (m, c) = (x.double() * 17).floor(), (first.sigmoid(), second.exp().clamp_min(1))
        a, b, y = (m * c).clamp_min(0.5), ((1 - m) * c).clamp_min(0.5), 17 * x.double()
        kernel = (a - 1) * (y / 17).log() + (b - 1) * (1 - y / 17).log() - math.log(17)
        bits = -(kernel + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)) / math.log(2)
    else:
        level, y = (x.double() * 17).floor(), 17 * x.double()
        loc, scale = 17 * first, 17 * second.exp().clamp_min(likelihoods.FLOOR)
        bits = ((y - loc) / scale) ** 2 / math.log(4) + (scale * math.sqrt(2 * math.pi)).log2()
    assert bits_per_dim(log_px, 64, levels) == pytest.approx(float(bits.mean()), rel=1e-5)
    parts = likelihoods.by_level(vae, (x,), levels, dataset.levels)
    assert parts["black_share"] == pytest.approx(float((level == 0).double().mean()))
    assert parts["black_bits"] == pytest.approx(float(bits[level == 0].mean()), rel=1e-5)
    assert parts["other_bits"] == pytest.approx(float(bits[level > 0].mean()), rel=1e-5)


@pytest.mark.slow
def test_uses_of_the_special_models_and_their_report(tmp_path):
    """Every row runs, a second call measures none again, and the README's part is rewritten."""
    from benchmarks.uses import __main__ as uses
    from benchmarks.uses import few, missing, topics

    readme, result = tmp_path / "README.md", tmp_path / "results" / "uses.json"
    readme.write_text(f"Before\n{uses.BEGIN}\nstale\n{uses.END}\nAfter\n")
    work = ["--work", str(tmp_path / "runs")]
    arguments = ["--quick", "--result", str(result), "--readme", str(readme), *work]
    with pytest.raises(SystemExit, match="lacks rows; run python"):
        uses.main([*arguments, "--report"])
    with pytest.raises(SystemExit, match="no 'many'; choices: missing, topics, few"):
        uses.main([*arguments, "many"])
    uses.main(arguments)
    found = json.loads(result.read_text())
    ways = [f"{guide}, {way}" for guide in missing.GUIDES for way in missing.WAYS]
    assert set(found["missing"]) == {*ways, *missing.BASELINES}
    corpora = {f"{kind}, {name}" for kind in ("made", "real") for name in (*topics.ROWS, "unigram")}
    assert set(found["topics"]) == corpora - {"real, preset, seed 1"} | {"made, true model"}
    assert set(found["few"]) == {f"{name}, seed {seed}" for name in few.ROWS for seed in (0, 1)}
    for row in found["missing"].values():
        assert row["brier"] == pytest.approx(row["rmse"] ** 2)
        assert len(row["each"]) == row["num_data"] == 20
        assert sum(row["each"]) / 20 == pytest.approx(row["brier"], abs=1e-4)
    for row in found["topics"].values():
        total = sum(row["each"]) / sum(row["lengths"])
        assert row["perplexity"] == pytest.approx(math.exp(total), rel=1e-4)
    held = result.read_text()
    uses.main(arguments)
    assert {n: json.loads(held)[n] for n in uses.QUESTIONS} == {
        n: json.loads(result.read_text())[n] for n in uses.QUESTIONS
    }
    uses.main([*arguments, "--report"])
    text = readme.read_text()
    assert text.startswith(f"Before\n{uses.BEGIN}\n**Quick settings")
    assert text.endswith(f"{uses.END}\nAfter\n")
    for name in (*found["missing"], *found["topics"], *found["few"]):
        assert f"| {name} |" in text
    for picture in ("uses-imputed.png", "uses-topics.png"):
        assert (result.parent / picture).exists()
        assert f"(results/{picture})" in text


def test_probabilistic_pca_of_data_that_lack_values():
    """It imputes as the regression does whose coefficients the true covariance gives."""
    from benchmarks.uses.missing import fit_ppca

    torch.manual_seed(0)
    true = torch.randn(6, 2)
    x = torch.randn(4_000, 2) @ true.T + 0.3 * torch.randn(4_000, 6) + 1
    every = torch.ones_like(x, dtype=torch.bool)
    known = torch.rand(x.shape) < 0.6
    covariance = true @ true.T + 0.09 * torch.eye(6)
    for mask in (every, known):
        impute = fit_ppca(torch.where(mask, x, 0.0), mask, latent=2, steps=200)
        seen = torch.arange(6).expand_as(x) < 3
        found = impute(torch.where(seen, x, 0.0), seen)[:, 3:]
        gain = torch.linalg.solve(covariance[:3, :3], covariance[:3, 3:])
        exact = 1 + (x[:, :3] - 1) @ gain
        assert (found - exact).square().mean() < 0.01 * (exact - 1).square().mean()


@pytest.mark.slow
def test_labels_are_measured_and_reported(tmp_path):
    """Every row runs, a second call trains and measures none again, the README's part is there."""
    from benchmarks import labels

    readme, result = tmp_path / "README.md", tmp_path / "labels.json"
    readme.write_text(f"Before\n{labels.BEGIN}\nstale\n{labels.END}\nAfter\n")
    paths = ["--result", str(result), "--readme", str(readme), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="lacks 25 rows, the first of them 'real, drawn'"):
        labels.main([*paths, "--report"])
    labels.main([*paths, "--quick"])
    rows = json.loads(result.read_text())["rows"]
    assert len(rows) == len(labels.Study(tmp_path, quick=True).rows)
    assert all(0 <= row["share"] <= 1 for row in rows.values() if "share" in row)
    assert (tmp_path / "labels-samples.png").exists()
    del rows["k-means on pixels, 0"]
    held = json.loads(result.read_text())
    result.write_text(json.dumps({**held, "rows": rows}))
    trained = sorted((tmp_path / "runs").rglob("model.safetensors"))
    times = [path.stat().st_mtime_ns for path in trained]
    labels.main([*paths, "--quick"])
    assert [path.stat().st_mtime_ns for path in trained] == times
    again = json.loads(result.read_text())["rows"]
    assert again["k-means on pixels, 0"] == held["rows"]["k-means on pixels, 0"]
    labels.main([*paths, "--report"])
    text = readme.read_text()
    assert text.startswith(f"Before\n{labels.BEGIN}\n`python -m benchmarks.labels`")
    assert text.endswith(f"{labels.END}\nAfter\n")
    assert "stale" not in text


def test_k_means_finds_what_is_apart():
    """Three tight groups are told apart; the rows' own centers come out."""
    from benchmarks.k_means import clusters, k_means

    groups = torch.arange(300) % 3
    means = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    x = means[groups] + 0.1 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    centers = k_means(x, 3)
    found = clusters(x, centers)
    for group in range(3):
        rows = found[groups == group]
        assert (rows == rows[0]).all()
        torch.testing.assert_close(centers[rows[0]], x[groups == group].mean(0))


def test_a_classifier_learns_its_labels():
    """The judge: what it has seen it reads; labels that nothing tells it cannot."""
    from benchmarks import classifier

    y = torch.arange(200) % 10
    x = torch.nn.functional.one_hot(y, 10).float() + 0.1 * torch.randn(
        200, 10, generator=torch.Generator().manual_seed(0)
    )
    network = classifier_network()
    net = classifier.trained(network, x, y, steps=200, learning_rate=1e-2)
    found = classifier.by_class(classifier.read(net, x), y)
    assert found["share"] > 0.99
    assert found["by_class"].keys() == {str(i) for i in range(10)}
    shuffled = x[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert classifier.by_class(classifier.read(net, shuffled), y)["share"] < 0.4
    assert classifier.share(torch.tensor([True, False]))["std_error"] == pytest.approx(0.5**1.5)


def classifier_network():
    from pyro_vae.networks.mlp import MLP

    return MLP(hidden=(32,), activation="relu")


def test_noise_of_gradients_and_its_report(tmp_path):
    from benchmarks import gradients

    readme, out = tmp_path / "README.md", tmp_path / "gradients.json"
    readme.write_text(f"Before\n{gradients.BEGIN}\n{gradients.END}\nAfter\n")
    arguments = ["--out", str(out), "--readme", str(readme)]
    gradients.main(["--draws", "20", "--epochs", "1", *arguments])
    told, found = readme.read_text(), json.loads(out.read_text())
    analytic = found["stages"]["at the start"]["elbo (analytic KL)"]
    share = analytic["model_variance"] / analytic["model_squared_norm"]
    assert f"| `elbo (analytic KL)` | {share:.2f} |" in told
    assert told.count("\n| `") == len(gradients.OBJECTIVES)
    gradients.main(["--report", *arguments])
    assert readme.read_text() == told

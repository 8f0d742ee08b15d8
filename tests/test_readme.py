"""Every command and program in the README runs, shortened."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_vae.app.cli import main
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.overrides import split_request

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHORT = ["train.epochs=1", "data.train_size=200", "data.test_size=20"]


def commands() -> list[str]:
    fenced = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
    in_tables = re.findall(r"`(pyro-vae [^`]*)`", README)
    return [c.split("#")[0].strip() for c in [*fenced, *in_tables] if c.startswith("pyro-vae ")]


@pytest.fixture
def folder(tmp_path, monkeypatch, own_components):
    """A fresh folder with the files that the README shows, each named in its first line."""
    for kind, text in BLOCKS:
        name = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if kind in ("python", "yaml") and name:
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("short_diagnosis")
def test_commands_run(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    ran = []
    for command in commands():
        words = command.replace("compiled", "eager").split()[1:]  # programs below do compile
        if any(mark in command for mark in ("...", "RUN", "DIR")):
            continue
        if words[0] == "train":
            source, changes = split_request(
                [w for w in words[1:] if not w.startswith("--") and "/" not in w and ".py" not in w]
            )
            if source is not None and not source.endswith(".yaml"):
                load_experiment(source, changes)  # MNIST may not be at hand: the spec is checked
                continue
            words += SHORT
        if words[0] == "evaluate":
            if not Path(words[1]).exists():
                continue
            words += ["--num-data", "20"]
            if "ais" in words:
                words.append("estimator.num_temperatures=5")
            if "auto" in words:
                words.append("estimator.chains.num_temperatures=5")
            if "--estimator" not in words:
                words += ["--samples", "20"]
        if words[0] == "probe" and not Path(words[1]).exists():
            continue
        if words[0] == "diagnose":
            words += ["--num-data", "5", "--quiet"]
        if words[0] in ("train", "evaluate"):
            words.append("--quiet")
        assert main(words) == 0, command
        ran.append(words[0])
    assert {"train", "evaluate", "compare", "diagnose", "list", "schema"} <= set(ran)


# Programs that stand alone, and those that go on with the pair of the one before.
PROGRAMS = [
    text
    for kind, text in BLOCKS
    if kind == "python" and "import inference" in text and "class" not in text
]
GOING_ON = [text for kind, text in BLOCKS if kind == "python" and "import" not in text]


def shortened(text: str) -> str:
    short, count = re.subn(r"epochs=\d+", "epochs=1, progress=False", text)
    assert count == text.count("inference.fit(")
    return (
        short.replace("num_samples=1000", "num_samples=20")
        .replace("range(100)", "range(3)")
        .replace("num_temperatures=100", "num_temperatures=5")
        .replace("num_samples=200", "num_samples=5")
    )


@pytest.mark.parametrize("text", PROGRAMS, ids=["VAE", "pair"])
def test_python_programs_run(text, capsys, own_store):
    exec(compile(shortened(text), "README.md", "exec"), {})
    assert re.search(r"log p\(x\) = -?\d", capsys.readouterr().out)


def test_programs_that_go_on_with_the_pair_run(capsys, own_store, folder):
    names: dict = {}
    for text in (PROGRAMS[1], *GOING_ON):
        exec(compile(shortened(text), "README.md", "exec"), names)
    assert len(GOING_ON) == 4
    assert "compiled - as asked" in capsys.readouterr().out
    assert bool(names["loss"].isfinite())


def test_own_data_train(folder):
    np.savez("own.npz", x=np.random.default_rng(0).uniform(size=(600, 8, 8)).astype("float32"))
    assert main(["train", "own.yaml", "--quiet", "train.epochs=1"]) == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets_are_there():
    for target, said in (("demo", "pyro-vae evaluate"), ("test", "pytest")):
        recipe = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert said in recipe.stdout

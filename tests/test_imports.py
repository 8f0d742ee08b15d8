"""Who may import whom, and that an import changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vae as pv

ROOT = Path(pv.__file__).parent.parent
FILES = sorted([*ROOT.glob("pyro_vae/**/*.py"), *ROOT.glob("inference/**/*.py")])
# The package's front door names what users ask for, but imports it only when asked.
FRONT = {"pyro_vae/__init__.py": {"pyro_vae.app"}, "pyro_vae/__main__.py": {"pyro_vae.app"}}


def imports_of(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                origin = ".".join([*parts, origin] if origin else parts)
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return found


def breaches(path: str, text: str) -> list[str]:
    """Imports of a file that DESIGN's one rule forbids."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    if parts[0] == "inference":
        forbidden = {"pyro_vae"}
    elif parts[:2] == ("pyro_vae", "app"):
        forbidden = set()
    else:
        forbidden = {"inference", "pyro_vae.app"} - FRONT.get(path, set())
    return [
        name
        for name in sorted(imports_of(ast.parse(text), module, is_package))
        if any(name == ban or name.startswith(ban + ".") for ban in forbidden)
    ]


@pytest.mark.parametrize("path", [str(file.relative_to(ROOT)) for file in FILES])
def test_arrows_point_down(path):
    assert not breaches(path, (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyro_vae/vae.py", "import inference"),
        ("pyro_vae/vae.py", "def f():\n    from inference.fit import fit"),
        ("pyro_vae/vae.py", "from pyro_vae import app"),
        ("pyro_vae/vae.py", "from . import app"),
        ("pyro_vae/vae.py", "from .app.run import load"),
        ("pyro_vae/priors/vamp.py", "from ..app import run"),
        ("pyro_vae/priors/__init__.py", "from ..app import run"),
        ("pyro_vae/data/base.py", "import importlib\nimportlib.import_module('inference')"),
        ("pyro_vae/__init__.py", "import inference"),
        ("inference/fit.py", "import pyro_vae.vae"),
        ("inference/__init__.py", "from pyro_vae import VAE"),
        ("inference/evidence/ais.py", "try:\n    import pyro_vae\nexcept ImportError:\n    pass"),
    ],
)
def test_the_rule_sees_a_breach(path, text):
    assert breaches(path, text)


def test_the_rule_allows_what_it_should():
    assert not breaches("pyro_vae/app/run.py", "import inference, pyro_vae.vae")
    assert not breaches("pyro_vae/vae.py", "import pyro.infer\nfrom pyro_vae.priors import base")
    assert not breaches("inference/fit.py", "from inference import pair\nfrom . import tiles")
    assert len(FILES) > 40


def run(program: str, **options) -> subprocess.CompletedProcess:
    options = {"cwd": ROOT, **options}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_importing_the_front_door_is_light():
    heavy = ["torch", "pyro", "numpy", "pydantic", "arviz", "matplotlib", "inference"]
    done = run(f"import sys, pyro_vae; print([m for m in {heavy} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(pv.__all__) <= set(dir(pv))
    for name in pv.__all__:
        assert getattr(pv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pv.nothing
    assert pv.priors.VampPrior is pv.Prior.registry["vamp"]


STATE = """
import random, torch, pyro, numpy
def state():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "printing": str(torch._tensor_str.PRINT_OPTS),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(numpy.random.get_state()),
        "python random": random.getstate(),
        "pyro": pyro.settings.get(),
        "store": sorted(pyro.get_param_store().keys()),
    }
before = state()
import pyro_vae.vae, pyro_vae.priors, pyro_vae.guides, pyro_vae.likelihoods, pyro_vae.networks
after = state()
print([key for key in before if before[key] != after[key]])
"""


def test_importing_the_declarations_changes_nothing():
    done = run(STATE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["package", "module", "folder"])
def test_a_foreign_inference_is_refused_in_one_sentence(tmp_path, kind):
    if kind == "module":
        (tmp_path / "inference.py").write_text("")
    else:
        (tmp_path / "inference").mkdir()
        if kind == "package":
            (tmp_path / "inference" / "__init__.py").write_text("raise RuntimeError('ran')")
    # Only the front door beside it: nothing else is to be reached.
    (tmp_path / "pyro_vae").mkdir()
    front = (ROOT / "pyro_vae" / "__init__.py").read_text()
    (tmp_path / "pyro_vae" / "__init__.py").write_text(front)
    done = run("import pyro_vae", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: pyro-vae needs its own package 'inference'")
    assert "fresh environment" in last
    if kind != "folder":
        assert str(tmp_path) in last

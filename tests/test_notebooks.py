"""Every notebook runs, shortened."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SHORT = {
    "01_quickstart.ipynb": "epochs = 5\nnum_samples = 50\n",
    "02_how_far_to_trust_log_px.ipynb": (
        "epochs = 2\nnum_samples = 100\nnum_simulated = 5\nnum_data = 5\n"
        "temperatures = 5, 10\nby_draws_of = 10, 20\n"
    ),
    "03_where_the_gap_comes_from.ipynb": (
        "epochs = 2\nnum_data = 6\nsimulated = 50\nnum_draws = 20\n"
    ),
    "04_swap_everything.ipynb": "epochs = 1\nnum_samples = 20\n",
    "05_conditional_and_semi_supervised.ipynb": "epochs = 1\nlabelled = 100\nnum_data = 10\n",
    "06_discrete_hierarchical_and_missing.ipynb": "epochs = 1\nnum_data = 10\n",
}


@pytest.mark.usefixtures("own_components", "own_store", "short_diagnosis")
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_notebook_runs(name, capsys, monkeypatch):
    """Its cells in this process: a kernel would take seconds to start and hide warnings."""
    monkeypatch.chdir(FOLDER)
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    whole = json.loads(Path(name).read_text("utf-8"))
    cells = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "a notebook has one cell tagged 'parameters'"
    tagged[0]["source"] = SHORT[name]
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    assert "log p(x) = -" in capsys.readouterr().out

"""Every notebook runs, shortened."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
SHORT = {
    "01_quickstart.ipynb": "epochs = 5\nnum_samples = 50\n",
    "02_how_far_to_trust_log_px.ipynb": (
        "epochs = 2\nnum_samples = 100\nnum_simulated = 5\nnum_data = 5\n"
    ),
    "03_where_the_gap_comes_from.ipynb": (
        "epochs = 2\nnum_data = 6\nsimulated = 50\nnum_draws = 20\n"
    ),
    "04_swap_everything.ipynb": "epochs = 1\nnum_samples = 20\n",
    "05_conditional_and_semi_supervised.ipynb": "epochs = 1\nlabelled = 100\nnum_data = 10\n",
    "06_discrete_hierarchical_and_missing.ipynb": "epochs = 1\nnum_data = 10\n",
}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_notebook_runs(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1, "a notebook has one cell tagged 'parameters'"
    parameters[0].source = SHORT[name]
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": FOLDER}})
    client.execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "log p(x) = -" in printed

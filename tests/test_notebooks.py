"""Notebooks that read well: names on cells, outputs that teach, and labs that run as they stand."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "nbs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LABS = [path for path in NOTEBOOKS if path.name.startswith("1")]
LONGEST_OUTPUT_LINES = 15


def output_text(output: nbformat.NotebookNode) -> str:
    """Return an output as a reader without a kernel sees it."""
    return output.get("text") or output.get("data", {}).get("text/plain", "")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_ordered_for_a_reader(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    assert re.match(r"# \S.*\n\n> \S", cells[0].source), "starts with a title and a summary"
    unnamed = [cell.id for cell in cells if not re.fullmatch(r"[a-z][a-z0-9-]*", cell.id)]
    assert not unnamed, "cell ids are the module's section headings"
    shown = [cell for cell in cells if not cell.source.startswith("#| hide")]
    kinds = "".join("m" if cell.cell_type == "markdown" else "c" for cell in shown)
    assert "cccc" not in kinds, "never more than three code cells in a row"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_teach_and_name_no_machine(path: Path) -> None:
    outputs = [
        (cell.id, output)
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    for cell, output in outputs:
        text = output_text(output) + output.get("data", {}).get("text/html", "")
        assert output.output_type != "error", cell
        assert len(output_text(output).splitlines()) <= LONGEST_OUTPUT_LINES, cell
        assert not re.search(r"/(home|root|work|tmp|Users)/|\.venv|Warning\b", text), cell
        assert not re.search(r"127\.0\.0\.1:(?!8000)\d", text), cell


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
@pytest.mark.timeout(2400)
def test_lab_runs_in_a_real_kernel(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=2000, kernel_name="python3", resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)

"""Notebooks that read well: names on cells, and outputs that teach."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from check_sync import exported_module, list_files
from nbdev.doclinks import nbglob
from test_jupyterlab import NOTEBOOK
from test_labs import INDEX, LABS

FOLDER = Path(__file__).parent.parent / "nbs"
NOTEBOOKS = sorted(path for path in list_files("nbs") if path.suffix == ".ipynb")
# What measures is run in a kernel or in JupyterLab by tests; `nbdev_test` runs the others.
RUN_BY_TESTS = [*LABS, FOLDER.parent / NOTEBOOK]
WINGS = ("engines", "page", "service", "measure", "ground", "labs")
LONGEST_OUTPUT_LINES = 15
LONGEST_EXPORT_LINES = 45
SHOWN_WITHIN = 2  # code cells


def output_text(output: nbformat.NotebookNode) -> str:
    """Return an output as a reader without a kernel sees it."""
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def name_of(path: Path) -> str:
    """Return a notebook's path below `nbs/`, without its ending."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def test_every_notebook_is_run_once() -> None:
    run_by_nbdev = {
        path
        for path in nbglob(FOLDER, as_path=True)
        if not path.name.startswith("07_") and not path.with_name(".notest").exists()
    }
    assert sorted([*run_by_nbdev, *RUN_BY_TESTS, INDEX]) == NOTEBOOKS
    assert len(LABS) >= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_paths_in_a_notebook_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, 4).cells:
        links = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", cell.source)
        if cell.cell_type == "code":  # which runs in the notebook's own folder
            links = re.findall(r"[\"'](\.\./[^\"'{]*)[\"']", cell.source)
            assert not re.search(r"[\"'](results|nbs|docs|tests|chatbot_arch)/\w", cell.source), (
                cell.id
            )
        for link in links:
            assert (path.parent / link.partition("#")[0]).exists(), (cell.id, link)


@pytest.mark.parametrize("wing", WINGS)
def test_wing_has_an_index_of_all_its_notebooks(wing: str) -> None:
    of_wing = {path for path in NOTEBOOKS if path.parent == FOLDER / wing}
    index = nbformat.read(FOLDER / wing / "index.ipynb", 4)
    linked = re.findall(r"\]\((\w+\.ipynb)\)", "\n".join(cell.source for cell in index.cells))
    assert sorted(linked) == sorted(path.name for path in of_wing if path.stem != "index")
    assert all(not re.match(r"\d", path.name) for path in of_wing), "an index gives the order"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_lies_where_its_module_does(path: Path) -> None:
    module = exported_module(path)
    if module and module not in ("settings", "tracing", "cluster"):
        place = re.sub(r"^\d\d_", "", name_of(path))
        assert module == place


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_is_ordered_for_a_reader(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    assert re.match(r"# \S.*\n\n> \S", cells[0].source), "starts with a title and a summary"
    unnamed = [cell.id for cell in cells if not re.fullmatch(r"[a-z][a-z0-9-]*", cell.id)]
    assert not unnamed, "cell ids are the module's section headings"
    shown = [cell for cell in cells if not cell.source.startswith("#| hide")]
    kinds = "".join("m" if cell.cell_type == "markdown" else "c" for cell in shown)
    assert "cccc" not in kinds, "never more than three code cells in a row"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_hidden_cells_are_collapsed(path: Path) -> None:
    for cell in nbformat.read(path, 4).cells:
        is_hidden = cell.source.startswith("#| hide")
        assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == is_hidden, cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_cell_that_exports_does_nothing_else(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, 4).cells]
    skipped = [source for source in sources if "nbdev_export(" in source]  # by `nbdev_test`, whole
    alone = "#| hide\nimport nbdev\n\nnbdev.nbdev_export()"
    assert skipped == ([alone] if exported_module(path) else [])


def is_exported(cell: nbformat.NotebookNode) -> bool:
    """Return whether a code cell becomes a part of a module."""
    return bool(re.match(r"#\|\s*export\b", cell.source))


def needs_a_show(cell: nbformat.NotebookNode) -> bool:
    """Return whether an exported cell defines what can be shown at work.

    Imports and constants cannot, and a command's `main` is shown by its tests.
    """
    nodes = ast.parse(cell.source).body
    defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return bool(defined) and "main" not in {node.name for node in defined}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_exported_cells_are_short(path: Path) -> None:
    exported = filter(is_exported, nbformat.read(path, 4).cells)
    lengths = {cell.id: len(cell.source.strip("\n").split("\n")) - 1 for cell in exported}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_EXPORT_LINES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_exported_cells_are_shown_at_work(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    shows = [not is_exported(cell) and "nbdev_export()" not in cell.source for cell in code]
    unshown = [
        cell.id
        for number, cell in enumerate(code)
        if is_exported(cell)
        and needs_a_show(cell)
        and not any(shows[number + 1 : number + 1 + SHOWN_WITHIN])
    ]
    assert not unshown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
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
        assert not re.search(r"(127\.0\.0\.1:|/proxy/)(?!8000)\d", text), cell

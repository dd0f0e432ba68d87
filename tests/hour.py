"""What the tutorial at the root of nbs/ costs a reader: words, lines of code, and run time.

As a command it runs each of its notebooks in a fresh kernel, one after the other, and writes
results/hour.json.
"""

import datetime
import sys
import time
from pathlib import Path

import nbformat
from check_sync import ROOT, list_files
from nbclient import NotebookClient

import chatbot_arch.measure.results as results

RESULT = ROOT / "results" / "hour.json"
# The index is read first, although a folder lists it last.
HOUR = sorted(
    (path for path in list_files("nbs") if path.parent == ROOT / "nbs" and path.suffix == ".ipynb"),
    key=lambda path: (path.stem != "index", path.stem),
)
WORDS_A_MINUTE, LINES_A_MINUTE = 200, 30


def count(cells: list[nbformat.NotebookNode]) -> dict[str, int]:
    """Return the words of the markdown cells and the lines of the code cells, hidden ones too."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    lines = [line for line in code.splitlines() if line.strip()]
    return {"words": len(text.split()), "lines": len(lines)}


def minutes(words: int, lines: int, run_s: float = 0) -> float:
    """Return how long it takes to read that much, and to wait for it to run."""
    return words / WORDS_A_MINUTE + lines / LINES_A_MINUTE + run_s / 60


def run_s(path: Path) -> float:
    """Run a notebook in a fresh kernel; return the seconds that its cells took."""
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    with client.setup_kernel():
        started = time.perf_counter()
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        return time.perf_counter() - started


def main() -> None:
    """Run the tutorial and write what it took."""
    rows = []
    for path in HOUR:
        counted = count(nbformat.read(path, 4).cells)
        rows.append({"notebook": path.stem, **counted, "run_s": round(run_s(path), 1)})
        print(rows[-1], flush=True)
    content = {
        "command": "python tests/hour.py",
        "date": datetime.date.today().isoformat(),
        "machine": results.describe_machine(),
        "notebooks": rows,
    }
    results.write_json(content, RESULT)


if __name__ == "__main__":
    sys.exit(main())

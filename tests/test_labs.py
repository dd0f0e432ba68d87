"""Labs that run as they stand, run again in the same kernel, and leave no process behind."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import chatbot_arch.measure.experiments as experiments
import chatbot_arch.measure.verdicts as verdicts

FOLDER = Path(__file__).parent.parent / "nbs"
INDEX = FOLDER / "labs" / "index.ipynb"  # nothing in it runs
LABS = sorted(path for path in INDEX.parent.glob("*.ipynb") if path != INDEX)

# To see a lab run, less is enough than what it shows.
FAKE = {'ENGINE = "llamacpp"': 'ENGINE = "fake"'}
FAKE_ONLY = {'ENGINES = ("fake", "llamacpp")': 'ENGINES = ("fake",)'}
SMALLER_KNOBS = {
    "batch": {
        'ENGINE = "transformers"': 'ENGINE = "fake"',
        "starts=6, people=8, tokens=32, again=True": "starts=1, people=2, tokens=8",
    },
    "cluster": {'HERE = importlib.util.find_spec("ray") is not None': "HERE = False"},
    "breaks": {"counts=3": "counts=1"},
    "deploy": {"counts=3": "counts=1"},
    "hop": FAKE_ONLY
    | {'["1", "2"]': '["1"]', "rounds=6, times=3, tokens=32": "rounds=1, times=1, tokens=8"},
    "many_people": FAKE
    | {
        "(1, 2, 3, 4, 6, 8), (1, 2, 4, 8)": "(1, 2, 3), (1, 3)",
        "rounds=6, times=3, crowds=1, tokens=16": "rounds=1, times=1, tokens=8",
    },
    "swap": {"HERE = not swaps.find_missing()": "HERE = False"},
    "memory": FAKE | {"starts=6, people=8, tokens=16": "starts=1, people=2, tokens=8"},
    "replicas": FAKE_ONLY
    | {'["16a", "16b"]': '["16a"]', "rounds=6, tokens=16, again=True": "rounds=1, tokens=8"},
    "ten_million": {
        "(*range(10, 130, 10), *range(140, 260, 20))": "(40, 80, 160)",
        "SEEDS = (1, 2)": "SEEDS = (1,)",
    },
    "streaming": FAKE | {"rounds=6, times=3, tokens=64, again=True": "rounds=1, times=1, tokens=8"},
}
# Two shapes instead of three, and no second attempt because the other tests keep a core busy.
LESS_WORK = """
import chatbot_arch.measure.experiments as experiments
import chatbot_arch.measure.rounds as rounds

experiments.SHAPES = ("monolith", "microservices")
rounds.BUSY = 1.0
"""
# The tracker of Python's own pools lives as long as their process.
NOTHING_LEFT = """
import psutil

import chatbot_arch.measure.launch as launch

children = filter(launch.is_alive, psutil.Process().children(recursive=True))
commands = [" ".join(process.cmdline()) for process in children]
left = [command for command in commands if "resource_tracker" not in command]
assert not left, left
"""


def read_lab(path: Path) -> nbformat.NotebookNode:
    """Return a lab with the smallest knobs, twice in a row, and then a look at what it left."""
    notebook = nbformat.read(path, 4)
    for knob, smaller in SMALLER_KNOBS[path.stem].items():
        [cell] = [cell for cell in notebook.cells if knob in cell.source]
        cell.source = cell.source.replace(knob, smaller)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    again = [nbformat.v4.new_code_cell(cell.source) for cell in code]
    before, after = map(nbformat.v4.new_code_cell, (LESS_WORK, NOTHING_LEFT))
    notebook.cells = [before, *code, *again, after]
    return notebook


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run all cells of a notebook in a kernel of its own, in the notebook's folder."""
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


def test_every_lab_has_smaller_knobs() -> None:
    assert sorted(SMALLER_KNOBS) == [path.stem for path in LABS]


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
@pytest.mark.timeout(900)
def test_lab_runs_twice_and_leaves_no_process(path: Path) -> None:
    notebook = read_lab(path)
    execute(notebook, path)
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures


@pytest.mark.parametrize("name", ["cluster", "swap"])
def test_lab_of_many_experiments_measures_often_enough_for_verdicts(name: str) -> None:
    text = (FOLDER / "labs" / f"{name}.ipynb").read_text(encoding="utf-8")
    [given] = re.findall(r"experiments\.Scale\((.*?)\)", text)
    pairs = re.findall(r"(\w+)=(\w+)", given)
    scale = experiments.Scale(**{key: ast.literal_eval(value) for key, value in pairs})
    assert scale.counts >= verdicts.MIN_COUNTS
    assert min(scale.rounds, scale.starts) >= verdicts.MIN_ROUNDS

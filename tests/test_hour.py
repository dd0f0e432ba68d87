"""The tutorial at the root of nbs/ fits into an hour, and says what each part of it costs."""

import json
import re
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest
from hour import HOUR, RESULT, ROOT, count, minutes

MOST_WORDS, MOST_LINES, MOST_MINUTES = 4300, 900, 60
LIVE_WITHIN_MINUTES, PICTURE_WITHIN_CELLS = 10, 10
RUN_S = {row["notebook"]: row["run_s"] for row in json.loads(RESULT.read_text())["notebooks"]}


def cells_of(path: Path) -> list[nbformat.NotebookNode]:
    """Return a notebook's cells."""
    return nbformat.read(path, 4).cells


def cost(path: Path) -> int:
    """Return the minutes that a notebook takes to read and to run."""
    return round(minutes(**count(cells_of(path)), run_s=RUN_S[path.stem]))


def shows_a_picture(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell's text or output holds a picture or a diagram."""
    if cell.cell_type == "markdown":
        return bool(re.search(r"!\[.+\]\(|```mermaid", cell.source))
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_tutorial_fits_into_an_hour() -> None:
    counted = [count(cells_of(path)) for path in HOUR]
    assert len(HOUR) >= 8
    assert sum(each["words"] for each in counted) <= MOST_WORDS
    assert sum(each["lines"] for each in counted) <= MOST_LINES
    assert sum(map(cost, HOUR)) <= MOST_MINUTES


@pytest.mark.parametrize("path", HOUR, ids=lambda path: path.stem)
def test_notebook_says_what_it_costs_and_what_it_said(path: Path) -> None:
    cells = cells_of(path)
    top = "\n".join(cell.source for cell in cells[:3])
    assert re.search(rf"^\*{cost(path)} minutes\. You will see ", top, re.MULTILINE), cost(path)
    last = [cell.source for cell in cells if cell.cell_type == "markdown"][-1]
    assert "**The choice" in last


def test_tables_state_what_the_notebooks_do() -> None:
    index = "\n".join(cell.source for cell in cells_of(HOUR[0]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    total = sum(map(cost, HOUR))
    for text in (index, readme):
        found = dict(re.findall(r"\((?:nbs/)?(\w+)\.ipynb\) \|.*\| (\d+) \|", text))
        found["index"] = cost(HOUR[0])  # whose own table leaves it out
        assert {name: int(number) for name, number in found.items()} == {
            path.stem: cost(path) for path in HOUR
        }
        assert f"{total} minutes" in text


def test_something_is_live_within_ten_minutes() -> None:
    passed_minutes = 0.0
    for path in HOUR:
        cells = cells_of(path)
        before = list(takewhile(lambda cell: "live.show(" not in cell.source, cells))
        passed_minutes += minutes(**count(before), run_s=RUN_S[path.stem])
        if len(before) < len(cells):
            break
    else:
        pytest.fail("no notebook shows a page")
    assert passed_minutes <= LIVE_WITHIN_MINUTES


@pytest.mark.parametrize("path", HOUR, ids=lambda path: path.stem)
def test_first_picture_comes_early(path: Path) -> None:
    assert any(map(shows_a_picture, cells_of(path)[:PICTURE_WITHIN_CELLS]))

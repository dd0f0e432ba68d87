"""The README is short, and its numbers are those of results/."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import chatbot_arch.compare as compare

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed_results() -> dict:
    """Return the results of the last commit: `make compare` writes others to the same place."""
    command = ["git", "show", "HEAD:results/compare.json"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(shown.stdout)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_readme_shows_the_committed_results() -> None:
    results = committed_results()
    visits = [compare.Visit(**visit) for visit in results["visits"]]
    for row in compare.summarize(visits).to_markdown().splitlines():
        assert row in README
    assert compare.compare_replies(visits) in README
    for fact in (results["date"], results["machine"]["processor"], results["command"]):
        assert fact in README


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)))
)
def test_command_of_the_readme_exists(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_file_of_the_readme_exists(path: str) -> None:
    assert (ROOT / path).exists()

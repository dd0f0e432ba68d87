"""What `make test` must not need; `make test-more` runs it."""

import json
import subprocess
import sys
from pathlib import Path

import more
import pytest
from check_sync import list_files

ROOT = Path(__file__).parent.parent
IMPORTED = """
import importlib.util, json, sys
import chatbot_arch.frontend
wanted = ("torch", "transformers", "fastapi", "xllamacpp", "matplotlib")
found = [name for name in wanted if importlib.util.find_spec(name)]
print(json.dumps({"from": chatbot_arch.__file__, "found": found}))
"""


def run(*command: object, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command away from this checkout, which would be imported in the wheel's place."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd="/", capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.more
@pytest.mark.timeout(1500)
def test_bare_package_is_the_page_without_torch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in list_files("chatbot_arch", "pyproject.toml", "README.md", "LICENSE"):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    if run(*pip, "download", "--no-deps", "--dest", tmp_path, "wheel").returncode:
        pytest.skip("no package index answers")
    built = run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "built", source)
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "built").glob("*.whl")
    python = tmp_path / "bare" / "bin" / "python"
    assert run(sys.executable, "-m", "venv", tmp_path / "bare").returncode == 0
    constraints = ("--constraint", ROOT / "constraints.txt")
    installed = run(python, "-m", "pip", "install", "--quiet", *constraints, wheel)
    assert installed.returncode == 0, installed.stderr
    imported = run(python, "-I", "-c", IMPORTED)
    assert imported.returncode == 0, imported.stderr
    told = json.loads(imported.stdout.splitlines()[-1])
    assert told["from"].startswith(str(tmp_path / "bare"))
    assert told["found"] == []


@pytest.mark.parametrize(
    ("body", "status", "outcome"),
    [
        ("pass", 0, "passed"),
        ("assert False", 1, "failed"),
        ("pytest.skip('no Node here')", 1, "could not run"),
    ],
    ids=["passes", "fails", "lacks"],
)
def test_more_says_what_came_of_it(tmp_path: Path, body: str, status: int, outcome: str) -> None:
    tests = tmp_path / "test_toy.py"
    tests.write_text(f"import pytest\n\n@pytest.mark.more\ndef test_toy():\n    {body}\n")
    command = f"import pathlib, more; print(more.run([{str(tests)!r}], pathlib.Path('out.json')))"
    toy = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); {command}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert toy.stdout.splitlines()[-1] == str(status)
    assert [name for name in ("passed", "failed", "could not run") if written[name]] == [outcome]
    assert ("no Node here" in toy.stdout) == (outcome == "could not run")
    assert ("Nothing was run" in toy.stdout) == (outcome == "could not run")


def test_last_outcome_of_more_is_committed_and_good() -> None:
    last = json.loads(more.OUTCOME.read_text(encoding="utf-8"))
    assert last["passed"]
    assert last["failed"] == []

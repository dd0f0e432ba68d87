"""Run what `make test` leaves out, and write how it came out to `results/test-more.json`.

These tests are marked `more`: they need a package index, or programs that not every machine has. A
test that lacks something skips itself and says what. Exits with a status other than 0 if a test
failed, and if none was run.
"""

import importlib.metadata
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTCOME = ROOT / "results" / "test-more.json"
PACKAGES = ("chatbot-arch", "pytest", "streamlit")


class Outcome:
    """Collect what pytest reports: which tests passed, failed, and could not run, and why."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.could_not_run: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test's outcome; a fixture that fails or skips counts as its test."""
        name = report.nodeid
        if report.failed and name not in self.failed:
            self.failed.append(name)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.could_not_run[name] = reason.removeprefix("Skipped: ")
        elif report.when == "call" and report.passed:
            self.passed.append(name)

    def content(self) -> dict[str, object]:
        """Return what is written: date, machine, versions and the outcome of each test."""
        return {
            "command": "make test-more",
            "date": datetime.now(UTC).date().isoformat(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "passed": sorted(set(self.passed) - set(self.failed)),
            "failed": sorted(self.failed),
            "could not run": dict(sorted(self.could_not_run.items())),
        }


def run(arguments: list[str], path: Path) -> int:
    """Run the tests that are marked `more`, write the outcome, and return an exit status."""
    outcome = Outcome()
    status = pytest.main(["-m", "more", *arguments], plugins=[outcome])
    content = outcome.content()
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, reason in content["could not run"].items():
        print(f"Could not run {name}: {reason}")
    print(f"Written: {path}")
    if not content["passed"] and not content["failed"]:
        print("Nothing was run.")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:] or [str(ROOT / "tests")], OUTCOME))

"""What was committed: measuring again writes other results to the same place."""

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read_committed(name: str) -> str:
    """Return the text of a file in results/, as of the last commit."""
    command = ["git", "show", f"HEAD:results/{name}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def committed_results(name: str) -> dict[str, Any]:
    """Return the results in a JSON file, as of the last commit."""
    return json.loads(read_committed(f"{name}.json"))

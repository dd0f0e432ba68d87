"""The contract's tests once more, with the backend in front of another server."""

import re
import subprocess
import sys

import pytest
from check_sync import ROOT

FILES = [ROOT / "tests" / f"{name}.py" for name in ("test_backend", "test_openai_client")]


@pytest.mark.timeout(900)
def test_contract_holds_in_front_of_another_server() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--through=openai", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 120

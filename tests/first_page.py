"""How long it takes from a fresh clone to a page that answers: `make monolith`, from nothing.

Clones this checkout's last commit, and lets pip and uv in turns begin with empty caches and without
the model. Writes results/install.json. Needs uv on the path.
"""

import argparse
import contextlib
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from check_sync import ROOT

import chatbot_arch.measure.results as results
import chatbot_arch.measure.users as users

RESULT = ROOT / "results" / "install.json"
QUESTION = "What is a microservice?"
CACHES = ("PIP_CACHE_DIR", "UV_CACHE_DIR", "CHATBOT_CACHE_DIR", "XDG_CACHE_HOME")
READY = re.compile(r"Ready: page (http://\S+?)[,\s]")
STEPS = {"chatbot-fetch": "installed_s", "chatbot-launch": "fetched_s"}  # what the next begins
LONGEST_S = 900


def run(*command: str) -> str:
    """Run a command; return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def make_monolith(clone: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `make monolith` in a clone, and end it as Ctrl-C does."""
    command = ["make", "monolith"]
    process = subprocess.Popen(
        command,
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


def measure(uv: str, folder: Path) -> dict[str, float]:
    """Return the seconds from a fresh clone to each step, the answer of the page being the last."""
    began = time.monotonic()
    clone, rows = folder / "clone", dict[str, float]()
    run("git", "clone", "--quiet", str(ROOT), str(clone))
    caches = {name: str(folder / name) for name in CACHES}
    given = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    own = {"UV": uv, "MAKEFLAGS": "", "CHATBOT_DATABASE_URL": "sqlite://"}
    with make_monolith(clone, {**given, **caches, **own}) as making:
        said = []
        for line in making.stdout:
            said.append(line)
            now_s = time.monotonic() - began
            for program, step in STEPS.items():
                if re.match(rf"\S+/{program}\b", line):
                    rows[step] = now_s
            if (found := READY.search(line)) or now_s > LONGEST_S:
                break
        if not found:
            sys.exit(f"`make monolith` did not get ready:\n{''.join(said[-20:])}")
        rows["page_s"] = time.monotonic() - began
        with users.PageUser(found[1], timeout_s=300) as user:
            first = user.ask(QUESTION).first_s
        rows["answered_s"] = time.monotonic() - began
    return {name: round(value, 1) for name, value in {**rows, "first_word_s": first}.items()}


def main() -> None:
    """Measure pip and uv in turns, and write the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--index", default="the package index", help="where packages come from")
    options = parser.parse_args()
    uv = shutil.which("uv") or sys.exit("uv is not on the path: install it, then try again.")
    rows = []
    for number in range(options.rounds):
        for installer, program in (("pip", ""), ("uv", uv)):
            with tempfile.TemporaryDirectory(prefix="first-page-") as folder:
                row = measure(program, Path(folder))
            rows.append({"round": number + 1, "installer": installer, **row})
            print(rows[-1], flush=True)
    content = {
        "command": "python tests/first_page.py",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": results.describe_machine(),
        "versions": {"uv": run(uv, "--version").split()[1]} | results.describe_versions(),
        "index": options.index,
        "commit": run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "rounds": rows,
    }
    results.write_json(content, RESULT)


if __name__ == "__main__":
    main()

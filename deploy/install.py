"""Install parts of this checkout into `.venv`: with uv if it is there, else with pip.

`python deploy/install.py dev,site` makes `.venv`, if there is none, from the Python that runs this.
Versions are those of `constraints.txt`. uv does not read pip's configuration and variables, so it
is handed what pip would use; your own `UV_` variables win. What uv cannot install, pip does. The
variable `UV` is the path of uv; if it is empty, pip installs.
"""

import ast
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# pip's options, uv's variables for them, and what stands between several values there.
OPTIONS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
# As pip does: of all indexes the best version, and none is asked first.
STRATEGY = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
SCOPES = ("global", "install", ":env:")  # the later wins


def read_pip_options(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return the options of `pip install` in the output of `pip config list`."""
    found = {}
    for scope in SCOPES:
        for line in lines:
            name, _, value = line.partition("=")
            if name.startswith(f"{scope}."):
                found[name.removeprefix(f"{scope}.")] = str(ast.literal_eval(value)).split()
    return found


def to_uv(options: Mapping[str, list[str]]) -> dict[str, str]:
    """Return uv's variables for options of pip."""
    known = ((OPTIONS[name], values) for name, values in options.items() if name in OPTIONS)
    return {**STRATEGY, **{name: separator.join(values) for (name, separator), values in known}}


def ask_pip() -> list[str]:
    """Return the lines of pip's configuration, or none if this Python has no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def find_python(folder: Path) -> Path:
    """Return the path of the Python of a virtual environment."""
    windows = folder / "Scripts" / "python.exe"
    return windows if sys.platform == "win32" else folder / "bin" / "python"


def install(parts: str, folder: Path) -> int:
    """Install the parts into a virtual environment; return the exit status of the installer."""
    python, wanted = find_python(folder), f"{ROOT}[{parts}]"
    what = ["--constraint", str(ROOT / "constraints.txt"), "--editable", wanted]
    uv = shutil.which(os.environ.get("UV", "uv"))  # `make UV=` does without
    if (folder / ".installed").exists():
        what.append("--quiet")  # a few parts are added
    if not python.exists():
        venv.create(folder, with_pip=not uv, symlinks=sys.platform != "win32")
    if uv:
        environment = {**to_uv(read_pip_options(ask_pip())), **os.environ}
        command = [uv, "pip", "install", "--python", str(python), *what]
        if not subprocess.run(command, env=environment, check=False).returncode:
            return 0
        print("uv could not install this (see above), so pip does.", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "ensurepip", "--default-pip"], check=False)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    return subprocess.run([*pip, *what], check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the parts to install, such as: python3 deploy/install.py dev")
    sys.exit(install(sys.argv[1], ROOT / ".venv"))

"""Find a Chromium or Chrome, or install one: tests and measurements with a browser need it.

As a command it prints the browser's path, or exits with a sentence on what to install.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import chatbot_arch.measure.outside as outside


def install_browser() -> None:
    """Try to install a browser: as root on Debian with apt, elsewhere with Playwright."""
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        apt = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        attempts = [["apt-get", "update"], apt, *attempts]
    for command in attempts:
        print("No browser found, running:", *command, file=sys.stderr, flush=True)
        subprocess.run(command, check=False, stdout=sys.stderr, timeout=600)
        if outside.find_browser():
            return


def require_browser() -> str:
    """Return the path of a browser, installed if need be; exit with advice if there is none."""
    if not outside.find_browser():
        if chosen := os.environ.get("CHATBOT_BROWSER"):
            sys.exit(f"CHATBOT_BROWSER={chosen} is no program that can be run.")
        install_browser()
    return outside.find_browser() or sys.exit(outside.ADVICE)


if __name__ == "__main__":
    print("Browser:", Path(require_browser()))

"""Find a Chromium or Chrome for the browser tests, or install one.

As a command it prints the browser's path, or exits with a sentence on what to install.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
ADVICE = (
    "The browser tests need Chromium or Chrome, and none was found or could be installed. Install "
    "one (Debian: apt-get install chromium), or set CHATBOT_BROWSER to the path of its program."
)


def find_browser() -> str | None:
    """Return the path of a browser: the one chosen, one on the path, or Playwright's own."""
    if chosen := os.environ.get("CHATBOT_BROWSER"):
        if not shutil.which(chosen):
            sys.exit(f"CHATBOT_BROWSER={chosen} is no program that can be run.")
        return shutil.which(chosen)
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, (*NAMES, MAC_CHROME, own))), None)


def install_browser() -> None:
    """Try to install a browser: as root on Debian with apt, elsewhere with Playwright."""
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        apt = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        attempts = [["apt-get", "update"], apt, *attempts]
    for command in attempts:
        print("No browser found, running:", *command, file=sys.stderr, flush=True)
        subprocess.run(command, check=False, stdout=sys.stderr, timeout=600)
        if find_browser():
            return


def require_browser() -> str:
    """Return the path of a browser, installed if need be; exit with advice if there is none."""
    if not find_browser():
        install_browser()
    return find_browser() or sys.exit(ADVICE)


def arguments() -> list[str]:
    """Return the arguments that keep a test browser quiet; root can have no sandbox."""
    quiet = [
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    return [*quiet, "--no-sandbox"] if os.geteuid() == 0 else quiet


if __name__ == "__main__":
    print("Browser:", Path(require_browser()))

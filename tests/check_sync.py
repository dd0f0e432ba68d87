"""Check that chatbot_arch/ is what nbs/ exports, and that the notebooks are clean.

Exports and cleans, and fails if that changed, added or removed any file.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATED = ("nbs", "chatbot_arch")
BIN = Path(sys.executable).parent


def snapshot() -> dict[str, str]:
    """Return the SHA-256 of every file that git would commit from the checked folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *GENERATED]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def main() -> None:
    """Export, clean, compare; exit with the names of the files that were not in sync."""
    before = snapshot()
    for tool in ("nbdev_export", "nbdev_clean"):
        subprocess.run([BIN / tool], cwd=ROOT / "nbs", check=True)
    after = snapshot()
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        sys.exit(
            f"Not in sync with what nbs/ exports, or not clean: {', '.join(changed)}. They were "
            "written anew: edit the notebook, not the module, then commit both."
        )
    print(f"In sync: {len(after)} files.")


if __name__ == "__main__":
    main()

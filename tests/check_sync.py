"""Check that chatbot_arch/ is what nbs/ exports, and that the notebooks are clean.

Each module has one notebook, and each exporting notebook one module. A file that a `%%writefile`
cell writes is what the cell holds. Exports and cleans, and fails if that changed, added or removed
any file.
"""

import ast
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATED = ("nbs", "chatbot_arch")
BIN = Path(sys.executable).parent
NO_NOTEBOOK = ("__init__", "_modidx")
ARTICLE = ROOT / "chatbot_arch" / "measure" / "article"


def list_files(*folders: str) -> list[Path]:
    """Return every file that git would commit from some folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def snapshot() -> dict[str, str]:
    """Return the SHA-256 of every checked file, whatever ends its lines."""
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(
            path.read_bytes().replace(b"\r\n", b"\n")
        ).hexdigest()
        for path in list_files(*GENERATED)
    }


def exported_module(notebook: Path) -> str:
    """Return the module that a notebook exports to, such as `page/store`; empty if to none."""
    for cell in json.loads(notebook.read_text())["cells"]:
        if found := re.match(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"])):
            return found[1].replace(".", "/")
    return ""


def find_strays() -> list[str]:
    """Return what is wrong with the pairs of notebooks and modules."""
    notebooks = [path for path in list_files("nbs") if path.suffix == ".ipynb"]
    exported = Counter(filter(None, map(exported_module, notebooks)))
    modules = {
        path.relative_to(ROOT / "chatbot_arch").with_suffix("").as_posix()
        for path in list_files("chatbot_arch")
        if path.suffix == ".py" and path.stem not in NO_NOTEBOOK and path.parent != ARTICLE
    }
    indexed = index_modules(ROOT / "chatbot_arch" / "_modidx.py")
    return [
        *(f"{name}.py has no notebook" for name in sorted(modules - exported.keys())),
        *(f"{name}.py was not exported" for name in sorted(exported.keys() - modules)),
        *(f"{name}.py is not in _modidx.py" for name in sorted(modules - indexed)),
        *(
            f"{count} notebooks export to {name}.py"
            for name, count in exported.items()
            if count > 1
        ),
    ]


def read_written_files(notebook: Path) -> dict[Path, str]:
    """Return the files that a notebook's `%%writefile` cells write, with their text."""
    written = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if found := re.match(r"%%writefile (\S+)\n(.*)", "".join(cell["source"]), re.DOTALL):
            written[(notebook.parent / found[1]).resolve()] = f"{found[2].rstrip()}\n"
    return written


def find_stale_files() -> list[str]:
    """Return what is wrong with the files that cells write, the article's above all."""
    notebooks = [path for path in list_files("nbs") if path.suffix == ".ipynb"]
    written = {path: text for each in notebooks for path, text in read_written_files(each).items()}
    there = {path for path in list_files("chatbot_arch") if path.parent == ARTICLE}
    article = {path for path in there if path.suffix == ".py" and path.stem not in NO_NOTEBOOK}
    return [
        *(f"{path.name} has no cell that writes it" for path in sorted(article - written.keys())),
        *(
            f"{path.name} is not what its cell writes"
            for path, text in written.items()
            if not path.is_file() or path.read_text() != text
        ),
    ]


def index_modules(path: Path) -> set[str]:
    """Return the modules that nbdev's index lists."""
    index = ast.literal_eval(path.read_text().partition("d = ")[2])
    return {name.partition(".")[2].replace(".", "/") for name in index["syms"]}


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
    if strays := find_strays():
        sys.exit(f"Notebooks and modules do not pair: {'; '.join(strays)}.")
    if stale := find_stale_files():
        sys.exit(f"Run the notebook whose cells write files, then commit: {'; '.join(stale)}.")
    print(f"In sync: {len(after)} files.")


if __name__ == "__main__":
    main()

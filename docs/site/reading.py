"""What the site changes while it reads: notebooks without nbdev's marks, diagrams as SVG.

An extension of Sphinx, named in `conf.py` beside it.
"""

import functools
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import mermaidx
from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)

Cell = dict[str, Any]

WIDGET = "application/vnd.jupyter.widget-view+json"
STOPPED = "<p>Live here until the servers were stopped.</p>"
# What is live in JupyterLab cannot be on a page without servers: notebook, then what is shown.
LIVE = (
    "<p><em>In JupyterLab, a live page is here: run <code>make lab</code>. It looks "
    '<a href="{up}docs/pages.html">like this</a>.</em></p>'
)
KNOBS = (
    "<p><em>In JupyterLab, the knobs are here. The same knobs are in "
    '<a href="{up}results/report.html#case">the report</a>.</em></p>'
)
LANGUAGES = {".html": "html+jinja", ".js": "javascript", ".css": "css", ".yaml": "yaml"}
SMALLEST = 0.6  # of a diagram's own width; on a narrower page it is scrolled
WINGS = ("engines", "page", "service", "measure", "ground")


def to_markdown(name: str, source: str) -> Cell:
    """Return a markdown cell."""
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def to_toctree(docs: list[str], caption: str = "") -> str:
    """Return a directive that puts pages into the navigation; `docs` are paths from the root."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, *(f"/{doc}" for doc in docs), "```"])


def replace_output(output: dict[str, Any], up: str) -> dict[str, Any]:
    """Return an output as it is, or a sentence in the place of a live page or of widgets."""
    data = output.get("data", {})
    if WIDGET in data:
        instead = KNOBS
    elif "".join(data.get("text/html", "")).strip() == STOPPED:
        instead = LIVE
    else:
        return output
    return output | {"data": {"text/html": instead.format(up=up)}}


def to_cells(cell: Cell, up: str) -> Iterator[Cell]:
    """Yield what a reader of the site sees of a cell: nothing of a hidden one."""
    source = "".join(cell["source"])
    directives = re.findall(r"^#\| *(\S+) *(.*)\n?", source, re.MULTILINE)
    names = [name for name, _ in directives]
    if cell["cell_type"] != "code":
        yield cell
    elif module := dict(directives).get("default_exp"):
        file = f"chatbot_arch/{module.replace('.', '/')}.py"
        yield to_markdown(cell["id"], f"*The marked cells become `{file}`.*")
    elif "hide" not in names:
        metadata = cell["metadata"] | {
            "tags": ["exported"] if "export" in names else [],
            "mystnb": {"image": {"alt": f"The figure of the cell “{cell['id']}”"}},
        }
        outputs = [replace_output(output, up) for output in cell["outputs"]]
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE)
        yield cell | {"metadata": metadata, "outputs": outputs, "source": code}


def linked_notebooks(notebook: dict[str, Any]) -> list[str]:
    """Return the notebooks of its own folder that a notebook links to, in order."""
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    return re.findall(r"\]\((\w+)\.ipynb\)", text)


def read_notebook(doc: str, text: str) -> str:
    """Return a notebook's JSON as the site shows it; an index also gets its folder's pages."""
    notebook = json.loads(text)
    up = "../" * doc.count("/")
    cells = [shown for cell in notebook["cells"] for shown in to_cells(cell, up)]
    folder = PurePosixPath(doc).parent
    if doc.endswith("/index") and str(folder) != "nbs":
        docs = [str(folder / name) for name in linked_notebooks(notebook)]
        cells.append(to_markdown("pages", to_toctree(docs)))
    notebook["metadata"].pop("widgets", None)
    return json.dumps(notebook | {"cells": cells})


def read_root(text: str, found: set[str]) -> str:
    """Return the first page's text with the navigation of the whole site."""
    hour = ["nbs/index", *sorted(doc for doc in found if re.match(r"nbs/\d\d_\w+$", doc))]
    others = sorted(
        (doc for doc in found if not doc.startswith(("nbs/", "README"))),
        key=lambda doc: (doc != "docs/claims", not doc.startswith("docs/"), doc),
    )
    trees = [
        to_toctree(hour, "The tutorial"),
        to_toctree([f"nbs/{wing}/index" for wing in WINGS], "Behind it"),
        to_toctree(["nbs/labs/index"], "Experiments"),
        to_toctree(others, "Docs"),
    ]
    return "\n\n".join([text, *trees]) + "\n"


def read_source(app: Sphinx, doc: str, content: list[str]) -> None:
    """Change a page's source before it is parsed."""
    if app.env.doc2path(doc).suffix == ".ipynb":
        content[0] = read_notebook(doc, content[0])
    elif doc == app.config.root_doc:
        content[0] = read_root(content[0], set(app.env.found_docs))


@functools.cache
def draw(source: str) -> str:
    """Draw a Mermaid diagram as SVG that takes its colours from the page."""
    name = "diagram-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    svg = mermaidx.render(source, theme="neutral").svg().replace("my-svg", name)
    words = dict.fromkeys(re.findall(r"<p>(.*?)</p>", svg))
    label = re.sub(r"<[^>]*>", " ", "Diagram: " + ", ".join(words))
    role = f'role="img" aria-label="{html.escape(html.unescape(label))}"'
    svg = re.sub(r'role="graphics-document document"', role, svg, count=1)
    width_px = float(re.search(r"max-width: ([\d.]+)px", svg)[1])
    smallest = f"min-width: {SMALLEST * width_px:.0f}px; max-width:"
    return f'<div class="diagram">{svg.replace("max-width:", smallest, 1)}</div>'


def change_document(app: Sphinx, document: nodes.document) -> None:
    """Draw a page's diagrams, and keep its links to files at their places in the repository."""
    for block in list(document.findall(nodes.literal_block)):
        if written := re.match(r"%%writefile \S+(\.\w+)", block.astext()):
            block["language"] = LANGUAGES.get(written[1], block["language"])
        if block.get("language") == "mermaid":
            try:
                block.replace_self(nodes.raw("", draw(block.astext()), format="html"))
            except RuntimeError as error:  # what mermaidx raises for a mistake in the source
                logger.warning("This diagram cannot be drawn. %s", error, location=block)
    folder = PurePosixPath(app.env.docname).parent
    for link in list(document.findall(download_reference)):
        target, _, part = link["reftarget"].partition("#")
        place = os.path.normpath(target.lstrip("/") if target.startswith("/") else folder / target)
        copy = Path(app.outdir, place)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(app.srcdir, place), copy)
        address = os.path.relpath(place, folder) + (f"#{part}" if part else "")
        link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def copy_root(app: Sphinx, error: Exception | None) -> None:
    """Make the first page the one that opens at the site's address."""
    if not error:
        root = Path(app.outdir, f"{app.config.root_doc}.html")
        shutil.copyfile(root, root.with_name("index.html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect what is here with Sphinx."""
    app.connect("source-read", read_source)
    app.connect("doctree-read", change_document, priority=1)  # before Sphinx collects downloads
    app.connect("build-finished", copy_root)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

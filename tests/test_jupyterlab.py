"""A notebook in a real JupyterLab: the pages in its frames answer, and live on out of view."""

import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
from playwright.sync_api import Browser, Frame, Locator, Page, expect
from tabs import TIMEOUT_MS, TURNS, box, bubble

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.outside as outside

ROOT = Path(__file__).parent.parent
NOTEBOOK = "nbs/07_side_by_side.ipynb"
BASE_URL = "/tutorial/"
PICTURE = "docs/pages/side_by_side.png"
QUESTION = "What is a microservice?"
TRACKER = "@jupyterlab/notebook-extension:tracker"
ERRORS = "[data-mime-type='application/vnd.jupyter.error']"
NO_NEWS = '{"fetchNews": "false", "checkForUpdates": false}'  # what a person would be asked
MOST_QUESTIONS = 8
GRACE_S, REST_MS = 20, 150_000


def find_left(folder: Path) -> list[psutil.Process]:
    """Return the processes alive that have inherited a JupyterLab's folder."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("JUPYTER_RUNTIME_DIR") == str(folder / "runtime"):
                left.append(process)
    return left


@contextmanager
def run_lab(folder: Path) -> Iterator[str]:
    """Run `make lab` on a copy of the notebooks; yield its address, with the token."""
    for part in (".jupyter", "nbs", "results", "docs/pages"):
        shutil.copytree(ROOT / part, folder / part)
    settings = folder / "settings"
    news = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(NO_NEWS)
    token, port = secrets.token_hex(), launch.find_free_port()
    environment = {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_TOKEN": token,
        "MAKEFLAGS": "",  # of the `make` that runs the tests
    }
    options = (
        "--no-browser",
        f"--ServerApp.ip={launch.HOST}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.base_url={BASE_URL}",
    )
    command = [
        *("make", f"--directory={folder}", f"--file={ROOT / 'Makefile'}", "lab"),
        *(
            "--old-file=.venv/.installed",
            f"BIN={Path(sys.executable).parent}",
            f"LAB_OPTIONS={shlex.join(options)}",
        ),
    ]
    url = f"http://{launch.HOST}:{port}"
    server = launch.start_server("JupyterLab", command, url, f"{BASE_URL}api", environment, GRACE_S)
    try:
        launch.wait_until_ready(server, 60)
        yield f"{url}{BASE_URL}lab/tree/{NOTEBOOK}?token={token}"
    finally:
        launch.stop_server(server)
        deadline = time.monotonic() + GRACE_S
        while (left := find_left(folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            process.kill()
    assert not left


def run_cells(tab: Page, cells: range) -> None:
    """Run some cells, one after the other, and wait until all have run or one has failed."""
    shown = tab.locator(".jp-Notebook .jp-Cell")
    shown.nth(cells.start).locator(".jp-Cell-inputArea").click()
    tab.keyboard.press("Escape")  # if that was a code cell, its editor has the keyboard
    for _ in cells:
        tab.keyboard.press("Shift+Enter")
    tab.wait_for_function(
        """([start, stop, error]) => document.querySelector(error) ||
          [...document.querySelectorAll(".jp-Notebook .jp-Cell")].slice(start, stop)
            .map((cell) => cell.querySelector(".jp-InputPrompt")?.innerText ?? "not drawn")
            .every((prompt) => !prompt || /\\[\\d+\\]/.test(prompt))""",
        arg=[cells.start, cells.stop, ERRORS],
        timeout=REST_MS,
    )
    assert tab.locator(ERRORS).all_inner_texts() == []


def ask_in(pages: list[Frame]) -> list[list[float]]:
    """Ask pages in frames at once; return the seconds after which each was seen to change."""
    for page in pages:
        page.evaluate(outside.WATCH, outside.PLACES)
        page.locator(outside.BOX).fill(QUESTION)
    for page in pages:
        page.locator(outside.BOX).press("Enter")
    for page in pages:
        page.wait_for_function(outside.RESTS, timeout=TIMEOUT_MS)
    return [page.evaluate("() => window.seen.updates") for page in pages]


def expect_growing_reply(page: Frame) -> None:
    """Ask until a reply has been seen to grow: on a busy machine it may be whole too soon."""
    changes = [ask_in([page])]
    while len(changes[-1][0]) < 2 and len(changes) < MOST_QUESTIONS:
        changes.append(ask_in([page]))
    assert len(changes[-1][0]) > 1, changes


def expect_kept_out_of_view(tab: Page, frames: Locator, start: int) -> None:
    """Scroll to the end and back: the pages show what they did, and were not loaded again."""
    shown = []
    for frame in frames.all():
        frame.element_handle().content_frame().evaluate("() => { window.stayed = true; }")
        expect(frame.content_frame.get_by_role("button", name="Stop")).to_have_count(0)
        shown.append(frame.content_frame.locator(TURNS).count())
    cells = tab.locator(".jp-Notebook .jp-Cell")
    cells.last.scroll_into_view_if_needed()
    for frame in frames.all():
        expect(frame).not_to_be_in_viewport()
    cells.nth(start + 1).scroll_into_view_if_needed()
    for frame, turns in zip(frames.all(), shown, strict=True):
        expect(frame).to_be_in_viewport()
        assert frame.element_handle().content_frame().evaluate("() => window.stayed")
        expect(frame.content_frame.locator(TURNS)).to_have_count(turns)
        expect(bubble(frame.content_frame, 1)).to_contain_text("A microservice")


def expect_same_page_in_a_tab(tab: Page, name: str) -> None:
    """Follow the link above a frame: it leads to a page that can be asked."""
    with tab.expect_popup() as opened:
        tab.get_by_role("link", name=name, exact=True).click()
    expect(box(opened.value)).to_be_enabled()
    assert re.fullmatch(rf"{BASE_URL}proxy/\d+/", urlsplit(opened.value.url).path)
    opened.value.close()


def test_pages_in_a_notebook_are_live(browser: Browser, tmp_path: Path) -> None:
    cells = nbformat.read(ROOT / NOTEBOOK, 4).cells
    [start] = [number for number, cell in enumerate(cells) if "live.show(" in cell.source]
    view = {"width": 1400, "height": 1150}
    with run_lab(tmp_path) as lab, browser.new_context(viewport=view) as context:
        context.set_default_timeout(TIMEOUT_MS)
        tab = context.new_page()
        tab.goto(lab)
        expect(tab.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
        settings = tab.request.get(f"{lab.partition('/lab/')[0]}/lab/api/settings/{TRACKER}").json()
        assert settings["schema"]["properties"]["windowingMode"]["default"] == "defer"
        first_picture = tab.locator(".jp-Notebook img").first
        expect(first_picture).to_have_js_property("complete", True)
        assert first_picture.evaluate("image => image.naturalWidth"), "not reached from nbs/"

        run_cells(tab, range(start + 1))
        frames = tab.locator(".jp-OutputArea-output iframe")
        expect(frames).to_have_count(2)
        pages = [element.content_frame() for element in frames.element_handles()]
        ask_in(pages)
        for page in pages:
            expect(page.get_by_text("Cut at the length limit.")).to_be_visible()
        picture = ROOT / PICTURE if os.environ.get("CHATBOT_PICTURES") else tmp_path / "lab.png"
        tab.screenshot(path=picture)
        for page in pages:
            expect_growing_reply(page)
        expect_kept_out_of_view(tab, frames, start)
        for name, frame in zip(("monolith", "microservices"), frames.all(), strict=True):
            expect_same_page_in_a_tab(tab, name)
            with tab.expect_download() as file:
                frame.content_frame.get_by_role("button", name="Download conversation").click()
            assert file.value.path().read_text().count(QUESTION) > 1

        run_cells(tab, range(start + 1, len(cells)))
        expect(tab.get_by_text("Live here until the servers were stopped.")).to_be_visible()

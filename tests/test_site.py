"""The site: built without a network, it holds together, and reads well in a browser."""

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from check_sync import list_files
from playwright.sync_api import Browser, Page, expect

import chatbot_arch.measure.launch as launch

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "docs" / "site"
PICTURES = ROOT / "docs" / "pages"
NOTEBOOK, TABLES, LAB = "nbs/08_which_one.html", "docs/claims.html", "nbs/labs/many_people.html"
PHONE_PX = 390
# What is beyond a narrow page's edge, and in nothing that scrolls in itself: the theme hides it.
CUT_OFF = """() => [...document.querySelectorAll("article *")].filter((each) => {
  if (each.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let part = each; part.tagName !== "ARTICLE"; part = part.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(part).overflowX)) return false;
  return true;
}).map((each) => each.outerHTML.slice(0, 200))"""
SERIOUS = ("serious", "critical")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
# Python imports this when it starts: a connection that leaves the process is an error.
NO_NETWORK = """
import socket

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"The site's build asked {address}.")

socket.socket.connect = socket.socket.connect_ex = refuse
"""

pytestmark = [
    pytest.mark.more,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("furo", "mermaidx", "myst_nb")),
        reason="The site's builder is not installed; run `make site`",
    ),
]


class Links(HTMLParser):
    """Collect what a page links to, what it fetches, and the ids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's id and address; a `link` is fetched, but for those that only say a place."""
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found["rel"] not in ("index", "search", "next", "prev", "canonical"):
            self.fetched.append(found["href"])
        elif tag in FETCHED and found.get(FETCHED[tag]):
            self.fetched.append(found[FETCHED[tag]])


def build(folder: Path, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout as `make site` does, without a network."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-c",
        source / "docs" / "site",
        "-d",
        folder / "read",
    ]
    command += ["--quiet", "--fail-on-warning", "--keep-going", "-j", "auto"]
    return subprocess.run(
        [*map(str, command), str(source), str(folder / "pages")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
        timeout=500,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once for all tests."""
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder / "pages"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Links]:
    """Read all pages that were built; the report is a page, too."""
    read = {
        path.relative_to(site).as_posix(): Links(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }
    assert len(read) > len([path for path in list_files("nbs") if path.suffix == ".ipynb"])
    return read


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a free port."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer((launch.HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{launch.HOST}:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve a folder without a line for each request."""

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Yield a tab, and see afterwards that it asked for nothing elsewhere and had no error."""
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    tab, asked, errors = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    tab.set_default_timeout(60_000)
    yield tab
    context.close()
    assert asked
    assert not [url for url in asked if not url.startswith((address, "data:"))]
    assert not errors


def test_every_notebook_and_document_is_a_page(pages: dict[str, Links]) -> None:
    wanted = [path for path in list_files("nbs") if path.suffix == ".ipynb"]
    wanted += [path for path in list_files("docs") if path.suffix == ".md"]
    names = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in wanted}
    assert len(names) > 50
    assert not names - pages.keys()
    assert {"index.html", "search.html", "results/report.html"} < pages.keys()


def test_navigation_has_every_page_in_order(pages: dict[str, Links]) -> None:
    linked = list(dict.fromkeys(link.partition("#")[0] for link in pages["index.html"].links))
    hour = [link for link in linked if re.fullmatch(r"nbs/(index|\d\d_\w+)\.html", link)]
    assert hour[0] == "nbs/index.html"
    assert hour[1:] == sorted(hour[1:])
    assert len(hour) == len(list(ROOT.glob("nbs/*.ipynb")))
    reached, waiting = set(), ["index.html"]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in pages:
            continue
        reached.add(name)
        waiting += [urljoin(name, link.partition("#")[0]) for link in pages[name].links]
    assert pages.keys() - reached <= {"README.html", "search.html"}


def test_no_link_is_broken(site: Path, pages: dict[str, Links]) -> None:
    broken, followed = defaultdict(list), 0
    for name, found in pages.items():
        for link in found.links + found.fetched:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            place = urljoin(name, unquote(parts.path)) or name
            followed += 1
            there = (site / place).is_file()
            if not there or (parts.fragment and unquote(parts.fragment) not in pages[place].ids):
                broken[name].append(link)
    assert followed > 1_000
    assert not broken


def test_pages_fetch_nothing_from_other_hosts(site: Path, pages: dict[str, Links]) -> None:
    fetched = [link for found in pages.values() for link in found.fetched]
    assert len(fetched) > 100
    assert not [link for link in fetched if urlsplit(link).netloc]
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", "\n".join(styles))


def test_pages_show_no_directives_of_nbdev(site: Path) -> None:
    for path in site.rglob("nbs/**/*.html"):
        code = re.findall(r'(?s)<div class="highlight[^>]*><pre>(.*?)</pre>', path.read_text())
        assert not [cell for cell in code if re.search(r"(?m)^(<[^>]*>)*#\|", cell)], path
    monolith = (site / "nbs" / "03_monolith.html").read_text()
    assert "nbdev_export" not in monolith
    assert "The marked cells become" in monolith
    assert "tag_exported" in monolith


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[there](docs/nowhere.md)", "README.md:3: WARNING: .*target not found: 'docs/nowhere.md'"),
        ("```mermaid\nflowchart LR\n  click --> a[b]\n```", "This diagram cannot be drawn.*line 2"),
    ],
)
def test_build_fails_at_what_cannot_be_shown(tmp_path: Path, text: str, said: str) -> None:
    small, folder = tmp_path / "checkout", tmp_path / "built"
    shutil.copytree(SETTINGS, small / "docs" / "site")
    (small / "README.md").write_text(f"# Title\n\n{text}\n")
    folder.mkdir()
    built = build(folder, small)
    assert built.returncode != 0
    assert re.search(said, built.stderr), built.stderr
    assert "Traceback" not in built.stderr


def test_search_finds_a_word(page: Page) -> None:
    page.goto("index.html")
    page.get_by_role("textbox", name="Search").fill("blenderbot")
    page.keyboard.press("Enter")
    expect(page.locator("#search-results li a").first).to_be_visible(timeout=60_000)
    page.locator("#search-results li a").first.click()
    expect(page.locator("article")).to_contain_text(re.compile("blenderbot", re.IGNORECASE))


@pytest.mark.parametrize("name", ["index.html", "nbs/03_monolith.html", "nbs/page/turns.html"])
def test_diagrams_are_drawn(page: Page, name: str) -> None:
    page.goto(name)
    drawing = page.locator(".diagram svg").first
    expect(drawing).to_be_visible()
    assert drawing.bounding_box()["height"] > 50
    assert drawing.locator(".node").count() > 1
    expect(page.locator("article")).not_to_contain_text("flowchart LR")


def test_dark_mode_is_chosen_with_a_button(page: Page) -> None:
    page.goto(NOTEBOOK)
    seen = {}
    for _ in range(3):  # as the system has it, and the two schemes
        page.locator(".content-icon-container .theme-toggle").click()
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        seen[page.locator("body").get_attribute("data-theme")] = color
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == color
    assert seen.keys() == {"auto", "light", "dark"}
    assert seen["auto"] == seen["light"] != seen["dark"]
    page.emulate_media(color_scheme="dark")
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == seen["dark"]


def test_pages_fit_a_phone(page: Page, pages: dict[str, Links]) -> None:
    page.set_viewport_size({"width": PHONE_PX, "height": 844})
    kept = re.compile(r"(?!results/)([^/]*/)?[^/]*|.*/index\.html")  # the report has its own test
    wide, seen = [], [name for name in pages if kept.fullmatch(name)]
    for name in [*seen, LAB, "nbs/engines/openai.html", "nbs/measure/document.html"]:
        page.goto(name)
        if page.evaluate("document.documentElement.scrollWidth") > PHONE_PX:
            wide.append(name)
        wide += page.evaluate(CUT_OFF)
    assert len(seen) > 20
    assert not wide


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", NOTEBOOK, TABLES, LAB])
def test_pages_are_accessible(page: Page, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(name)
    found = Axe().run(page).response
    assert len(found["passes"]) > 10
    assert not [
        (each["id"], each["help"], each["nodes"][0]["html"][:200], len(each["nodes"]))
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]


@pytest.mark.parametrize(
    ("picture", "name", "width", "scheme"),
    [("site", "nbs/03_monolith.html", 1280, "light"), ("site_phone", NOTEBOOK, PHONE_PX, "dark")],
)
def test_pages_in_pictures(
    page: Page, picture: str, name: str, width: int, scheme: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.goto(name)
    expect(page.locator("h1")).to_be_in_viewport()
    folder = PICTURES if os.environ.get("CHATBOT_PICTURES") else tmp_path
    page.screenshot(path=folder / f"{picture}.png")

"""Other pages that ask the same backend: one in React, and the `deep-chat` web component."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from check_sync import ROOT
from playwright.sync_api import Browser, Locator, Page, Route, expect
from tabs import SLOWLY, open_context

import chatbot_arch.measure.experiments as experiments
import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.rounds as rounds
import chatbot_arch.measure.swaps as swaps

REACT, DEEP_CHAT, PICTURES = ROOT / "swaps/react", ROOT / "swaps/deep-chat", ROOT / "docs/pages"
DEFAULT_BACKEND = "http://127.0.0.1:8000"
LEFT_HERE = shutil.ignore_patterns("node_modules", "dist")
FULL = "The backend is full. Ask again in a few seconds."
BROKE_OFF = "broke off. Restart it if it is down, then ask again."


class RunError(Exception):
    """A command failed."""


pytestmark = [
    pytest.mark.more,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed; install Node"),
]


def run(*command: object, folder: Path = ROOT, **settings: str) -> str:
    """Run a command and return what it printed; raise `RunError` with that if it fails."""
    parts, environment = [str(part) for part in command], {**os.environ, **settings}
    done = subprocess.run(parts, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RunError(done.stdout + done.stderr)
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def registry() -> None:
    """Skip all tests where packages of Node cannot be had."""
    try:
        run("npm", "ping")
    except RunError:
        pytest.skip("no registry of Node's packages answers")


@pytest.fixture(scope="module")
def backend_url() -> str:
    """Return the address at which each test starts its backend: pages know it from their build."""
    return f"http://{launch.HOST}:{launch.find_free_port()}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files, and log nothing."""

    def log_message(self, *said: object) -> None:
        """Log nothing."""


@contextmanager
def serve_files(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port; yield its origin."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer((launch.HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{launch.HOST}:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def react(tmp_path_factory: pytest.TempPathFactory, backend_url: str) -> Path:
    """Build the page in React elsewhere, as `make react` does here; return the folder."""
    copy = shutil.copytree(REACT, tmp_path_factory.mktemp("swaps") / "react", ignore=LEFT_HERE)
    tools = f"BIN={Path(sys.executable).parent}"
    make = ("make", "--old-file=.venv/.installed", "react", tools, f"REACT={copy}")
    run(*make, VITE_BACKEND_URL=backend_url)
    return copy


@pytest.fixture(scope="module")
def origin(react: Path) -> Iterator[str]:
    """Serve the built page; yield its origin."""
    with serve_files(react / "dist") as address:
        yield address


@contextmanager
def start_backend(url: str, origin: str, **settings: str) -> Iterator[launch.Server]:
    """Run a backend that the page of an origin may ask, at a fixed address."""
    chosen = {"CHATBOT_ENGINE": "fake", "CHATBOT_ALLOWED_ORIGINS": origin} | settings
    port, deadline = int(url.rpartition(":")[2]), time.monotonic() + 30
    while not launch.is_free(port):  # a killed process may hold it a moment longer
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server = launch.start_backend(chosen, port)
    try:
        assert server.url == url
        launch.wait_until_ready(server, 120)
        yield server
    finally:
        launch.kill_server(server)


@pytest.fixture
def backend(backend_url: str, origin: str) -> Iterator[launch.Server]:
    """Run the backend of one test."""
    with start_backend(backend_url, origin) as server:
        yield server


@pytest.fixture
def page(browser: Browser, backend: launch.Server, origin: str, hosts: list[str]) -> Iterator[Page]:
    """Yield the page in a browser of its own."""
    with open_context(browser, hosts) as context:
        tab = context.new_page()
        tab.goto(origin)
        yield tab


def ask(tab: Page, question: str) -> None:
    box = tab.get_by_label("Your question")
    box.fill(question)
    box.press("Enter")


def press(tab: Page, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()


def newest_reply(tab: Page) -> Locator:
    return tab.get_by_role("listitem").first.locator(".reply")


def expect_turns(tab: Page, *turns: tuple[str, str]) -> None:
    """Wait until the page shows exactly these questions and replies, newest first, at rest."""
    expect(tab.get_by_role("button", name="Stop")).to_have_count(0)
    expect(tab.locator(".question")).to_have_text([question for question, _ in turns])
    expect(tab.locator(".reply")).to_have_text([reply for _, reply in turns])


def echo(text: str) -> tuple[str, str]:
    """Return the turn in which the fake engine says a text back."""
    return f"/echo {text}", text


def expect_growing(tab: Page) -> str:
    """Wait until the newest reply has grown; return what was shown."""
    reply = newest_reply(tab)
    expect(reply).to_contain_text("w3")
    first = reply.inner_text()
    expect(reply).not_to_have_text(first)
    later = reply.inner_text()
    assert later.startswith(first)
    assert "w399" not in later
    return later


def expect_kept(tab: Page, shown: str, mark: str) -> None:
    """Wait until a part of a reply is all there will be, and marked so."""
    expect(tab.get_by_text(mark, exact=True)).to_be_visible()
    expect(newest_reply(tab)).to_contain_text(shown)
    assert "w399" not in newest_reply(tab).inner_text()


def find_serious(tab: Page) -> list[tuple[str, str]]:
    """Return the serious and critical findings of axe."""
    return [
        (each["id"], node["html"][:200])
        for each in Axe().run(tab).response["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_types_are_those_of_the_backend(react: Path) -> None:
    made = (react / "src/contract.d.ts").read_text()
    assert made == (REACT / "src/contract.d.ts").read_text(), "run `make react` and commit"
    for event in ("waiting", "token", "done", "error"):
        assert f'event: "{event}";' in made


def test_other_contract_does_not_build(react: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(react, tmp_path / "react", symlinks=True)
    types = copy / "src/contract.d.ts"
    types.write_text(types.read_text().replace("ahead: number", "before: number"))
    with pytest.raises(RunError, match="Property 'ahead' does not exist"):
        run("npm", "run", "build", folder=copy)


@pytest.mark.parametrize("folder", [REACT, DEEP_CHAT], ids=["react", "deep-chat"])
def test_lock_names_versions_and_no_host(folder: Path) -> None:
    wanted = json.loads((folder / "package.json").read_text())
    asked = wanted["dependencies"] | wanted.get("devDependencies", {})
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert not any("resolved" in each for each in locked.values())


def test_six_questions_each_with_the_earlier_turns(page: Page) -> None:
    questions = ["one", "two\nlines", "three", "four <b>bold</b>", "five   gaps", "six"]
    bodies: list[dict[str, list[str]]] = []
    page.on("request", lambda sent: sent.post_data and bodies.append(sent.post_data_json))
    for number, question in enumerate(questions, 1):
        ask(page, f"/echo {question}")
        expect_turns(page, *map(echo, reversed(questions[:number])))
    assert page.locator(".reply").nth(1).inner_text() == "five   gaps"
    assert page.locator(".reply").nth(4).inner_text() == "two\nlines"
    assert bodies[-1]["past_user_inputs"] == [f"/echo {text}" for text in questions[:-1]]
    assert bodies[-1]["generated_responses"] == questions[:-1]
    expect(page.get_by_text("known-text on fake", exact=True)).to_be_visible()


def test_stop_in_mid_reply_keeps_the_part_and_its_turn(page: Page) -> None:
    ask(page, f"/echo {SLOWLY}")
    shown = expect_growing(page)
    press(page, "Stop")
    expect_kept(page, shown, "Stopped here.")
    part = page.locator(".reply").inner_text()
    page.keyboard.type("/echo going on")
    page.keyboard.press("Enter")
    expect_turns(page, echo("going on"), (f"/echo {SLOWLY}", part))


def test_keyboard_alone_asks_and_stops(page: Page) -> None:
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("/echo w0")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type(SLOWLY[3:1500])
    page.keyboard.press("Enter")
    expect_growing(page)
    while page.evaluate("document.activeElement.innerText") != "Stop":
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement !== document.body")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Stopped here.")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()


def test_reload_keeps_the_chat_and_the_part_of_a_reply(page: Page) -> None:
    ask(page, "/echo hello")
    expect_turns(page, echo("hello"))
    page.reload()
    expect_turns(page, echo("hello"))
    ask(page, f"/echo {SLOWLY}")
    shown = expect_growing(page)
    page.reload()
    expect_kept(page, shown, "Not finished.")
    press(page, "Ask again")
    expect_turns(page, echo(SLOWLY), echo("hello"))


def test_new_chat_leaves_the_old_one_in_the_list(page: Page) -> None:
    ask(page, "/echo the first")
    expect_turns(page, echo("the first"))
    press(page, "New chat")
    expect_turns(page)
    ask(page, "/echo the second")
    expect_turns(page, echo("the second"))
    page.get_by_role("link", name="/echo the first").click()
    expect_turns(page, echo("the first"))
    page.reload()
    expect_turns(page, echo("the first"))
    press(page, "Delete this chat")
    expect_turns(page)
    expect(page.get_by_role("link")).to_have_text(["/echo the second"])


def test_edit_puts_the_question_back(page: Page) -> None:
    ask(page, "/echo one")
    expect_turns(page, echo("one"))
    press(page, "Edit")
    expect(page.get_by_label("Your question")).to_have_value("/echo one")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(" and two")
    page.keyboard.press("Enter")
    expect_turns(page, echo("one and two"))


def test_killed_backend_leaves_the_part_and_a_way_back(
    page: Page, backend: launch.Server, backend_url: str, origin: str
) -> None:
    ask(page, f"/echo {SLOWLY}")
    shown = expect_growing(page)
    launch.kill_server(backend)
    expect(page.get_by_role("alert")).to_contain_text(BROKE_OFF)
    expect_kept(page, shown, "Broken off here.")
    expect(page.get_by_text(f"No backend answers this page at {backend_url}.")).to_be_visible()
    press(page, "Ask again")
    advice = f"Start it with CHATBOT_ALLOWED_ORIGINS={origin}, then ask again."
    expect(page.get_by_role("alert")).to_contain_text(advice)
    expect(page.locator(".question")).to_have_text([f"/echo {SLOWLY}"])
    expect(page.locator(".reply")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text(advice)
    with start_backend(backend_url, origin):
        expect(page.get_by_text("known-text on fake")).to_be_visible()
        press(page, "Ask again")
        expect_turns(page, echo(SLOWLY))
        expect(page.get_by_role("alert")).to_have_count(0)


def test_full_backend_tells_the_position_and_refuses_in_a_sentence(
    browser: Browser, backend_url: str, origin: str, hosts: list[str]
) -> None:
    small = {"CHATBOT_MAX_REPLIES": "1", "CHATBOT_MAX_WAITING": "2"}
    with (
        start_backend(backend_url, origin, **small),
        open_context(browser, hosts) as context,
    ):
        tabs = [context.new_page() for _ in range(4)]
        for tab in tabs:
            tab.goto(origin)
        ask(tabs[0], "/hang")
        expect(tabs[0].get_by_role("status")).to_have_text("Waiting for the first word ...")
        for ahead in (0, 1):
            ask(tabs[1 + ahead], f"/echo {ahead}")
            position = f"The backend is busy. Requests ahead of yours: {ahead} ..."
            expect(tabs[1 + ahead].get_by_role("status")).to_have_text(position)
        ask(tabs[3], "/echo last")
        expect(tabs[3].get_by_role("alert")).to_have_text(FULL)
        expect(tabs[3].locator(".question")).to_have_text("/echo last")
        press(tabs[0], "Stop")
        expect_turns(tabs[1], echo("0"))
        expect_turns(tabs[2], echo("1"))
        press(tabs[3], "Ask again")
        expect_turns(tabs[3], echo("last"))


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ('event: token\ndata: {"text": "half"}\n\n', BROKE_OFF),
        ("event: token\ndata: half\n\n", "sent an invalid reply. Check its log, then ask again."),
        ('event: error\ndata: {"detail": "It failed."}\n\n', "It failed."),
        ("", BROKE_OFF),
    ],
    ids=["no-done", "no-json", "error", "nothing"],
)
def test_stream_that_does_not_end_well_is_a_failure(page: Page, events: str, sentence: str) -> None:
    def answer(route: Route) -> None:
        allowed = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/event-stream"}
        route.fulfill(body=events, headers=allowed)

    page.route("**/chat/stream", answer)
    ask(page, "/echo hello")
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    page.unroute("**/chat/stream")
    press(page, "Ask again")
    expect_turns(page, echo("hello"))


def test_refused_origin_is_a_sentence_that_names_the_setting(
    browser: Browser, backend_url: str, origin: str, hosts: list[str]
) -> None:
    with (
        start_backend(backend_url, "http://elsewhere.example"),
        open_context(browser, hosts) as context,
    ):
        tab = context.new_page()
        tab.goto(origin)
        ask(tab, "hello")
        expect(tab.get_by_role("alert")).to_contain_text(f"CHATBOT_ALLOWED_ORIGINS={origin}")


def test_tabs_of_one_chat_and_of_two_lose_nothing(page: Page, origin: str) -> None:
    same, other = page.context.new_page(), page.context.new_page()
    same.goto(page.url)
    other.goto(origin)
    for tab, text in ((page, "left"), (same, "right"), (other, "elsewhere")):
        ask(tab, f"/echo {text}")
        expect_turns(tab, echo(text))
    page.reload()
    expect_turns(page, echo("right"), echo("left"))
    other.reload()
    expect_turns(other, echo("elsewhere"))


def test_full_storage_is_told_and_the_reply_is_shown(page: Page) -> None:
    page.evaluate("""() => {
      let size = 1 << 22;
      for (let n = 0; size; n++)
        try { localStorage.setItem(`filler${n}`, "x".repeat(size)) } catch { size >>= 1 }
    }""")
    ask(page, "/echo hello")
    expect(page.get_by_role("alert")).to_contain_text("The browser's storage is full")
    expect_turns(page, echo("hello"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_axe_finds_nothing_serious(
    page: Page, backend: launch.Server, scheme: str
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    ask(page, f"/echo {'long' * 200}")
    expect_turns(page, echo("long" * 200))
    press(page, "New chat")
    ask(page, f"/echo {SLOWLY}")
    expect_growing(page)
    assert find_serious(page) == [], "while a reply is made"
    press(page, "Stop")
    launch.kill_server(backend)
    ask(page, "Where is the backend?")
    expect(page.get_by_role("alert")).to_be_visible()
    assert find_serious(page) == [], "after a stop and a failure"
    page.get_by_label("Your question").fill("Again?")
    assert find_serious(page) == [], "with a question in the box"
    page.get_by_role("link").click()
    expect(page.locator(".reply")).to_have_text("long" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = [int(part) for part in re.findall(r"\d+", colour)]
    assert max(lightness) < 64 if scheme == "dark" else min(lightness) > 192


def test_pictures_show_the_page_as_it_is(
    browser: Browser, backend_url: str, origin: str, hosts: list[str], tmp_path: Path
) -> None:
    taken = bool(os.environ.get("CHATBOT_PICTURES"))
    folder = PICTURES if taken else tmp_path
    engine = {"CHATBOT_ENGINE": "llamacpp" if taken else "fake"}
    long = "What is a microservice?" if taken else f"/echo {SLOWLY}"
    size = {"width": 800, "height": 620}
    with (
        start_backend(backend_url, origin, **engine) as server,
        open_context(browser, hosts, viewport=size) as context,
    ):
        tab = context.new_page()
        tab.goto(origin)
        ask(tab, "What is a monolith in software architecture? Answer in one sentence.")
        expect(tab.get_by_role("button", name="Ask again")).to_be_visible()
        ask(tab, long)
        expect(newest_reply(tab)).to_have_text(re.compile(r".{150}", re.DOTALL))
        tab.screenshot(path=folder / "react_answering.png")
        press(tab, "Stop")
        expect(tab.get_by_text("Stopped here.")).to_be_visible()
        tab.screenshot(path=folder / "react_stopped.png")
        tab.emulate_media(color_scheme="dark")
        tab.screenshot(path=folder / "react_dark.png")
        tab.set_viewport_size({"width": 390, "height": 780})
        tab.screenshot(path=folder / "react_phone.png")
        tab.set_viewport_size(size)
        tab.emulate_media(color_scheme="light")
        launch.kill_server(server)
        ask(tab, "Who answers now?")
        expect(tab.get_by_text("No backend answers this page")).to_have_count(2)
        tab.screenshot(path=folder / "react_backend_gone.png")
    assert len(list(folder.glob("react_*.png"))) == 5


def test_deep_chat_asks_the_same_backend(
    browser: Browser, backend_url: str, hosts: list[str], tmp_path: Path
) -> None:
    copy = shutil.copytree(DEEP_CHAT, tmp_path / "deep-chat", ignore=LEFT_HERE)
    run("npm", "ci", folder=copy)
    html = (copy / "index.html").read_text()
    assert html.count(DEFAULT_BACKEND) == 1
    (copy / "index.html").write_text(html.replace(DEFAULT_BACKEND, backend_url))
    with (
        serve_files(copy) as origin,
        start_backend(backend_url, origin) as server,
        open_context(browser, hosts) as context,
    ):
        tab = context.new_page()
        bodies: list[dict[str, object]] = []
        tab.on("request", lambda sent: sent.post_data and bodies.append(sent.post_data_json))
        tab.goto(origin)
        box, chat = tab.locator("#text-input"), tab.locator("deep-chat")
        box.press_sequentially("/echo hello")
        box.press("Enter")
        replies, many = chat.locator(".ai-message-text"), SLOWLY.partition(" w150")[0]
        expect(replies.last).to_have_text("hello")
        box.press_sequentially(f"/echo {many}")
        box.press("Enter")
        expect(replies.last).to_contain_text("w3")
        assert not replies.last.inner_text().endswith("w149")
        expect(replies.last).to_have_text(many)
        assert bodies[-1]["messages"] == [
            {"role": "user", "content": "/echo hello"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": f"/echo {many}"},
        ]
        box.press_sequentially("/raise")
        box.press("Enter")
        expect(chat.get_by_text("This reply failed because you sent /raise.")).to_be_visible()
        launch.kill_server(server)
        box.press_sequentially("hello")
        box.press("Enter")
        expect(chat.get_by_text(f"No backend answers this page at {backend_url}")).to_be_visible()


def test_pages_are_measured_in_a_browser() -> None:
    few = experiments.Scale(starts=1, tokens=4)
    with rounds.Bench({"CHATBOT_FAKE_TOKEN_S": "0.02"}) as bench:
        rows = [row for done in swaps.swap_page(bench, "fake", few) for row in done]
    seen = {(row.shape, row.measure): row.value for row in rows}
    for shape in (swaps.STREAMLIT, swaps.NATIVE, swaps.REACT):
        assert seen[shape, "characters"] == len("word word word word")
        assert 0 < seen[shape, "first_s"] <= seen[shape, "reply_s"]
        assert seen[shape, "open_s"] > 0

"""What the browser tests share: a tab, what to do in it, and what to see."""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from conftest import FAKE
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

import chatbot_arch.measure.launch as launch

TIMEOUT_MS, LOOK_MS = 60_000, 5_000
expect.set_options(timeout=TIMEOUT_MS)  # a busy machine needs more than Playwright's five seconds
LOOPBACK = ("127.0.0.1", "localhost", "")
SLOWLY = " ".join(f"w{number}" for number in range(400))  # the fake needs four seconds for it
FRAMES = "iframe[title='streamlit_chat.streamlit_chat']"
MESSAGES = f"{FRAMES}, [data-testid='stChatMessage']"  # in either look
REST = """async part => {
  const all = () => part.getAnimations({subtree: true});
  const moving = () => all().filter(each => each.playState === "running");
  while (moving().length) await Promise.allSettled(moving().map(each => each.finished));
}"""
TURNS = "[class*='st-key-turn-']"  # the oldest comes first in the page's tree


@contextmanager
def open_context(browser: Browser, hosts: list[str], **options: object) -> Iterator[BrowserContext]:
    """Open a browser of its own, and check afterwards what its pages asked for and showed."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    context.on("request", lambda request: hosts.append(urlsplit(request.url).hostname or ""))
    yield context
    for tab in context.pages:
        expect_readable(tab)
    exceptions = [tab.get_by_test_id("stException").count() for tab in context.pages]
    context.close()
    assert not any(exceptions)
    assert hosts
    assert set(hosts) <= set(LOOPBACK)


@contextmanager
def run_app(architecture: launch.Architecture, folder: Path) -> Iterator[launch.App]:
    """Run an architecture that keeps its conversations in a folder."""
    database = {"CHATBOT_DATABASE_URL": f"sqlite:///{folder / 'chats.db'}"}
    with launch.start(architecture, FAKE | database) as app:
        yield app.wait_until_ready(120)


def open_tab(context: BrowserContext, url: str, hosts: list[str]) -> Page:
    """Open a page in a tab and wait for its box; note every host that its socket asks."""
    tab = context.new_page()
    tab.on("websocket", lambda socket: hosts.append(urlsplit(socket.url).hostname or ""))
    tab.goto(url)
    expect(box(tab)).to_be_enabled()
    return tab


def box(tab: Page) -> Locator:
    return tab.get_by_test_id("stChatInputTextArea")


def ask(tab: Page, question: str) -> None:
    """Ask the fake engine to say a text back."""
    box(tab).fill(f"/echo {question}")
    box(tab).press("Enter")


def frame(tab: Page, position: int) -> Locator:
    """Return the bubble at a position, counted from the top, where the newest turn is."""
    from_the_top, part = divmod(position, 2)
    return tab.locator(TURNS).nth(-1 - from_the_top).locator(FRAMES).nth(part)


def bubble(tab: Page, position: int) -> Locator:
    """Return what the bubble at a position shows, counted from the top."""
    return frame(tab, position).content_frame.locator("body")


def message(tab: Page, position: int, look: str = "bubbles") -> Locator:
    """Return what the message at a position shows in either look, counted from the top."""
    if look == "bubbles":
        return bubble(tab, position)
    from_the_top, part = divmod(position, 2)
    turn = tab.locator(TURNS).nth(-1 - from_the_top)
    return turn.get_by_test_id("stChatMessageContent").nth(part)


def expect_messages(tab: Page, texts: list[str], look: str = "bubbles") -> None:
    """Wait until the page shows exactly these texts, from top to bottom, and nothing is made."""
    expect(tab.locator(MESSAGES)).to_have_count(len(texts))
    for position, text in enumerate(texts):
        shown = message(tab, position, look).get_by_text(text, exact=True)
        expect(shown).to_be_visible()
    expect(tab.get_by_role("button", name="Stop")).to_have_count(0)
    expect_readable(tab)


def expect_readable(tab: Page) -> None:
    """Wait until no message on the page is blank or hidden, and the newest turn is on top."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while True:
        try:
            return check_readable(tab)
        except AssertionError:  # a turn may have come or gone meanwhile: look again at all
            if time.monotonic() > deadline:
                raise


def check_readable(tab: Page) -> None:
    """Check the messages of one moment."""
    for shown in tab.locator(FRAMES).all():
        expect(shown).to_be_visible(timeout=LOOK_MS)
        body = shown.content_frame.locator("body")
        expect(body).to_contain_text(re.compile(r"\S"), timeout=LOOK_MS)
    for shown in tab.get_by_test_id("stChatMessageContent").all():
        expect(shown).to_contain_text(re.compile(r"\S"), timeout=LOOK_MS)
    tops = tab.locator(TURNS).evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
    assert tops == sorted(tops, reverse=True)


def expect_growing(tab: Page) -> str:
    """Wait until a reply has grown under the reader's eyes; return what was shown."""
    reply = bubble(tab, 1)
    expect(reply).to_contain_text(re.compile(r"w\d"))
    first = reply.inner_text()
    expect(reply).not_to_have_text(first, use_inner_text=True)
    later = reply.inner_text()
    assert later.strip().startswith(first.strip())
    return later.strip()


def expect_kept(tab: Page, shown: str, mark: str) -> None:
    """Wait until the page shows the kept part of a reply, and says why it is only a part."""
    expect(tab.get_by_text(mark)).to_be_visible()
    expect(bubble(tab, 1)).to_contain_text(shown)
    assert "w399" not in bubble(tab, 1).inner_text()


def turn(question: str) -> list[str]:
    """Return the two bubbles of a turn answered by the fake engine."""
    return [f"/echo {question}", question]


def turns(questions: Iterable[str]) -> list[str]:
    """Return the bubbles of several turns, in their order."""
    return [text for question in questions for text in turn(question)]


def press(tab: Page, name: str) -> None:
    tab.get_by_role("button", name=name).click()


def unfold(tab: Page, name: str) -> None:
    """Open a part of the sidebar that is folded, if it is, once the page rests; wait until it is.

    What it holds moves while it unfolds, and a click that lands beside a button is lost.
    """
    expect(tab.locator("[data-test-script-state='notRunning']")).to_be_visible()
    part = tab.get_by_test_id("stExpander").filter(has_text=name).locator("details")
    if part.get_attribute("open") is None:
        part.locator("summary").click()
        expect(part).to_have_attribute("open", "")
    part.evaluate(REST)


def download(tab: Page, name: str) -> bytes:
    """Click a download button and return the file."""
    with tab.expect_download() as waiting:
        press(tab, name)
    return waiting.value.path().read_bytes()

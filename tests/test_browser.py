"""What a person sees in a real browser, on the pages of both architectures."""

import csv
import io
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from conftest import FAKE
from playwright.sync_api import Browser, Page, expect

import chatbot_arch.launch as launch
import chatbot_arch.users as users

TIMEOUT_MS = 30_000
LOOPBACK = ("127.0.0.1", "localhost", "")


@pytest.fixture
def hosts() -> list[str]:
    """Collect the hosts that pages ask for anything."""
    return []


@pytest.fixture
def page(browser: Browser, app: launch.App, hosts: list[str]) -> Iterator[Page]:
    """Yield the app's page in a context of its own, and check afterwards what it asked for."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    opened = open_tab(context.new_page(), app, hosts)
    yield opened
    exceptions = opened.get_by_test_id("stException").count()
    context.close()
    assert exceptions == 0
    assert hosts
    assert set(hosts) <= set(LOOPBACK)


def open_tab(tab: Page, app: launch.App, hosts: list[str]) -> Page:
    """Open the app's page in a tab and wait for its box; note every host that is asked."""
    tab.on("request", lambda request: hosts.append(urlsplit(request.url).hostname or ""))
    tab.on("websocket", lambda socket: hosts.append(urlsplit(socket.url).hostname or ""))
    tab.goto(app.page_url)
    expect(tab.get_by_test_id("stChatInputTextArea")).to_be_enabled(timeout=TIMEOUT_MS)
    return tab


def ask(tab: Page, question: str) -> None:
    """Ask the fake engine to say a text back."""
    box = tab.get_by_test_id("stChatInputTextArea")
    expect(box).to_be_enabled(timeout=TIMEOUT_MS)
    box.fill(f"/echo {question}")
    box.press("Enter")


def expect_messages(tab: Page, texts: list[str]) -> None:
    """Wait until the bubbles show exactly these texts, from top to bottom."""
    frames = tab.locator("iframe[title='streamlit_chat.streamlit_chat']")
    expect(frames).to_have_count(len(texts), timeout=TIMEOUT_MS)
    for position, text in enumerate(texts):
        bubble = frames.nth(position).content_frame.get_by_text(text, exact=True)
        expect(bubble).to_be_visible(timeout=TIMEOUT_MS)


def turn(question: str) -> list[str]:
    """Return the two bubbles of a turn answered by the fake engine."""
    return [f"/echo {question}", question]


def test_same_question_twice_gets_two_answers(page: Page) -> None:
    ask(page, "hello")
    expect_messages(page, turn("hello"))
    ask(page, "hello")
    expect_messages(page, turn("hello") * 2)


def test_newest_turn_comes_first(page: Page) -> None:
    ask(page, "one")
    expect_messages(page, turn("one"))
    ask(page, "two")
    expect_messages(page, turn("two") + turn("one"))


def test_question_after_clear_is_answered(page: Page) -> None:
    ask(page, "hello")
    expect_messages(page, turn("hello"))
    page.get_by_role("button", name="Clear conversation").click()
    expect_messages(page, [])
    ask(page, "hello")
    expect_messages(page, turn("hello"))


def test_two_tabs_do_not_mix(page: Page, app: launch.App, hosts: list[str]) -> None:
    other = open_tab(page.context.new_page(), app, hosts)
    ask(page, "left")
    ask(other, "right")
    expect_messages(page, turn("left"))
    expect_messages(other, turn("right"))
    ask(page, "left again")
    expect_messages(page, turn("left again") + turn("left"))
    expect_messages(other, turn("right"))


def test_download_gives_csv_oldest_first(page: Page) -> None:
    ask(page, "one, two")
    expect_messages(page, turn("one, two"))
    ask(page, 'a "quoted" word')
    expect_messages(page, turn('a "quoted" word') + turn("one, two"))
    with page.expect_download(timeout=TIMEOUT_MS) as download:
        page.get_by_role("button", name="Download conversation").click()
    text = download.value.path().read_text(encoding="utf-8")
    assert list(csv.reader(io.StringIO(text))) == [
        ["is_user", "text"],
        ["True", "/echo one, two"],
        ["False", "one, two"],
        ["True", '/echo a "quoted" word'],
        ["False", 'a "quoted" word'],
    ]
    expect_messages(page, turn('a "quoted" word') + turn("one, two"))


def test_image_in_a_message_is_not_loaded(page: Page) -> None:
    text = "![x](http://images.example/p.png)"
    ask(page, text)
    expect_messages(page, turn(text))


def test_browser_and_virtual_user_read_the_same(page: Page, app: launch.App) -> None:
    with users.PageUser(app.page_url) as user:
        answer = user.ask("/echo the same?")
    ask(page, "the same?")
    expect_messages(page, ["/echo the same?", answer.text])


def test_question_is_kept_when_the_backend_is_gone(browser: Browser) -> None:
    with launch.start("microservices", FAKE) as app:
        app.wait_until_ready(120)
        tab = open_tab(browser.new_page(), app, [])
        ask(tab, "hello")
        expect_messages(tab, turn("hello"))
        launch.stop_server(app.servers[0])
        ask(tab, "still there?")
        expect(tab.get_by_text("No backend answers at")).to_be_visible(timeout=TIMEOUT_MS)
        expect(tab.get_by_test_id("stChatInputTextArea")).to_have_value("/echo still there?")
        expect_messages(tab, turn("hello"))
        tab.close()

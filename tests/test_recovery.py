"""What comes back after a crash, and what a page looks like in its other form."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ARCHITECTURES, FAKE
from playwright.sync_api import Browser, expect
from tabs import (
    FRAMES,
    SLOWLY,
    ask,
    box,
    bubble,
    expect_growing,
    expect_kept,
    expect_messages,
    open_context,
    open_tab,
    press,
    run_app,
    turn,
)

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.users as users
import chatbot_arch.page.store as store


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_killed_page_comes_back_with_what_was_shown(
    architecture: launch.Architecture, browser: Browser, tmp_path: Path, hosts: list[str]
) -> None:
    with run_app(architecture, tmp_path) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.page_url, hosts)
        ask(tab, SLOWLY)
        shown = expect_growing(tab)
        for process in app.servers[-1].processes():
            process.kill()
        app.servers[-1].process.wait(30)
        port = urlsplit(app.page_url).port
        database = {"CHATBOT_DATABASE_URL": f"sqlite:///{tmp_path / 'chats.db'}"}
        with launch.start(architecture, FAKE | database, page_port=port) as again:
            again.wait_until_ready(120)
            assert again.page_url == app.page_url
            tab.goto(tab.url)
            expect_kept(tab, shown, "Broken off here.")
            ask(tab, "going on")
            expect(bubble(tab, 1)).to_contain_text("going on")


def test_killed_backend_leaves_the_part_and_a_way_back(
    browser: Browser, tmp_path: Path, hosts: list[str]
) -> None:
    with run_app("microservices", tmp_path) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.page_url, hosts)
        ask(tab, SLOWLY)
        shown = expect_growing(tab)
        backend = app.servers[0]
        for process in backend.processes():
            process.kill()
        expect(tab.get_by_text("broke off. Restart it if it is down")).to_be_visible()
        expect_kept(tab, shown, "Broken off here.")
        expect(box(tab)).to_have_value(f"/echo {SLOWLY}")
        box(tab).fill("/echo still there?")
        box(tab).press("Enter")
        expect(tab.get_by_text("No backend answers at")).to_have_count(2)
        expect(box(tab)).to_have_value("/echo still there?")
        backend.process.wait(30)
        command = launch.backend_command(urlsplit(backend.url).port)
        app.servers.append(launch.start_server("backend", command, backend.url, "/ready", FAKE))
        launch.wait_until_ready(app.servers[-1], 60)
        press(tab, "Regenerate")
        expect_messages(tab, turn(SLOWLY))


def test_native_elements_show_the_same_page(browser: Browser, hosts: list[str]) -> None:
    native = FAKE | {"CHATBOT_CHAT_UI": "native"}
    with launch.start("monolith", native) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.wait_until_ready(120).page_url, hosts)
        ask(tab, f"![x](http://images.example/p.png) {SLOWLY}")
        messages = tab.get_by_test_id("stChatMessage")
        expect(messages.nth(1)).to_contain_text("w3")
        expect(tab.get_by_role("button", name="Stop")).to_be_visible()
        expect(messages.nth(1)).to_contain_text("w399")
        expect(messages.nth(1)).to_contain_text("![x](http://images.example/p.png)")
        expect(messages).to_have_count(2)
        assert tab.locator("img[src*='images.example']").count() == 0
        assert tab.locator(FRAMES).count() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_long_conversation_sends_no_more_than_a_short_one(
    architecture: launch.Architecture, tmp_path: Path
) -> None:
    sent = {}
    for length in (10, 200):
        folder = tmp_path / str(length)
        kept = store.Store(f"sqlite:///{folder / 'chats.db'}")
        talk = store.Conversation(id="a" * 22, owner="somebody", title="A long talk")
        talk.turns = [
            store.Turn(
                id=store.new_id(),
                position=position,
                question=f"question {position}",
                reply="word " * 100,
                state="done",
            )
            for position in range(length)
        ]
        kept.add(talk)
        kept.close()
        with run_app(architecture, folder) as app:
            address = f"{app.page_url}?conversation={talk.id}"
            counts = []
            with users.PageUser(address) as user:
                for _ in range(4):  # on a busy machine a reply is looked at more often
                    before = user.page.received_bytes
                    user.ask("/echo hello")
                    counts.append(user.page.received_bytes - before)
            sent[length] = min(counts)
    # Two whole runs and a few looks, which draw the latest turns only, however many there are: all
    # of them would be twenty times as much. A busy machine looks more often, so twice is allowed.
    assert sent[200] < 2 * sent[10]
    assert sent[200] < 200 * 500


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_page_sends_no_reference_to_what_the_browser_has(
    architecture: launch.Architecture, tmp_path: Path
) -> None:
    # A fragment that runs again before its block was sent drops the block and keeps the references
    # in it; the browser then cannot place them, and the whole page is gone.
    with run_app(architecture, tmp_path) as app, users.PageUser(app.page_url) as user:
        for number in range(3):  # one word each, so that the fake engine says it at once
            user.ask(f"/echo {number}{'x' * 9900}")
        assert user.page.received_bytes > 50_000
        assert not user.page._kept, "these could be referred to"

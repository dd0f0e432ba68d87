"""A whole conversation in a real browser: after whatever is done, every turn can be read."""

from pathlib import Path

import pytest
from conftest import ARCHITECTURES, FAKE
from playwright.sync_api import Browser, expect
from tabs import (
    FRAMES,
    SLOWLY,
    TURNS,
    ask,
    box,
    expect_messages,
    expect_readable,
    message,
    open_context,
    open_tab,
    press,
    turn,
    turns,
    unfold,
)

import chatbot_arch.measure.launch as launch
import chatbot_arch.page.store as store

LOOKS = ("bubbles", "native")


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_six_turns_can_be_read_after_all_that_is_done_between(
    architecture: launch.Architecture, look: str, browser: Browser, hosts: list[str]
) -> None:
    environment = FAKE | {"CHATBOT_CHAT_UI": look, "CHATBOT_FAKE_TOKEN_S": "0.1"}
    with launch.start(architecture, environment) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.wait_until_ready(120).page_url, hosts)
        expected: list[str] = []

        def expect_all() -> None:
            expect_messages(tab, expected, look)

        for name in ("one", "two", "three"):
            ask(tab, name)
            expected[:0] = turn(name)
            expect_all()
        box(tab).fill("/raise")  # one word, then an error above the conversation
        box(tab).press("Enter")
        expect(tab.get_by_text("This reply failed")).to_be_visible()
        expected[:0] = ["/raise", "This"]
        expect_all()
        box(tab).fill("")
        ask(tab, SLOWLY)
        expect(message(tab, 1, look)).to_contain_text("w3")
        expect_readable(tab)
        press(tab, "Stop")
        expect(tab.get_by_text("Stopped here.")).to_be_visible()
        expect(tab.locator(TURNS)).to_have_count(5)
        expect_readable(tab)
        press(tab, "Edit")
        tab.get_by_label("Your question", exact=True).fill("/echo five")
        press(tab, "Ask this instead")
        expected[:0] = turn("five")
        expect_all()
        press(tab, "Regenerate")
        expect_all()
        unfold(tab, "Options")
        tab.get_by_role("textbox", name="System prompt").fill("Be brief.")
        tab.get_by_role("textbox", name="System prompt").blur()
        expect_all()
        ask(tab, "six")
        expected[:0] = turn("six")
        expect_all()
        tab.reload()
        expect(tab.locator(TURNS)).to_have_count(6)
        expect_all()


@pytest.mark.parametrize("look", LOOKS)
def test_earlier_turns_can_be_read_once_they_are_shown(
    look: str, browser: Browser, hosts: list[str], tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'chats.db'}"
    kept = store.Store(database)
    talk = store.Conversation(id="a" * 22, owner="somebody", title="A long talk")
    for number in range(23):
        said = {"question": f"/echo {number} said", "reply": f"{number} said", "state": "done"}
        talk.turns.append(store.Turn(id=store.new_id(), position=number, **said))
    kept.add(talk)
    kept.close()
    environment = FAKE | {"CHATBOT_CHAT_UI": look, "CHATBOT_DATABASE_URL": database}
    with launch.start("monolith", environment) as app, open_context(browser, hosts) as context:
        address = f"{app.wait_until_ready(120).page_url}?conversation={talk.id}"
        tab = open_tab(context, address, hosts)

        def expect_latest(newest: int, count: int) -> None:
            expect_messages(tab, turns(f"{newest - back} said" for back in range(count)), look)

        expect_latest(22, 11)
        press(tab, "Show 10 earlier turns")
        expect_latest(22, 21)
        ask(tab, "23 said")
        expect_latest(23, 21)
        press(tab, "Show 3 earlier turns")
        expect_latest(23, 24)
        ask(tab, "24 said")
        expect_latest(24, 25)


def test_no_bubble_is_loaded_again_when_a_question_is_asked(
    browser: Browser, hosts: list[str]
) -> None:
    with launch.start("monolith", FAKE) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.wait_until_ready(120).page_url, hosts)
        names = ("one", "two", "three", "four", "five", "six")
        for asked, name in enumerate(names, 1):
            ask(tab, name)
            expect_messages(tab, turns(reversed(names[:asked])))
            for position in range(2 * asked):  # oldest first, as the page's tree has them
                body = tab.locator(FRAMES).nth(position).content_frame.locator("body")
                body.evaluate("body => { body.dataset.seen = (+body.dataset.seen || 0) + 1 }")
                seen = body.get_attribute("data-seen")
                assert seen == str(asked - position // 2)


SIGNS = (
    "it costs $5 to $6, or $5$, and :red[red] :smile: :material/home: at 10:30:45",
    "$$x^2$$ and \\$5 to \\$6",
    "[note]: hello",
    "[^1]: A note.",
)


@pytest.mark.parametrize("look", LOOKS)
def test_signs_of_a_text_are_shown_as_they_are(
    look: str, browser: Browser, hosts: list[str]
) -> None:
    environment = FAKE | {"CHATBOT_CHAT_UI": look}
    with launch.start("monolith", environment) as app, open_context(browser, hosts) as context:
        tab = open_tab(context, app.wait_until_ready(120).page_url, hosts)
        for text in SIGNS:
            ask(tab, text)
            plain = text.replace("\\", "")
            expect(message(tab, 1, look).get_by_text(plain, exact=True)).to_be_visible()
        ask(tab, "`echo $HOME: $PATH :smile:` is code")
        code = message(tab, 1, look).locator("code")
        expect(code).to_have_text("echo $HOME: $PATH :smile:")
        titles = tab.get_by_test_id("stSidebar").get_by_role("button", name="it costs $5 to $6")
        expect(titles).to_be_visible()

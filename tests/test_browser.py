"""What a person sees in a real browser, on the pages of both architectures."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, WebSocketRoute, expect
from tabs import (
    SLOWLY,
    ask,
    box,
    bubble,
    download,
    expect_growing,
    expect_kept,
    expect_messages,
    frame,
    open_context,
    open_tab,
    press,
    turn,
    unfold,
)

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.users as users


@pytest.fixture
def page(browser: Browser, app: launch.App, hosts: list[str]) -> Iterator[Page]:
    """Yield the app's page in a browser of its own."""
    with open_context(browser, hosts) as context:
        yield open_tab(context, app.page_url, hosts)


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
    press(page, "Clear conversation")
    expect_messages(page, [])
    ask(page, "hello")
    expect_messages(page, turn("hello"))


def test_two_tabs_do_not_mix(page: Page, app: launch.App, hosts: list[str]) -> None:
    other = open_tab(page.context, app.page_url, hosts)
    ask(page, "left")
    ask(other, "right")
    expect_messages(page, turn("left"))
    expect_messages(other, turn("right"))
    ask(page, "left again")
    expect_messages(page, turn("left again") + turn("left"))
    expect_messages(other, turn("right"))


def test_reply_is_seen_growing_and_settles_in_its_bubble(page: Page) -> None:
    ask(page, SLOWLY)
    expect_growing(page)
    bubble(page, 1).evaluate("body => { body.dataset.mark = 'the same' }")
    expect_messages(page, turn(SLOWLY))
    assert bubble(page, 1).get_attribute("data-mark") == "the same"


def test_stop_in_mid_reply_keeps_the_part(page: Page) -> None:
    ask(page, SLOWLY)
    shown = expect_growing(page)
    press(page, "Stop")
    expect_kept(page, shown, "Stopped here.")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_click_elsewhere_in_mid_reply_ends_nothing(page: Page) -> None:
    ask(page, SLOWLY)
    expect_growing(page)
    unfold(page, "Options")
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.get_by_role("textbox", name="System prompt").blur()
    expect_messages(page, turn(SLOWLY))


def test_options_stay_unfolded_when_the_conversation_is_listed(page: Page) -> None:
    unfold(page, "Options")
    ask(page, "one")
    expect_messages(page, turn("one"))
    expect(page.get_by_text("Rename or delete")).to_be_visible()
    expect(page.get_by_role("textbox", name="System prompt")).to_be_visible()


def test_refresh_in_mid_reply_shows_the_part_and_goes_on(page: Page) -> None:
    ask(page, SLOWLY)
    shown = expect_growing(page)
    page.reload()
    expect(bubble(page, 1)).to_contain_text(shown)
    expect_messages(page, turn(SLOWLY))


def test_lost_connection_comes_back_to_the_same_conversation(
    page: Page, app: launch.App, hosts: list[str]
) -> None:
    sockets: list[WebSocketRoute] = []

    def forward(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    tab = page.context.new_page()
    tab.route_web_socket("**/_stcore/stream", forward)
    tab.goto(app.page_url)
    ask(tab, "hello")
    expect_messages(tab, turn("hello"))
    tab.evaluate("window.wasHere = true")
    ask(tab, SLOWLY)
    expect_growing(tab)
    sockets[-1].close(code=3000, reason="lost on the way")
    expect_messages(tab, turn(SLOWLY) + turn("hello"))
    assert len(sockets) == 2, "the page has connected again"
    assert tab.evaluate("window.wasHere"), "without being loaded again"


def test_question_at_once_after_clear_begins_a_new_conversation(page: Page) -> None:
    ask(page, "the first")
    expect_messages(page, turn("the first"))
    first = page.url
    box(page).fill("/echo the second")
    page.evaluate("""() => {
      document.querySelector('.st-key-clear button').click();
      document.querySelector('[data-testid=stChatInputSubmitButton]').click();
    }""")
    expect_messages(page, turn("the second"))
    assert page.url != first
    page.go_back()
    page.go_back()
    expect_messages(page, turn("the first"))


def test_address_opens_the_conversation_in_another_browser(
    page: Page, browser: Browser, hosts: list[str]
) -> None:
    ask(page, "hello")
    expect_messages(page, turn("hello"))
    with open_context(browser, hosts) as other:
        expect_messages(open_tab(other, page.url, hosts), turn("hello"))


def test_edit_and_regenerate_replace_the_turn(page: Page) -> None:
    ask(page, "one")
    expect_messages(page, turn("one"))
    press(page, "Edit")
    page.get_by_label("Your question", exact=True).fill("/echo two")
    press(page, "Ask this instead")
    expect_messages(page, turn("two"))
    old = frame(page, 1).element_handle()
    press(page, "Regenerate")
    old.wait_for_element_state("hidden")
    expect_messages(page, turn("two"))


def test_conversations_are_listed_renamed_and_deleted(page: Page) -> None:
    sidebar = page.get_by_test_id("stSidebar")
    ask(page, "the first")
    expect_messages(page, turn("the first"))
    press(page, "Clear conversation")
    ask(page, "the second")
    expect_messages(page, turn("the second"))
    unfold(page, "Rename or delete")
    page.get_by_label("Name", exact=True).fill("My second talk")
    sidebar.get_by_role("button", name="Rename", exact=True).click()
    expect(sidebar.get_by_role("button", name="My second talk")).to_be_visible()
    page.wait_for_function("document.cookie.includes('chatbot_browser')")
    page.reload()  # the list comes from the store, by the cookie
    expect_messages(page, turn("the second"))
    sidebar.get_by_role("button", name="/echo the first").click()
    expect_messages(page, turn("the first"))
    unfold(page, "Rename or delete")
    press(page, "Delete this conversation")
    expect_messages(page, [])
    expect(sidebar.get_by_role("button", name="/echo the first")).to_have_count(0)
    expect(sidebar.get_by_role("button", name="My second talk")).to_be_visible()


def test_download_gives_csv_oldest_first(page: Page) -> None:
    ask(page, "one, two")
    expect_messages(page, turn("one, two"))
    ask(page, 'a "quoted" wörd 👩‍👩‍👧')
    expect_messages(page, turn('a "quoted" wörd 👩‍👩‍👧') + turn("one, two"))
    content = download(page, "Download conversation")
    assert (
        content
        == (
            "is_user,text\r\n"
            'True,"/echo one, two"\r\n'
            'False,"one, two"\r\n'
            'True,"/echo a ""quoted"" wörd 👩‍👩‍👧"\r\n'
            'False,"a ""quoted"" wörd 👩‍👩‍👧"\r\n'
        ).encode()
    )
    assert len(list(csv.reader(io.StringIO(content.decode(), newline="")))) == 5
    expect_messages(page, turn('a "quoted" wörd 👩‍👩‍👧') + turn("one, two"))


def test_saved_conversation_is_opened_again_byte_by_byte(page: Page, tmp_path: Path) -> None:
    ask(page, "=1+1 and 👩‍👩‍👧")
    expect_messages(page, turn("=1+1 and 👩‍👩‍👧"))
    unfold(page, "Save and open")
    saved = download(page, "Save as JSON")
    assert json.loads(saved)["turns"][0]["reply"] == "=1+1 and 👩‍👩‍👧"
    address = page.url
    (tmp_path / "talk.json").write_bytes(saved)
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(tmp_path / "talk.json")
    page.wait_for_url(lambda url: url != address)
    expect_messages(page, turn("=1+1 and 👩‍👩‍👧"))
    unfold(page, "Save and open")
    assert download(page, "Save as JSON") == saved


def test_image_in_a_message_is_not_loaded(page: Page) -> None:
    text = "![x](http://images.example/p.png)"
    ask(page, text)
    expect_messages(page, turn(text))


def test_markup_is_drawn_and_html_is_text(page: Page) -> None:
    ask(page, "<b id='bold'>bold</b> `code` **strong**")
    expect(bubble(page, 1).locator("code")).to_have_text("code")
    expect(bubble(page, 1).locator("strong")).to_have_text("strong")
    expect(bubble(page, 1).get_by_text("<b id='bold'>")).to_be_visible()
    assert bubble(page, 1).locator("#bold").count() == 0


def test_browser_and_virtual_user_read_the_same(page: Page, app: launch.App) -> None:
    with users.PageUser(app.page_url) as user:
        answer = user.ask(f"/echo {SLOWLY}")
    assert answer.first_s < answer.reply_s
    ask(page, SLOWLY)
    expect_messages(page, [f"/echo {SLOWLY}", answer.text])


def test_page_fits_a_phone(browser: Browser, app: launch.App, hosts: list[str]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    with open_context(browser, hosts, **phone) as context:
        tab = open_tab(context, app.page_url, hosts)
        ask(tab, "hello")
        expect_messages(tab, turn("hello"))
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        background = tab.get_by_test_id("stApp").evaluate(
            "e => getComputedStyle(e).backgroundColor"
        )
        assert max(map(int, re.findall(r"\d+", background)[:3])) < 64, "dark, as the phone wishes"


def test_keyboard_alone_asks_and_stops(page: Page) -> None:
    box(page).focus()
    page.keyboard.type(f"/echo {SLOWLY[:1500]}")
    page.keyboard.press("Enter")
    shown = expect_growing(page)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip().endswith("Stop"):
            break
    page.keyboard.press("Enter")
    expect_kept(page, shown, "Stopped here.")


def test_accessibility_has_no_serious_findings(page: Page) -> None:
    ask(page, "hello")
    expect_messages(page, turn("hello"))
    found = Axe().run(page).response["violations"]
    serious = [
        (each["id"], node["html"][:200])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
    assert serious == []

"""What a person sees on a page whose model is in another server with the OpenAI API."""

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from conftest import ARCHITECTURES, FAKE
from playwright.sync_api import Browser, expect
from tabs import (
    SLOWLY,
    ask,
    box,
    expect_growing,
    expect_kept,
    expect_messages,
    message,
    open_context,
    open_tab,
    turn,
    turns,
)

import chatbot_arch.measure.launch as launch

BROKEN_OFF = "broke off. Restart it if it is down"


@pytest.fixture
def server() -> Iterator[launch.Server]:
    """Yield another backend, which plays the server."""
    started = launch.start_backend(FAKE)
    launch.wait_until_ready(started, 120)
    yield started
    launch.stop_server(started)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_server_is_asked_dies_and_comes_back(
    browser: Browser, hosts: list[str], server: launch.Server, architecture: launch.Architecture
) -> None:
    asked = {
        "CHATBOT_ENGINE": "openai",
        "CHATBOT_ENGINE_URL": f"{server.url}/v1",
        "CHATBOT_MAX_NEW_TOKENS": "1000",
    }
    with (
        launch.start(architecture, asked | {"CHATBOT_DATABASE_URL": "sqlite://"}) as app,
        open_context(browser, hosts) as context,
    ):
        app.wait_until_ready(120)
        page = open_tab(context, app.page_url, hosts)
        questions = ["one", "two", "three", "four", "five", "six"]
        for number, question in enumerate(questions, 1):
            ask(page, question)
            expect_messages(page, turns(reversed(questions[:number])))
        expect(page.get_by_text("known-text on openai", exact=True)).to_be_visible()
        ask(page, SLOWLY)
        shown = expect_growing(page)
        launch.kill_server(server)
        expect(page.get_by_text(BROKEN_OFF)).to_be_visible()
        expect_kept(page, shown, "Broken off here.")
        box(page).fill("/echo still there?")
        box(page).press("Enter")
        expect(page.get_by_text("No server answers at").first).to_be_visible()
        again = launch.start_backend(FAKE, urlsplit(server.url).port)
        try:
            launch.wait_until_ready(again, 120)
            assert again.url == server.url
            answered = message(page, 1).get_by_text("still there?", exact=True)
            deadline = time.monotonic() + 60
            while not answered.is_visible():
                assert time.monotonic() < deadline
                # The front end asks again by itself for a while; then the question is back.
                if box(page).input_value() == "/echo still there?":
                    box(page).press("Enter")
                page.wait_for_timeout(250)
            for position, text in enumerate(turn("still there?")):
                expect(message(page, position).get_by_text(text, exact=True)).to_be_visible()
        finally:
            launch.stop_server(again)

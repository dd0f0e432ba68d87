"""The pages of both architectures without a browser: what the article's code got wrong."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from conftest import serve_backend
from streamlit.testing.v1 import AppTest

import chatbot_arch.engine as engine
import chatbot_arch.engines as engines
import chatbot_arch.settings as settings
import chatbot_arch.utils as utils

PACKAGE = Path(utils.__file__).parent
SCRIPTS = {"monolith": "monolith.py", "microservices": "frontend.py"}


class CountingEngine(engine.FakeEngine):
    """Answer with the number of the request, after `turns_left_out` turns were dropped."""

    def __init__(self) -> None:
        super().__init__(token_s=0)
        self.asked: list[list[engine.Message]] = []
        self.turns_left_out = 0
        self.error: Exception | None = None

    def fit(self, conversation: list, options: engine.Options) -> tuple[list, int]:
        return conversation, self.turns_left_out

    def stream(self, conversation: list, options: engine.Options, stop: threading.Event):
        if self.error:
            raise self.error
        self.asked.append(conversation)
        yield f"reply {len(self.asked)}"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    """Put a counting engine in the place of whatever the settings choose."""
    counted = CountingEngine()
    monkeypatch.setattr(engines, "load_engine", lambda choice, report=None: counted)
    return counted


@pytest.fixture
def backend_url(counting: CountingEngine) -> Iterator[str]:
    """Serve the backend with the counting engine."""
    with serve_backend() as url:
        yield url


@pytest.fixture(params=SCRIPTS)
def page(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, backend_url: str
) -> AppTest:
    """Return the freshly opened page of each architecture."""
    monkeypatch.setenv("CHATBOT_BACKEND_URL", backend_url)
    st.cache_resource.clear()
    return AppTest.from_file(PACKAGE / SCRIPTS[request.param], default_timeout=60).run()


def ask(page: AppTest, question: str) -> AppTest:
    return page.chat_input[0].set_value(question).run()


def turns(page: AppTest) -> dict[str, list[str]]:
    return page.session_state.conversation_history


def test_same_question_after_clear_is_answered_anew(page: AppTest) -> None:
    ask(page, "hello")
    page.button[0].click().run()
    assert turns(page) == {"past_user_inputs": [], "generated_responses": []}
    ask(page, "hello")
    assert turns(page)["generated_responses"] == ["reply 2"]


def test_model_sees_the_turns_before(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "one")
    ask(page, "two")
    contents = [message["content"] for message in counting.asked[-1]]
    assert contents == ["one", "reply 1", "two"]


def test_second_session_gets_its_own_conversation(page: AppTest) -> None:
    ask(page, "hello")
    other = AppTest.from_file(page._script_path, default_timeout=60).run()
    assert turns(other)["past_user_inputs"] == []
    ask(other, "hello")
    assert turns(other)["generated_responses"] == ["reply 2"]
    assert turns(page)["generated_responses"] == ["reply 1"]


def test_click_elsewhere_asks_nothing(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    page.run()
    page.run()
    assert len(counting.asked) == 1
    assert turns(page)["generated_responses"] == ["reply 1"]


def test_blank_question_is_ignored(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "   ")
    assert not counting.asked
    assert not page.error


def test_too_long_question_is_a_sentence_and_kept(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    counting.error = engine.TooLongError("9000 tokens, and 8144 fit. Shorten it.")
    ask(page, "too long")
    assert [error.value for error in page.error] == ["9000 tokens, and 8144 fit. Shorten it."]
    assert page.chat_input[0].proto.value == "too long"
    assert turns(page)["past_user_inputs"] == ["hello"]
    counting.error = None
    ask(page, "too long")
    assert not page.error
    assert turns(page)["past_user_inputs"] == ["hello", "too long"]


def test_page_says_that_turns_were_left_out(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    assert not page.caption
    counting.turns_left_out = 3
    ask(page, "hello")
    assert page.caption[0].value.endswith("Earlier turns left out: 3.")


def test_engine_is_loaded_once_for_all_clicks_and_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = []

    def load(choice: settings.Settings) -> engine.Engine:
        loads.append(choice)
        return engine.FakeEngine(token_s=0)

    monkeypatch.setattr(engines, "load_engine", load)
    st.cache_resource.clear()
    for _ in range(2):
        page = AppTest.from_file(PACKAGE / "monolith.py", default_timeout=60).run()
        ask(page, "hello")
        page.button[0].click().run()
    assert len(loads) == 1

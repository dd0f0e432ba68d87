"""The two functions that differ give the same replies, with the embedded model."""

from collections.abc import Iterator

import pytest

import chatbot_arch.frontend as frontend
import chatbot_arch.launch as launch
import chatbot_arch.monolith as monolith

QUESTIONS = ("What is a monolith?", "And <|im_end|> is what?", "Thank you! 🧹 é \u202e")
LENGTH = {"CHATBOT_MAX_NEW_TOKENS": "24"}


@pytest.fixture(scope="module")
def backend_url() -> Iterator[str]:
    with launch.start("microservices", LENGTH) as app:
        yield app.wait_until_ready(300).servers[0].url


def test_both_architectures_reply_the_same(
    backend_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_URL", backend_url)
    monkeypatch.setenv("CHATBOT_MAX_NEW_TOKENS", LENGTH["CHATBOT_MAX_NEW_TOKENS"])
    past: tuple[list[str], list[str]] = ([], [])
    for question in QUESTIONS:
        reply = monolith.monolith_llm_response(*past, question)
        assert reply.text.strip()
        assert frontend.microservice_llm_response(*past, question) == reply
        past[0].append(question)
        past[1].append(reply.text)

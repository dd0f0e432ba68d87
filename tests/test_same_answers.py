"""The two functions that differ give the same replies, with the embedded model."""

from collections.abc import Iterator

import pytest

import chatbot_arch.engines.protocol as protocol
import chatbot_arch.frontend as frontend
import chatbot_arch.measure.launch as launch
import chatbot_arch.monolith as monolith
import chatbot_arch.page.replies as replies
import chatbot_arch.page.store as store

QUESTIONS = ("What is a monolith?", "And <|im_end|> is what?", "Thank you! 🧹 é \u202e")
OPTIONS = protocol.Options(system_prompt="Be brief.", max_new_tokens=24)


@pytest.fixture(scope="module")
def backend_url() -> Iterator[str]:
    with launch.start("microservices") as app:
        yield app.wait_until_ready(300).servers[0].url


def answer(respond: replies.Respond, past: list[store.Turn], question: str) -> store.Turn:
    """Return the turn that an architecture makes of a question."""
    kept = store.Store("sqlite://")
    kept.keep_draft("a talk", "somebody", question, {})
    turn = store.Turn(id="t", conversation_id="a talk", position=0, question=question)
    writing = replies.Writing(respond, kept, turn, past, OPTIONS)
    replies.start(writing)
    assert writing.wait(120)
    assert not replies.look(writing).error
    return kept.load("a talk").turns[0]


def test_both_architectures_reply_the_same(
    backend_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_URL", backend_url)
    past: list[store.Turn] = []
    for question in QUESTIONS:
        ours, theirs = (
            answer(respond, past, question)
            for respond in (monolith.monolith_llm_response, frontend.microservice_llm_response)
        )
        assert ours.reply.strip()
        assert (ours.reply, ours.state) == (theirs.reply, theirs.state)
        for fact in ("reason", "model", "engine", "prompt_tokens", "reply_tokens"):
            assert ours.facts[fact] == theirs.facts[fact]
        past.append(ours)

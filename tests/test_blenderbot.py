"""Blenderbot answers as the article's transformers 4.28.1 pipeline did, turn by turn."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from transformers import AutoTokenizer

import chatbot_arch.engines.local as local
import chatbot_arch.engines.prompts as prompts
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.measure.launch as launch
import chatbot_arch.settings as settings

FIXTURE = Path(__file__).parent / "blenderbot-tiny"
TALKS = json.loads((FIXTURE / "conversations.json").read_text(encoding="utf-8"))
TURNS = list(itertools.chain.from_iterable(TALKS))
FIELDS = ("past_user_inputs", "generated_responses", "user_input")


@pytest.fixture(scope="module")
def blenderbot() -> Iterator[protocol.Engine]:
    loaded = local.load_engine(settings.Settings(model=str(FIXTURE / "model")))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def backend_url() -> Iterator[str]:
    with launch.start("microservices", {"CHATBOT_MODEL": str(FIXTURE / "model")}) as app:
        yield app.wait_until_ready(120).servers[0].url


@pytest.mark.parametrize("turn", TURNS, ids=range(len(TURNS)))
def test_engine_feeds_and_replies_as_recorded(blenderbot: protocol.Engine, turn: dict) -> None:
    conversation = protocol.to_conversation(*(turn[field] for field in FIELDS))
    assert blenderbot.prompt.last_ids(conversation) == turn["input_ids"]
    assert protocol.complete(blenderbot, conversation) == (turn["reply"], 0)


@pytest.mark.parametrize("turn", TURNS, ids=range(len(TURNS)))
def test_backend_replies_as_recorded(backend_url: str, turn: dict) -> None:
    body = {field: turn[field] for field in FIELDS}
    response = requests.post(f"{backend_url}/chat", json=body, timeout=60)
    assert response.status_code == 200
    assert response.json() == turn["reply"]


def test_long_conversation_keeps_its_last_tokens(blenderbot: protocol.Engine) -> None:
    long_turn = TURNS[-1]
    past = long_turn["past_user_inputs"] * 3, long_turn["generated_responses"] * 3
    conversation = protocol.to_conversation(*past, long_turn["user_input"])
    _, left_out = protocol.complete(blenderbot, conversation)
    tokenizer = AutoTokenizer.from_pretrained(FIXTURE / "model")
    whole = prompts.blenderbot_input_ids(tokenizer, conversation)
    assert len(whole) > blenderbot.prompt.window
    assert blenderbot.prompt.last_ids(conversation) == whole[-blenderbot.prompt.window :]
    assert 0 < left_out < 6

"""The backend's HTTP contract, with the engine that needs no model."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from fastapi.testclient import TestClient

import chatbot_arch.backend as backend
import chatbot_arch.engine as engine
import chatbot_arch.engines as engines


class ScriptedEngine(engine.FakeEngine):
    """Echo, or raise what the test wants."""

    error: Exception | None = None

    def fit(self, conversation: list, options: engine.Options) -> tuple[list, int]:
        if self.error:
            raise self.error
        return conversation, 2


@pytest.fixture
def scripted() -> ScriptedEngine:
    return ScriptedEngine(token_s=0)


@pytest.fixture
def client(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(engines, "load_engine", lambda choice, report: scripted)
    with TestClient(backend.app) as opened:
        backend.app.state.loading.result(timeout=30)
        yield opened


def test_health_answers_get_and_head(client: TestClient) -> None:
    assert client.get("/").json() == {"status": "OK!"}
    assert client.head("/").status_code == 200


def test_health_answers_and_ready_does_not_while_loading(client: TestClient) -> None:
    loaded, backend.app.state.loading = backend.app.state.loading, Future()
    assert client.get("/").status_code == 200
    refused = [client.get("/ready"), client.post("/chat", json={"user_input": "hi"})]
    backend.app.state.loading = loaded
    assert [answer.status_code for answer in refused] == [503, 503]
    assert all("loading" in answer.json()["detail"] for answer in refused)
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert client.get("/ready").json() == {
        "status": "ready",
        "model": "known-text",
        "engine": "fake",
    }


def test_chat_answers_one_json_string(client: TestClient) -> None:
    answer = client.post("/chat", json={"user_input": "/echo hi  there"})
    assert answer.json() == "hi  there"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-turns-left-out"] == "2"


def test_options_reach_the_engine(client: TestClient) -> None:
    body = {"user_input": "/echo one two three", "options": {"max_new_tokens": 2}}
    assert client.post("/chat", json=body).json() == "one two"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user_input": ""},
        {"user_input": "  \n"},
        {"user_input": None},
        {"user_input": 7},
        {"user_input": "hi", "past_user_inputs": ["a"]},
        {"user_input": "hi", "past_user_inputs": None},
        {"user_input": "hi", "unknown": 1},
        {"user_input": "hi", "options": {"temperature": -1}},
    ],
)
def test_bad_body_is_refused(client: TestClient, body: dict) -> None:
    assert client.post("/chat", json=body).status_code == 422


def test_broken_json_is_refused(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/chat", content=b'{"user_input"', headers=headers).status_code == 422


def test_too_long_question_is_refused_with_the_reason(
    client: TestClient, scripted: ScriptedEngine
) -> None:
    scripted.error = engine.TooLongError("9000 tokens, and 8144 fit.")
    answer = client.post("/chat", json={"user_input": "hi"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "9000 tokens, and 8144 fit.")

"""The backend's HTTP contract, with the engine that needs no model."""

import asyncio
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from conftest import serve_backend
from fastapi.testclient import TestClient

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.service.admission as admission
import chatbot_arch.service.relay as relay
import chatbot_arch.settings as settings

DEADLINE_S = 30


class ScriptedEngine(protocol.FakeEngine):
    """Echo, or raise what the test wants."""

    error: Exception | None = None
    left_out = 0

    def __init__(self, **pace: float) -> None:
        super().__init__(**pace)
        self.asked = threading.Event()
        self.finished: queue.SimpleQueue[str] = queue.SimpleQueue()

    def stream(self, *asked: object) -> Generator[str, None, protocol.Facts]:
        self.asked.set()
        reason = "closed"
        try:
            finish = yield from super().stream(*asked)
            reason = finish.reason
            return finish
        finally:
            self.finished.put(reason)

    def fit(self, conversation: list, options: protocol.Options) -> tuple[list, int]:
        if self.error:
            raise self.error
        return conversation, self.left_out


@pytest.fixture
def scripted() -> ScriptedEngine:
    return ScriptedEngine(token_s=0)


@pytest.fixture
def client(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, at: str
) -> Iterator[httpx.Client]:
    if at:
        with httpx.Client(base_url=at, timeout=DEADLINE_S, trust_env=False) as opened:
            yield opened
        return
    monkeypatch.setattr(local, "load_engine", lambda choice, report: scripted)
    with TestClient(backend.app, base_url="http://localhost") as opened:
        backend.app.state.answerer.loading.engine.result(timeout=30)
        yield opened


def test_health_answers_get_and_head(client: TestClient) -> None:
    assert client.get("/").json() == {"status": "OK!"}
    assert client.head("/").status_code == 200


@pytest.mark.here
def test_health_answers_and_ready_does_not_while_loading(client: TestClient) -> None:
    loading = backend.app.state.answerer.loading
    loaded, loading.engine = loading.engine, Future()
    assert client.get("/").status_code == 200
    refused = [client.get("/ready"), client.post("/chat", json={"user_input": "hi"})]
    loading.engine = loaded
    assert [answer.status_code for answer in refused] == [503, 503]
    assert all("loading" in answer.json()["detail"] for answer in refused)
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert client.get("/ready").json() == {
        "status": "ready",
        "model": "known-text",
        "engine": "fake",
        "dtype": "",
    }


def test_chat_answers_one_json_string(client: TestClient) -> None:
    answer = client.post("/chat", json={"user_input": "/echo hi  there"})
    assert answer.json() == "hi  there"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-turns-left-out"] == "0"


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
    scripted.error = protocol.TooLongError("9000 tokens, and 8144 fit.")
    answer = client.post("/chat", json={"user_input": "hi"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "9000 tokens, and 8144 fit.")


@pytest.mark.parametrize(
    ("question", "code", "detail", "again"),
    [
        ("/raise", 500, "This reply failed", False),
        ("/hang", 503, "busy", True),
        ("/die", 503, "died", False),
    ],
)
def test_engine_errors_are_told_apart(
    client: TestClient,
    scripted: ScriptedEngine,
    question: str,
    code: int,
    detail: str,
    again: bool,
) -> None:
    scripted.reply_timeout_s = 0.2
    answer = client.post("/chat", json={"user_input": question})
    assert (answer.status_code, detail in answer.json()["detail"]) == (code, True)
    assert ("retry-after" in answer.headers) is again
    alive = question != "/die"
    assert client.get("/ready").status_code == (200 if alive else 503)
    after = client.post("/chat", json={"user_input": "/echo well?"})
    assert after.status_code == (200 if alive else 503)
    assert client.get("/").status_code == 200


@pytest.mark.here
def test_loading_says_at_which_stage_it_is(client: TestClient) -> None:
    loading = backend.app.state.answerer.loading
    loaded, loading.engine, loading.stage = loading.engine, Future(), "reading the weights"
    refused = client.get("/ready")
    loading.engine = loaded
    assert "reading the weights" in refused.json()["detail"]


def test_client_that_leaves_ends_its_reply(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "load_engine", lambda choice, report: scripted)
    body = json.dumps({"user_input": "/hang"})
    with serve_backend() as url:
        backend.app.state.answerer.loading.engine.result(timeout=30)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert scripted.asked.wait(30)
        assert scripted.finished.get(timeout=30) == "cancelled"


def events(text: str) -> list[tuple[str, dict]]:
    """Return the server-sent events in a body."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n", text)
    return [(event, json.loads(data)) for event, data in found]


def test_stream_sends_tokens_and_then_what_they_took(client: TestClient) -> None:
    answer = client.post("/chat/stream", json={"user_input": "/echo one two"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events(answer.text) == [
        ("token", {"text": "one"}),
        ("token", {"text": " two"}),
        (
            "done",
            {
                "reason": "stop",
                "prompt_tokens": 3,
                "reply_tokens": 2,
                "turns_left_out": 0,
                "model": "known-text",
                "engine": "fake",
                "dtype": "",
            },
        ),
    ]


def test_turns_that_were_left_out_are_counted(client: TestClient, scripted: ScriptedEngine) -> None:
    scripted.left_out, body = 2, {"user_input": "/echo hi"}
    assert client.post("/chat", json=body).headers["x-turns-left-out"] == "2"
    _, done = events(client.post("/chat/stream", json=body).text)[-1]
    assert done["turns_left_out"] == 2


def test_stream_that_fails_ends_with_its_sentence(client: TestClient) -> None:
    sent = events(client.post("/chat/stream", json={"user_input": "/raise"}).text)
    assert [event for event, _ in sent] == ["token", "error"]
    assert "failed" in sent[-1][1]["detail"]


def test_stream_refuses_before_it_begins(client: TestClient, scripted: ScriptedEngine) -> None:
    scripted.error = protocol.TooLongError("9000 tokens, and 8144 fit.")
    answer = client.post("/chat/stream", json={"user_input": "hi"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "9000 tokens, and 8144 fit.")


def test_system_prompt_of_the_request_comes_before_the_settings(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = settings.Settings(engine="fake", system_prompt="Be very very brief indeed.")
    monkeypatch.setattr(backend.app.state.answerer.loading, "choice", choice)
    for system_prompt, tokens in ((None, 7), ("Be brief.", 4), ("", 2)):
        options = {} if system_prompt is None else {"system_prompt": system_prompt}
        body = {"user_input": "/echo hi", "options": options}
        sent = events(client.post("/chat/stream", json=body).text)
        assert sent[-1][1]["prompt_tokens"] == tokens


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ScriptedEngine]]:
    """Serve an engine that speaks until it is stopped, to one at a time."""
    speaking = ScriptedEngine(token_s=0.01)
    monkeypatch.setattr(local, "load_engine", lambda choice, report: speaking)
    monkeypatch.setenv("CHATBOT_MAX_REPLIES", "1")
    with serve_backend() as url:
        backend.app.state.answerer.loading.engine.result(timeout=30)
        yield url, speaking


LONG = {"user_input": "/echo " + "word " * 5000}


def open_stream(stack: ExitStack, url: str, body: dict) -> Iterator[str]:
    """Ask for a stream and return its lines; closing `stack` leaves it."""
    client = stack.enter_context(httpx.Client(timeout=30))
    answer = stack.enter_context(client.stream("POST", f"{url}/chat/stream", json=body))
    return answer.iter_lines()


def test_who_leaves_a_stream_frees_the_place(crowded: tuple[str, ScriptedEngine]) -> None:
    url, speaking = crowded
    for _ in range(3):
        with ExitStack() as stack:
            assert next(open_stream(stack, url, LONG)) == "event: token"
        assert speaking.finished.get(timeout=5) in ("cancelled", "closed")
    answer = httpx.post(f"{url}/chat", json={"user_input": "/echo hi"}, timeout=30)
    assert answer.json() == "hi"


def test_who_waits_in_line_is_told_and_may_leave(crowded: tuple[str, ScriptedEngine]) -> None:
    url, _ = crowded
    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        speaking = open_stream(first, url, LONG)
        assert next(speaking) == "event: token"
        waiting = open_stream(second, url, {"user_input": "/echo second"})
        assert [next(waiting) for _ in range(2)] == ["event: waiting", 'data: {"ahead": 0}']
        behind = open_stream(third, url, {"user_input": "/echo third"})
        assert [next(behind) for _ in range(2)] == ["event: waiting", 'data: {"ahead": 1}']
        second.close()
        first.close()
        assert 'data: {"text": "third"}' in list(behind)
    deadline = time.monotonic() + 30
    while backend.app.state.queue.free < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_silence_is_broken_by_comments(
    client: TestClient, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SILENCE_S", 0.1)
    scripted.reply_timeout_s = 1
    text = client.post("/chat/stream", json={"user_input": "/hang"}).text
    comments, (event, _) = text.count(": ping\n\n"), events(text)[-1]
    assert (2 <= comments <= 10, event) == (True, "error")
    scripted.token_s = 0.02  # words come more often than silences would
    spoken = client.post("/chat/stream", json={"user_input": "/echo " + "word " * 20}).text
    assert spoken.count("event: token") == 21
    assert spoken.count(": ping") < comments


@pytest.mark.here
def test_thread_is_a_bounded_number_of_events_ahead_and_ends_at_a_stop() -> None:
    made = 0

    def endless(stop: protocol.Stop) -> relay.Events:
        nonlocal made
        yield protocol.Status("")
        while not stop.is_set():
            made += 1
            yield "word"
        yield protocol.Facts("cancelled")

    async def read_slowly() -> bool:
        stop, sent = admission.RequestStop(), 0
        relayed = relay.Relay(endless(stop), stop)
        relayed.run()
        await relayed.fits()
        try:
            async for batch in relayed.batches():
                await asyncio.sleep(0.05)  # while this batch is on its way
                assert sent < made <= sent + relay.EVENTS_AHEAD
                sent += len(batch)
                if sent > 4 * relay.EVENTS_AHEAD:
                    break
        finally:
            ending = asyncio.create_task(relayed.end())
            ended, _ = await asyncio.wait({ending}, timeout=DEADLINE_S)
            if not ended:  # make room, so that it ends after all
                _ = [batch async for batch in relayed.batches()]
        return ending in ended

    with start_blocking_portal() as portal:  # a browser may have left a loop in this thread
        assert portal.call(read_slowly)

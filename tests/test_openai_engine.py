"""The engine for servers with the OpenAI API, in front of one that does what a test wants."""

import json
import logging
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import chatbot_arch.engines.local as local
import chatbot_arch.engines.openai as openai
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.settings as settings

DEADLINE_S = 30
KEY = "sk-very-secret-0123"
MODEL = "a-model"
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}
QUESTION = protocol.to_conversation([], [], "Hello?")


def word(text: str) -> dict[str, Any]:
    """Return an event with a piece of a reply."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


class Answers(BaseHTTPRequestHandler):
    """Answer each request with the server's script."""

    protocol_version = "HTTP/1.1"
    server: "Scripted"

    def setup(self) -> None:
        """Note the connection, so that the server can cut it."""
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """List the models."""
        status, content = self.server.models
        self.send_whole(status, content)

    def do_POST(self) -> None:
        """Answer a chat as the script says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((headers, body))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.script(self, body)

    def send_whole(self, status: int, content: object, **headers: str) -> None:
        """Send an answer in one piece."""
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        kind = "text/html" if isinstance(content, str) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(text), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    def begin(self) -> None:
        """Begin a stream that ends with the connection."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, *events: object) -> None:
        """Send events, or texts as they are."""
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            self.wfile.write(f"data: {text}\n\n".encode())

    def is_left(self, seconds: float) -> bool:
        """Return whether the client closes the connection within some seconds."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        return bool(readable) and not self.connection.recv(1)


class Scripted(ThreadingHTTPServer):
    """A server on loopback whose answers a test decides."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.models: tuple[int, object] = (200, {"object": "list", "data": [{"id": MODEL}]})
        self.script: Callable[[Answers, dict], None] = reply
        self.asked: list[tuple[dict[str, str], dict]] = []
        self.connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), Answers)
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()

    @property
    def choice(self) -> settings.Settings:
        """Return settings for an engine that asks this server."""
        return settings.Settings(
            engine="openai",
            engine_url=f"http://127.0.0.1:{self.server_address[1]}/v1",
            engine_key=KEY,
            reply_timeout_s=DEADLINE_S,
        )

    def die(self) -> None:
        """Cut all connections and refuse new ones."""
        self.socket.close()
        for each in self.connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it; its port can be used again."""
        self.shutdown()
        self.server_close()


def reply(answer: Answers, body: dict) -> None:
    """Answer with two words."""
    answer.begin()
    answer.send(word("Hel"), word("lo!"), END, USAGE, "[DONE]")


@pytest.fixture
def server() -> Iterator[Scripted]:
    with closing(Scripted()) as opened:
        yield opened


@pytest.fixture
def asked(server: Scripted) -> Iterator[openai.OpenAIEngine]:
    with closing(openai.load(server.choice, pytest.fail)) as loaded:
        yield loaded


def ask(engine: protocol.Engine, *conversation: protocol.Message) -> tuple[list[str], Any]:
    """Return the pieces of a reply, and its facts."""
    said: list[str] = []
    talk = list(conversation) or QUESTION
    facts = protocol.speak(
        protocol.answer(engine, talk, protocol.Options(), protocol.Stop()), said.append
    )
    return said, facts


def wait_until(true: Callable[[], object]) -> None:
    """Return once `true()`; fail after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_up(engine: protocol.Engine) -> bool:
    """Return whether the engine says that it can answer."""
    try:
        engine.check()
    except protocol.NotReadyError:
        return False
    return True


# Replies


def test_pieces_come_in_order_with_reason_and_usage(asked: openai.OpenAIEngine) -> None:
    said, facts = ask(asked)
    assert said == ["Hel", "lo!"]
    assert facts == protocol.Facts("stop", 7, 2, MODEL, "openai")


def test_piece_arrives_before_the_next_is_sent(
    server: Scripted, asked: openai.OpenAIEngine
) -> None:
    go_on = threading.Event()

    def slowly(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("first"))
        assert go_on.wait(DEADLINE_S)
        answer.send(word(" second"), END, "[DONE]")

    server.script = slowly
    pieces = asked.stream(QUESTION, protocol.Options(), protocol.Stop())
    assert next(pieces) == "first"
    go_on.set()
    assert list(pieces) == [" second"]


def test_request_holds_key_options_and_window(server: Scripted) -> None:
    server.models = (200, {"data": [{"id": MODEL, "max_model_len": 300}]})
    talk = protocol.to_conversation(["a"], ["b"], "c", "Be brief.")
    with closing(openai.load(server.choice, pytest.fail)) as loaded:
        options = protocol.Options(temperature=0.5, top_p=0.9, max_new_tokens=12)
        list(loaded.stream(talk, options, protocol.Stop()))
        list(loaded.stream(talk, protocol.Options(), protocol.Stop()))
    (headers, body), (_, second) = server.asked
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body["messages"] == talk
    sent = {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "stream")}
    assert list(sent.values()) == [MODEL, 12, 0.5, 0.9, True]
    assert second["max_tokens"] == 150  # half the window, under the default of 256


def test_no_key_and_a_login_are_sent_as_such(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-somebody-else")
    host = server.choice.engine_url.removeprefix("http://")
    for url in (f"http://{host}", f"http://user:pass@{host}"):
        choice = settings.Settings(engine="openai", engine_url=url)
        with closing(openai.load(choice, pytest.fail)) as loaded:
            ask(loaded)
    (bare, _), (login, _) = server.asked
    assert "authorization" not in bare
    assert login["authorization"].startswith("Basic ")
    assert "somebody-else" not in str(server.asked)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "error"), ("tool_calls", "stop")],
)
def test_finish_reasons_become_ours(
    server: Scripted, asked: openai.OpenAIEngine, finish: str, reason: str
) -> None:
    def end(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("x"), {"choices": [{"delta": {}, "finish_reason": finish}]}, "[DONE]")

    server.script = end
    _, facts = ask(asked)
    assert facts == protocol.Facts(reason, None, None, MODEL, "openai")  # no usage was sent


# Stops and silence


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("how", ["stop", "close"])
def test_stop_closes_the_connection(
    server: Scripted, asked: openai.OpenAIEngine, how: str, begun: bool
) -> None:
    left: queue.SimpleQueue[bool] = queue.SimpleQueue()
    arrived = threading.Event()

    def speak_on(answer: Answers, body: dict) -> None:
        if begun:
            answer.begin()
            answer.send(word("first"))
        arrived.set()
        left.put(answer.is_left(DEADLINE_S))

    server.script = speak_on
    stop = protocol.Stop()
    pieces = asked.stream(QUESTION, protocol.Options(), stop)
    if begun:
        assert next(pieces) == "first"
    else:
        threading.Thread(target=lambda: (arrived.wait(DEADLINE_S), stop.set())).start()
        assert protocol.speak(pieces, pytest.fail).reason == "cancelled"
    if how == "stop" and begun:
        stop.set()
        assert protocol.speak(pieces, pytest.fail).reason == "cancelled"
    pieces.close()
    assert left.get(timeout=1)


def test_silence_is_slowness_up_to_the_time_limit(
    server: Scripted, asked: openai.OpenAIEngine
) -> None:
    over = threading.Event()

    def hang(answer: Answers, body: dict) -> None:
        if body["messages"] != QUESTION:
            answer.begin()
            answer.send(word("first"))
        over.wait(DEADLINE_S)

    server.script, asked.reply_timeout_s = hang, 0.3
    with pytest.raises(protocol.EngineBusyError, match="busy"):
        ask(asked)
    said, facts = ask(asked, *protocol.to_conversation([], [], "Begin."))
    assert (said, facts.reason, facts.reply_tokens) == (["first"], "timeout", None)
    asked.check()  # slow is not dead
    over.set()


def test_slow_list_of_models_is_not_death(
    server: Scripted, asked: openai.OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "LOOK_TIMEOUT_S", 0.1)
    over, looked = threading.Event(), threading.Event()

    def hang(answer: Answers) -> None:
        looked.set()
        over.wait(DEADLINE_S)

    monkeypatch.setattr(Answers, "do_GET", hang)
    asked._replies.watch.look()
    assert looked.wait(DEADLINE_S)
    wait_until(lambda: not asked._replies.watch._looking)
    asked.check()
    over.set()


# Errors


@pytest.mark.parametrize(
    ("status", "error", "headers", "kind", "says"),
    [
        (401, {"message": f"Bad {KEY}"}, {}, protocol.ReplyError, "CHATBOT_ENGINE_KEY"),
        (403, {"message": "no"}, {}, protocol.ReplyError, "CHATBOT_ENGINE_KEY"),
        (404, {"code": "model_not_found"}, {}, protocol.ReplyError, "CHATBOT_MODEL"),
        (400, {"message": "top_p\nis off"}, {}, protocol.ReplyError, "top_p is off"),
        (422, {"message": f"What is {KEY}?"}, {}, protocol.ReplyError, "What is ...?"),
        (429, {"message": "Slow down."}, {}, protocol.EngineBusyError, "busy: Slow down."),
        (429, {"code": "insufficient_quota", "message": "Pay."}, {}, protocol.ReplyError, "Pay."),
        (503, {"message": "Full."}, {"Retry-After": "3"}, protocol.EngineBusyError, "Full."),
        (503, {"message": "Loading model"}, {}, protocol.NotReadyError, "Loading model"),
        (503, {"code": "engine_died"}, {}, protocol.EngineDiedError, "cannot answer"),
        (502, {}, {}, protocol.NotReadyError, "not ready"),
        (500, {"message": "Oops."}, {}, protocol.ReplyError, "Oops."),
        (500, {}, {}, protocol.ReplyError, "500 Internal Server Error"),
        (307, {}, {"Location": "/elsewhere"}, protocol.ReplyError, "307"),
    ],
)
def test_refusal_becomes_our_error(
    server: Scripted,
    asked: openai.OpenAIEngine,
    status: int,
    error: dict,
    headers: dict[str, str],
    kind: type[Exception],
    says: str,
) -> None:
    server.script = lambda answer, body: answer.send_whole(status, {"error": error}, **headers)
    with pytest.raises(settings.ChatbotError) as caught:
        ask(asked)
    assert (type(caught.value), says in str(caught.value)) == (kind, True)
    assert KEY not in str(caught.value)


PAGE = "<html><body>Welcome to the gateway"


@pytest.mark.parametrize(
    "content",
    [PAGE, {"choices": [{"message": {"content": "not streamed"}}]}, "[" * 100_000],
)
def test_answer_that_is_no_stream_is_a_sentence(
    server: Scripted, asked: openai.OpenAIEngine, content: object
) -> None:
    server.script = lambda answer, body: answer.send_whole(200, content)
    with pytest.raises(protocol.ReplyError, match="invalid answer"):
        ask(asked)
    server.script = reply
    assert ask(asked)[0] == ["Hel", "lo!"]


@pytest.mark.parametrize(
    "event",
    [
        "{not json",
        "5",
        "[" * 100_000,
        {"choices": "none"},
        word("x" * 1_000_001),
        {"choices": [], "usage": {"prompt_tokens": -1}},
        {"choices": [], "usage": {"completion_tokens": 10**400}},
    ],
    ids=lambda event: str(event)[:20],
)
def test_garbage_in_a_stream_is_a_sentence(
    server: Scripted, asked: openai.OpenAIEngine, event: object
) -> None:
    def babble(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("Hel"), event, END, "[DONE]")

    server.script = babble
    with pytest.raises(protocol.ReplyError, match="invalid answer"):
        ask(asked)


def test_line_without_end_is_not_kept(
    server: Scripted, asked: openai.OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "MAX_RESPONSE_BYTES", 1_000_000)

    def flood(answer: Answers, body: dict) -> None:
        answer.begin()
        while True:
            answer.wfile.write(b"x" * 65_536)

    server.script = flood
    with pytest.raises(protocol.ReplyError, match="invalid answer"):
        ask(asked)


@pytest.mark.parametrize("last", ["[DONE]", None])
def test_stream_without_a_finish_reason_broke_off(
    server: Scripted, asked: openai.OpenAIEngine, last: str | None
) -> None:
    def break_off(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("Hel"), *([last] if last else []))

    server.script = break_off
    with pytest.raises(protocol.ReplyError, match="broke off"):
        ask(asked)
    assert is_up(asked)


def test_error_inside_a_stream_is_told(server: Scripted, asked: openai.OpenAIEngine) -> None:
    def fail(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("Hel"), {"error": {"message": "Out of memory.", "code": 500}})

    server.script = fail
    with pytest.raises(protocol.ReplyError, match=r"Out of memory\."):
        ask(asked)


# Conversations that are too long


def refuse_over(limit: int, sentence: str) -> Callable[[Answers, dict], None]:
    """Return a script with a window of `limit` characters."""

    def answer_or_refuse(answer: Answers, body: dict) -> None:
        if sum(len(message["content"]) for message in body["messages"]) > limit:
            answer.send_whole(400, {"error": {"message": sentence, "type": "BadRequestError"}})
        else:
            reply(answer, body)

    return answer_or_refuse


@pytest.mark.parametrize(
    "sentence",
    [
        "This model's maximum context length is 100 tokens. However, you requested 300 tokens.",
        "the request exceeds the available context size, try increasing it",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 100. Given: 300",
        "The decoder prompt (length 300) is longer than the maximum model length of 100.",
        "The input (300 tokens) is longer than the model's context length (100 tokens).",
    ],
)
def test_oldest_turns_are_left_out_until_the_server_accepts(
    server: Scripted, asked: openai.OpenAIEngine, sentence: str
) -> None:
    server.script = refuse_over(100, sentence)
    turns = [f"question {number}" for number in range(20)], ["answers."] * 20
    talk = protocol.to_conversation(*turns, "the last", "Be brief.")
    said, facts = ask(asked, *talk)
    assert said == ["Hel", "lo!"]
    last = server.asked[-1][1]["messages"]
    assert last[0]["content"] == "Be brief."
    assert last[1:] == talk[1 + 2 * facts.turns_left_out :]
    assert 0 < facts.turns_left_out < 20
    assert len(server.asked) <= openai.MAX_TRIES + 1


def test_question_that_never_fits_is_refused_after_few_tries(
    server: Scripted, asked: openai.OpenAIEngine
) -> None:
    sentence = "This model's maximum context length is 5 tokens."
    server.script = refuse_over(5, sentence)
    talk = protocol.to_conversation(["a" * 9] * 900, ["b" * 9] * 900, "a long question")
    with pytest.raises(protocol.TooLongError, match="maximum context length is 5 tokens"):
        ask(asked, *talk)
    assert len(server.asked[-1][1]["messages"]) == 1
    assert len(server.asked) == openai.MAX_TRIES + 1
    asked.check()  # its own limit is not the server's fault


# Loading, death and recovery


def test_load_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "DOWN_PAUSE_S", 0.05)
    monkeypatch.setattr(local, "TRY_AGAIN_S", 0.05)
    with closing(Scripted()) as gone:
        choice, port = gone.choice, gone.server_address[1]
    loading = local.Loading(choice, daemon=True)
    wait_until(lambda: loading.stage == f"waiting for the server at {choice.engine_url}")
    with closing(Scripted(port)) as server:
        server.models = (503, {"error": {"message": "Loading model"}})
        server.script = lambda answer, body: answer.send_whole(503, {"error": {"message": "Soon."}})
        time.sleep(0.2)
        assert not loading.engine.done()
        server.models = (200, {"data": [{"id": MODEL}]})
        wait_until(lambda: "Soon" in loading.stage)
        server.script = reply
        with closing(loading.engine.result(DEADLINE_S)) as loaded:
            assert ask(loaded)[0] == ["Hel", "lo!"]


@pytest.mark.parametrize(
    ("models", "model", "says"),
    [
        ((401, {"error": {"message": KEY}}), None, "CHATBOT_ENGINE_KEY"),
        ((200, {"data": [{"id": f"m{n}"} for n in range(9)]}), "x", "m0, m1, m2, m3, m4, ...."),
        ((200, {"data": []}), None, "set CHATBOT_MODEL"),
        ((200, {"data": [{"name": "x"}]}), None, "invalid answer"),
        ((200, PAGE), None, "invalid answer"),
        ((404, PAGE), None, "CHATBOT_ENGINE_URL"),
    ],
)
def test_load_fails_with_a_sentence(
    server: Scripted, models: tuple[int, object], model: str | None, says: str
) -> None:
    server.models = models
    given = {"model": model} if model else {}
    url = server.choice.engine_url
    choice = settings.Settings(engine="openai", engine_url=url, engine_key=KEY, **given)
    with pytest.raises(weights.ModelError, match=says) as caught:
        local.load_engine(choice)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [404, 500])
def test_server_without_a_list_is_asked_for_the_chosen_model(server: Scripted, status: int) -> None:
    server.models = (status, PAGE)
    choice = settings.Settings(engine="openai", model="wanted", engine_url=server.choice.engine_url)
    with closing(local.load_engine(choice)) as loaded:
        ask(loaded)
        loaded._replies.watch.look()
        wait_until(lambda: not loaded._replies.watch._looking)
        loaded.check()
    assert {body["model"] for _, body in server.asked} == {"wanted"}


def test_rejected_key_ends_a_load_whose_list_is_open(server: Scripted) -> None:
    server.script = lambda answer, body: answer.send_whole(401, {"error": {"message": KEY}})
    with pytest.raises(weights.ModelError, match="CHATBOT_ENGINE_KEY"):
        local.load_engine(server.choice)


def test_chosen_model_is_asked_for(server: Scripted) -> None:
    server.models = (200, {"data": [{"id": "other"}, {"id": "wanted"}]})
    choice = settings.Settings(model="wanted", engine_url=server.choice.engine_url)
    for chosen, model in ((choice, "wanted"), (server.choice, "other")):
        with closing(openai.load(chosen, pytest.fail)) as loaded:
            assert loaded.model == model


def test_death_is_told_at_once_and_recovery_noticed(
    asked: openai.OpenAIEngine, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "DOWN_PAUSE_S", 0.05)
    port = server.server_address[1]

    def die(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("Hel"))
        server.die()

    server.script = die
    begun = time.monotonic()
    with pytest.raises(protocol.ReplyError, match="broke off"):
        ask(asked)
    with pytest.raises(protocol.NotReadyError, match="No server answers"):
        ask(asked)
    assert time.monotonic() - begun < 1
    assert not is_up(asked)
    with closing(Scripted(port)):
        wait_until(lambda: is_up(asked))
        assert ask(asked)[0] == ["Hel", "lo!"]


def test_death_is_noticed_without_a_question(
    asked: openai.OpenAIEngine, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "LOOK_AGAIN_S", 0.05)
    assert is_up(asked)
    server.die()
    wait_until(lambda: not is_up(asked))


def test_model_that_is_gone_is_noticed(asked: openai.OpenAIEngine, server: Scripted) -> None:
    server.models = (200, {"data": [{"id": "another"}]})
    asked._replies.watch.look()
    wait_until(lambda: not is_up(asked))
    with pytest.raises(protocol.NotReadyError, match=f"does not serve {MODEL} any more"):
        asked.check()


def test_kept_connection_of_a_server_that_began_again_is_not_an_error(
    server: Scripted, asked: openai.OpenAIEngine
) -> None:
    def keep(answer: Answers, body: dict) -> None:
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in (word("Hi"), END))
        answer.send_response(200)
        answer.send_header("Content-Type", "text/event-stream")
        answer.send_header("Content-Length", str(len(text)))
        answer.end_headers()
        answer.wfile.write(text.encode())
        server.script = close

    def close(answer: Answers, body: dict) -> None:
        answer.close_connection = True  # unanswered
        server.script = reply

    server.script = keep
    assert ask(asked)[0] == ["Hi"]
    assert ask(asked)[0] == ["Hel", "lo!"]
    assert len(server.asked) == 3


def test_closed_engine_ends_its_replies_and_its_thread(
    server: Scripted, asked: openai.OpenAIEngine
) -> None:
    def hang(answer: Answers, body: dict) -> None:
        answer.begin()
        answer.send(word("first"))
        answer.is_left(DEADLINE_S)

    server.script = hang
    pieces = asked.stream(QUESTION, protocol.Options(), protocol.Stop())
    next(pieces)
    asked.close()
    with pytest.raises(protocol.EngineDiedError, match="closed"):
        next(pieces)
    for attempt in (lambda: ask(asked), asked.check):
        with pytest.raises(protocol.EngineDiedError, match="closed"):
            attempt()
    wait_until(lambda: "ask-openai" not in [each.name for each in threading.enumerate()])


def test_many_at_once_get_their_own_replies(server: Scripted, asked: openai.OpenAIEngine) -> None:
    def echo(answer: Answers, body: dict) -> None:
        answer.begin()
        for letter in body["messages"][-1]["content"]:
            answer.send(word(letter))
            time.sleep(0.001)
        answer.send(END, "[DONE]")

    server.script = echo
    texts = [f"number {number} of sixteen" for number in range(16)]
    said: dict[str, str] = {}

    def one(text: str) -> None:
        said[text] = "".join(ask(asked, *protocol.to_conversation([], [], text))[0])

    threads = [threading.Thread(target=one, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert said == {text: text for text in texts}


def test_key_is_in_no_log(
    server: Scripted, asked: openai.OpenAIEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(asked)
        server.script = lambda answer, body: answer.send_whole(500, {"error": {"message": KEY}})
        with pytest.raises(protocol.ReplyError):
            ask(asked)
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in repr(server.choice)

"""What the front end does when the backend is away, slow, broken or talks nonsense.

Each fault is a script of a stub that speaks raw HTTP; a few are real backend processes.
"""

import base64
import contextlib
import gc
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import streamlit as st
from conftest import FAKE, serve_backend
from streamlit.testing.v1 import AppTest

import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote
import chatbot_arch.frontend as frontend
import chatbot_arch.measure.launch as launch
import chatbot_arch.page.files as files
import chatbot_arch.page.replies as replies
import chatbot_arch.page.sidebar as sidebar
import chatbot_arch.page.store as store
import chatbot_arch.page.turns as turns
import chatbot_arch.settings as settings
import chatbot_arch.utils as utils

FRONTEND = Path(utils.__file__).with_name("frontend.py")
DEADLINE_S = 30  # for what must come, on however busy a machine
SOON_S = 3.0  # "at once", on a busy machine
SLACK_S = 5.0  # how much later than a time limit an end may come
DRIP_S = 0.1
SECRET = "-".join(["tulip", "osprey"])  # a password that nobody may read
LINUX = pytest.mark.skipif(
    sys.platform != "linux",
    reason="elsewhere a full queue refuses, or takes more than it was told to",
)
PROXIES = [f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO")]


# The stub


class Caller:
    """A connection to the stub: what was asked, and whether the asker is still there."""

    def __init__(self, connection: socket.socket, ending: threading.Event) -> None:
        self.connection, self.ending = connection, ending
        self.left = threading.Event()
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, content = received.partition(b"\r\n\r\n")
        self.head = head.decode()
        self.path = head.split(b" ")[1].decode()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while len(content) < (int(length[1]) if length else 0):
            content += self._receive()
        self.body = json.loads(content) if content else None

    def _receive(self) -> bytes:
        received = self.connection.recv(65536)
        if not received:
            raise ConnectionError("left before the question was whole")
        return received

    def wait_until_left(self) -> None:
        """Return when the asker has closed the connection, or the stub ends."""
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass
        self.note_left()

    def note_left(self) -> None:
        """Remember that the connection is closed, if it was not the stub that closed it."""
        if not self.ending.is_set():
            self.left.set()


Script = Callable[[Caller], None]


@dataclass
class Stub:
    """A running stub; `asked` are the questions it got, in order."""

    url: str
    asked: list[Caller]


def answer(
    status: int, content: bytes | str, kind: str = "application/json", **more: str
) -> Script:
    """Answer with one whole content."""
    content = content.encode() if isinstance(content, str) else content
    headers = {"Content-Type": kind, "Content-Length": len(content), "Connection": "close"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    head = f"HTTP/1.1 {status} {httpx.codes.get_reason_phrase(status)}\r\n{lines}\r\n"
    return lambda caller: caller.connection.sendall(head.encode() + content)


LOADING = answer(503, '{"detail": "Loading."}')
NOT_THERE = answer(404, '{"detail": "Not Found"}')


@contextmanager
def serve(*scripts: Script, ready: Script = LOADING) -> Iterator[Stub]:
    """Serve one script for each question in turn, the last one for all that follow."""
    ending, lock = threading.Event(), threading.Lock()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(32) as pool:
        listener.settimeout(0.1)
        stub = Stub(f"http://127.0.0.1:{listener.getsockname()[1]}", [])
        connections, handled = [], []

        def handle(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(DEADLINE_S)
                caller = Caller(connection, ending)
                if caller.path == "/ready":
                    return ready(caller)
                with lock:
                    script = scripts[min(len(stub.asked), len(scripts) - 1)]
                    stub.asked.append(caller)
                try:
                    script(caller)
                except OSError:
                    caller.note_left()

        def accept() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    connections.append(listener.accept()[0])
                    handled.append(pool.submit(handle, connections[-1]))

        accepting = pool.submit(accept)
        try:
            yield stub
        finally:
            ending.set()
            accepting.result(DEADLINE_S)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
    for each in handled:
        each.result()


def event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def token(text: str) -> bytes:
    return event("token", {"text": text})


EVENTS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
JSON_HEAD = EVENTS_HEAD.replace(b"text/event-stream", b"application/json")
DONE = event("done", {"reason": "stop", "model": "a model", "engine": "a stub"})


def hold(caller: Caller) -> None:
    """Say nothing more, for as long as the asker stays."""
    caller.wait_until_left()


def reset(caller: Caller) -> None:
    """Break the connection as a killed process does."""
    caller.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.connection.close()


def close(caller: Caller) -> None:
    """Let the connection end."""


def stream(*pieces: bytes | threading.Event, then: Script = close) -> Script:
    """Answer with a stream of events, waiting where an event of this process stands; then go on."""

    def script(caller: Caller) -> None:
        caller.connection.sendall(EVENTS_HEAD)
        for piece in pieces:
            if isinstance(piece, threading.Event):
                assert piece.wait(DEADLINE_S)
            else:
                caller.connection.sendall(piece)
        then(caller)

    return script


def drip(head: bytes, content: bytes) -> Script:
    """Send a head at once, and after it one byte at a time, the last byte for ever."""

    def script(caller: Caller) -> None:
        caller.connection.sendall(head)
        position = 0
        while not caller.ending.wait(DRIP_S):
            caller.connection.sendall(content[position : position + 1])
            position = min(position + 1, len(content) - 1)

    return script


@contextmanager
def closed_port() -> Iterator[str]:
    """Yield an address at which nobody listens, nor will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def full_port() -> Iterator[str]:
    """Yield an address that takes no more connections, and refuses none."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            caller = opened.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.5)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


# The asker


def wait_until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class Chat:
    """A conversation in a store of its own, as a page would keep it."""

    kept: store.Store
    monkeypatch: pytest.MonkeyPatch
    key: str = "a talk"

    def begin(
        self, url: str, question: str = "hello", options: protocol.Options | None = None
    ) -> replies.Writing:
        """Ask, in place of the last turn if that one failed; return the reply under way."""
        self.monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        self.kept.keep_draft(self.key, "somebody", question, {})
        past = self.turns()
        failed = past.pop() if past and not turns.is_kept(past[-1]) else None
        turn = store.Turn(
            id=store.new_id(), conversation_id=self.key, position=len(past), question=question
        )
        respond, replaced = frontend.microservice_llm_response, failed.id if failed else None
        writing = replies.Writing(respond, self.kept, turn, past, options, replaced)
        replies.start(writing)
        return writing

    def ask(
        self, url: str, question: str = "hello", options: protocol.Options | None = None
    ) -> replies.View:
        """Ask, and return the reply when it has ended."""
        writing = self.begin(url, question, options)
        assert writing.wait(DEADLINE_S)
        return replies.look(writing)

    def turns(self) -> list[store.Turn]:
        """Return what is kept of the conversation."""
        kept = self.kept.load(self.key)
        return list(kept.turns)

    def saved(self) -> list[tuple[str, str, str]]:
        """Return what a person would see of the conversation."""
        return [(turn.question, turn.reply, turn.state) for turn in self.turns()]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    """Yield an empty conversation; no reply outlives the test."""
    for name in (*PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    st.cache_resource.clear()  # of a client made for another environment
    opened = Chat(store.Store("sqlite://"), monkeypatch)
    yield opened
    if writing := replies.find(opened.key):
        writing.stop.set()
        assert writing.wait(DEADLINE_S)
    opened.kept.close()
    st.cache_resource.clear()


@contextmanager
def timed(at_least_s: float, at_most_s: float) -> Iterator[None]:
    """Check how long a block takes."""
    started = time.monotonic()
    yield
    assert at_least_s <= time.monotonic() - started <= at_most_s


@contextmanager
def real_backend(port: int, **environment: str) -> Iterator[launch.Server]:
    """Run the backend as a process of its own."""
    url = f"http://127.0.0.1:{port}"
    command = launch.backend_command(port)
    server = launch.start_server("backend", command, url, "/ready", FAKE | environment)
    try:
        launch.wait_until_ready(server, DEADLINE_S)
        yield server
    finally:
        for process in server.processes():
            process.resume()
        launch.stop_server(server)


# Nobody there


def test_sentence_names_address_and_command_when_backend_is_not_started(chat: Chat) -> None:
    with closed_port() as url, timed(0, remote.REFUSED_UP_TO_S + SOON_S):
        view = chat.ask(url)
    assert view.error.startswith(f"No backend answers at {url}. Start it with `uvicorn chatbot")
    assert (view.text, chat.saved()) == ("", [])
    assert chat.kept.load(chat.key).draft == "hello"


def test_backend_that_starts_meanwhile_is_asked_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REFUSED_UP_TO_S", DEADLINE_S)
    with socket.socket() as later:
        later.bind(("127.0.0.1", 0))
        writing = chat.begin(f"http://127.0.0.1:{later.getsockname()[1]}")
        wait_until(lambda: "Trying again" in replies.look(writing).status)
        later.listen()
        connection, _ = later.accept()
        with connection:
            stream(token("Here."), DONE)(Caller(connection, threading.Event()))
    assert writing.wait(DEADLINE_S)
    assert chat.saved() == [("hello", "Here.", "done")]


@pytest.mark.parametrize("end", [close, reset])
def test_connection_that_ends_unanswered_is_tried_again(
    chat: Chat, end: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REFUSED_UP_TO_S", DEADLINE_S)
    with serve(end, end, stream(token("Here."), DONE)) as stub:
        view = chat.ask(stub.url)
    assert (view.error, chat.saved()) == ("", [("hello", "Here.", "done")])


def test_connection_that_always_ends_unanswered_is_a_sentence(chat: Chat) -> None:
    with serve(close) as stub:
        view = chat.ask(stub.url)
    assert view.error == remote.CLOSED.format(url=stub.url)
    assert len(stub.asked) >= 2
    assert (view.text, chat.saved()) == ("", [])


@LINUX
def test_address_that_takes_no_connection_is_a_sentence_after_three_seconds(chat: Chat) -> None:
    with full_port() as url:
        limit_s = remote.CONNECT_TIMEOUT_S
        with timed(limit_s - 0.1, limit_s + SLACK_S):
            view = chat.ask(url)
    assert view.error == f"No backend could be reached at {url}. Check the address."


# Gone in mid-reply


@pytest.mark.parametrize("end", [close, reset])
@pytest.mark.parametrize("framing", ["plain", "chunked"])
def test_part_is_kept_and_retry_works_when_connection_breaks(
    chat: Chat, end: Script, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if framing == "chunked":
        head = EVENTS_HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        monkeypatch.setattr(sys.modules[__name__], "EVENTS_HEAD", head)
    seen = threading.Event()
    pieces = [token("Once "), token("upon ")]
    whole = [token("Once "), token("more."), DONE]
    if framing == "chunked":
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        whole = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in whole]
    with serve(stream(*pieces, seen, then=end), stream(*whole)) as stub:
        writing = chat.begin(stub.url)
        wait_until(lambda: replies.look(writing).text == "Once upon ")
        with timed(0, SOON_S):
            seen.set()
            assert writing.wait(DEADLINE_S)
        assert "broke off. Restart it if it is down" in replies.look(writing).error
        assert chat.saved() == [("hello", "Once upon ", "failed")]
        assert not chat.ask(stub.url).error
    assert chat.saved() == [("hello", "Once more.", "done")]


def test_killed_backend_is_a_sentence_at_once_and_its_successor_answers(chat: Chat) -> None:
    port = launch.find_free_port()
    with real_backend(port) as server:
        assert chat.ask(server.url, "/echo first").text == "first"
        writing = chat.begin(server.url, "/echo" + " slow" * 10_000)
        wait_until(lambda: replies.look(writing).text)
        with timed(0, SOON_S):
            for process in server.processes():
                process.kill()
            assert writing.wait(DEADLINE_S)
    assert "broke off. Restart it if it is down" in replies.look(writing).error
    [first, (_, part, state)] = chat.saved()
    assert (part[:4], state) == ("slow", "failed")
    with real_backend(port) as server:
        chat.ask(server.url, "/echo second")
    assert chat.saved() == [first, ("/echo second", "second", "done")]


# Silence and drops


def test_sentence_comes_at_the_limit_when_nobody_speaks(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "0.5")
    limit_s = 0.5 + remote.ANSWER_GRACE_S
    with serve(hold) as stub:
        with timed(limit_s - 0.1, limit_s + SLACK_S):
            view = chat.ask(stub.url)
        assert stub.asked[0].left.wait(SOON_S)
    assert f"had not finished its reply within {limit_s:g} s" in view.error
    assert "raise CHATBOT_REPLY_TIMEOUT_S" in view.error
    assert len(stub.asked) == 1
    assert chat.saved() == []


def test_stopped_process_is_a_sentence_at_the_limit_and_answers_when_it_goes_on(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_GRACE_S", 0.5)
    with real_backend(launch.find_free_port()) as server:
        monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "3.5")
        with timed(3.9, 4 + SLACK_S):
            writing = chat.begin(server.url, "/echo" + " slow" * 10_000)
            wait_until(lambda: replies.look(writing).text)
            [process] = server.processes()
            process.send_signal(signal.SIGSTOP)
            assert writing.wait(DEADLINE_S)
        view = replies.look(writing)
        assert "had not finished its reply within 4 s" in view.error
        assert chat.saved()[0][1:] == (view.text, "failed")
        monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "0.5")
        with timed(0.9, 1 + SLACK_S):
            assert "within 1 s" in chat.ask(server.url, "/echo back").error
        process.send_signal(signal.SIGCONT)
        monkeypatch.delenv("CHATBOT_REPLY_TIMEOUT_S")
        assert chat.ask(server.url, "/echo back").text == "back"
    assert chat.saved() == [("/echo back", "back", "done")]


DRIPS = {
    "status": [drip(b"", b"HTTP/1.1 200 OK\r\nX-Padding: a")],
    "headers": [drip(EVENTS_HEAD[:-2], b"X-Padding: a")],
    "events": [drip(EVENTS_HEAD, b": a")],
    "token": [drip(EVENTS_HEAD + token("Once"), b'event: token\ndata: {"text": "a')],
    "error": [drip(JSON_HEAD.replace(b"200 OK", b"500 No"), b"a")],
    "article": [NOT_THERE, drip(JSON_HEAD, b'"a')],
}


@pytest.mark.parametrize("scripts", DRIPS.values(), ids=DRIPS)
def test_limit_holds_for_the_whole_reply_when_it_comes_in_drops(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, scripts: list[Script]
) -> None:
    monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "0.5")
    monkeypatch.setattr(remote, "ANSWER_GRACE_S", 0.5)
    with serve(*scripts) as stub:
        with timed(0.9, 1 + SLACK_S):
            view = chat.ask(stub.url)
        assert stub.asked[-1].left.wait(SOON_S)
    assert "had not finished its reply within 1 s" in view.error
    assert len(stub.asked) == len(scripts)


# Errors

ERRORS = {
    "500-text": (answer(500, "Internal Server Error", "text/plain"), "500 Internal Server Error"),
    "502-html": (answer(502, "<html>Bad gateway</html>", "text/html"), "502 Bad Gateway"),
    "422-list": (answer(422, '{"detail": [{"msg": "?"}]}'), "422 Unprocessable"),
    "422": (answer(422, '{"detail": "Too long: 9 of 8."}'), "Too long: 9 of 8."),
    "429": (answer(429, '{"detail": "Full."}'), "Full."),
    "503": (answer(503, '{"detail": "It died."}'), "It died."),
    "500": (answer(500, '{"detail": "This reply failed."}'), "This reply failed."),
    "503-date": (answer(503, '{"detail": "Later."}', Retry_After="Sat, 1 Jan 2050"), "Later."),
    "500-again": (answer(500, '{"detail": "No."}', Retry_After="1"), "No."),
    "400-null": (answer(400, "null"), "400 Bad Request"),
    "500-empty": (answer(500, ""), "500 Internal Server Error"),
    "307": (answer(307, "", Location="/chat"), "307 Temporary Redirect"),
    "204": (answer(204, ""), "204 No Content"),
    "413": (answer(413, "Content Too Large", "text/plain"), "413 "),
    "500-long": (answer(500, json.dumps({"detail": "No. " * 100_000})), "The backend at http://"),
}


@pytest.mark.parametrize("after", [[], [NOT_THERE]], ids=["stream", "article"])
@pytest.mark.parametrize(("script", "sentence"), ERRORS.values(), ids=ERRORS)
def test_error_is_a_sentence_and_changes_nothing(
    chat: Chat, after: list[Script], script: Script, sentence: str
) -> None:
    with serve(stream(token("Hi."), DONE), *after, script) as stub:
        chat.ask(stub.url, "hi")
        view = chat.ask(stub.url)
    assert sentence in view.error
    assert "html" not in view.error
    assert len(view.error) < 1000
    assert len(stub.asked) == 2 + len(after)
    assert chat.saved() == [("hi", "Hi.", "done")]
    assert chat.kept.load(chat.key).draft == "hello"


@pytest.mark.parametrize("status", [429, 503])
def test_answer_that_says_when_to_come_back_is_asked_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.3)
    busy = answer(status, '{"detail": "Still loading."}', Retry_After="2")
    with serve(busy, busy, stream(token("Now."), DONE)) as stub:
        with timed(0.6, DEADLINE_S):
            writing = chat.begin(stub.url)
            wait_until(
                lambda: "Still loading. Trying again in 0.3 s" in replies.look(writing).status
            )
            assert writing.wait(DEADLINE_S)
        assert [caller.body["user_input"] for caller in stub.asked] == ["hello"] * 3
    assert chat.saved() == [("hello", "Now.", "done")]


def test_coming_back_has_an_end(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr(remote, "BUSY_UP_TO_S", 1.0)
    busy = answer(503, '{"detail": "Still loading."}', Retry_After="3600")
    with serve(busy) as stub, timed(0.3, 1 + SLACK_S):
        assert chat.ask(stub.url).error == "Still loading."
    assert 2 <= len(stub.asked) <= 4
    assert chat.saved() == []


def test_coming_back_has_an_end_when_told_to_come_at_once(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BUSY_UP_TO_S", 0.5)
    with serve(answer(503, '{"detail": "Still loading."}', Retry_After="0")) as stub:
        writing = chat.begin(stub.url)
        assert writing.wait(0.5 + SLACK_S)
    assert replies.look(writing).error == "Still loading."
    assert len(stub.asked) < 20


def test_coming_back_has_an_end_when_each_answer_is_slow(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr(remote, "BUSY_UP_TO_S", 1.0)
    busy = answer(503, '{"detail": "Still loading."}', Retry_After="1")

    def slowly(caller: Caller) -> None:
        caller.ending.wait(1.5)
        busy(caller)

    with serve(slowly) as stub:
        assert chat.ask(stub.url).error == "Still loading."
    assert len(stub.asked) <= 2


def test_nothing_is_asked_again_once_something_was_said(chat: Chat) -> None:
    seen = threading.Event()
    with serve(stream(token("Once "), seen, then=reset), stream(token("twice"), DONE)) as stub:
        writing = chat.begin(stub.url)
        wait_until(lambda: replies.look(writing).text)
        seen.set()
        assert writing.wait(DEADLINE_S)
    assert len(stub.asked) == 1
    assert chat.saved() == [("hello", "Once ", "failed")]


# Nonsense

NO_REPLY = "sent an invalid reply. Check its log, then ask again."
LONG_TEXT = json.dumps("a" * 5_000_000)
ODD_CONTENTS = {
    "null": answer(200, "null"),
    "number": answer(200, "7"),
    "object": answer(200, '{"reply": "Hi."}'),
    "list": answer(200, '["Hi."]'),
    "html": answer(200, "<html>Please log in</html>", "text/html"),
    "long": answer(200, LONG_TEXT),
    "empty": answer(200, ""),
    "cut": answer(200, '"Hi'),
    "not-utf-8": answer(200, b"\xff\xfe"),
    "events": answer(200, token("Hi.") + DONE, "text/plain"),
    "untyped": answer(200, token("Hi.") + DONE, ""),
    "deep": answer(200, "[" * 100_000),
    "bad-gzip": answer(200, "no gzip", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("after", [[], [NOT_THERE]], ids=["stream", "article"])
@pytest.mark.parametrize("script", ODD_CONTENTS.values(), ids=ODD_CONTENTS)
def test_content_that_is_no_reply_is_refused(
    chat: Chat, after: list[Script], script: Script
) -> None:
    with serve(*after, script) as stub:
        view = chat.ask(stub.url)
    assert NO_REPLY in view.error or "broke off" in view.error
    assert len(view.error) < 500
    assert (view.text, chat.saved()) == ("", [])
    assert len(stub.asked) == 1 + len(after)


def test_json_text_is_no_stream(chat: Chat) -> None:
    with serve(answer(200, '"Hi."')) as stub:
        assert NO_REPLY in chat.ask(stub.url).error


ODD_EVENTS = {
    "token-not-json": b"event: token\ndata: Hi.\n\n",
    "token-without-data": b"event: token\n\n",
    "token-null": event("token", None),
    "token-a-text": event("token", "Hi."),
    "token-a-list": event("token", ["Hi."]),
    "token-without-text": event("token", {}),
    "token-text-null": event("token", {"text": None}),
    "token-text-a-number": event("token", {"text": 7}),
    "token-text-a-list": event("token", {"text": ["Hi."]}),
    "token-deep": b"event: token\ndata: %b\n\n" % (b"[" * 100_000),
    "token-long": token("a" * 5_000_000),
    "waiting-null": event("waiting", None),
    "waiting-a-text": event("waiting", {"ahead": "many"}),
    "waiting-infinite": b'event: waiting\ndata: {"ahead": 1e999}\n\n',
    "waiting-without-end": b'event: waiting\ndata: {"ahead": %b}\n\n' % (b"9" * 5000),
    "done-null": event("done", None),
    "done-a-list": event("done", ["stop"]),
    "done-without-reason": event("done", {}),
    "done-reason-a-list": event("done", {"reason": ["stop"]}),
    "done-model-a-number": event("done", {"reason": "stop", "model": 7}),
    "done-tokens-a-text": event("done", {"reason": "stop", "reply_tokens": "many"}),
    "done-tokens-nan": event("done", {"reason": "stop", "reply_tokens": float("nan")}),
    "done-tokens-below-none": event("done", {"reason": "stop", "reply_tokens": -1}),
    "done-tokens-too-many": event("done", {"reason": "stop", "reply_tokens": 10**400}),
    "done-prompt-too-long": event("done", {"reason": "stop", "prompt_tokens": 10**400}),
    "done-turns-too-many": event("done", {"reason": "stop", "turns_left_out": 10**400}),
    "done-model-too-long": event("done", {"reason": "stop", "model": "m" * 100_000}),
    "done-engine-too-long": event("done", {"reason": "stop", "engine": "e" * 100_000}),
    "done-reason-too-long": event("done", {"reason": "s" * 100_000}),
    "error-null": event("error", None),
    "error-without-detail": event("error", {}),
    "error-detail-a-list": event("error", {"detail": ["No."]}),
    "error-detail-long": event("error", {"detail": "No. " * 100_000}),
}


@pytest.mark.parametrize("odd", ODD_EVENTS.values(), ids=ODD_EVENTS)
def test_odd_event_ends_the_reply_and_keeps_the_part(chat: Chat, odd: bytes) -> None:
    with serve(stream(token("Once "), odd, DONE, then=hold)) as stub:
        view = chat.ask(stub.url)
        assert stub.asked[0].left.wait(SOON_S)
    assert NO_REPLY in view.error
    assert len(stub.asked) == 1
    assert chat.saved() == [("hello", "Once ", "failed")]


ODDITIES = {
    "comment": b": still here\n\n",
    "unknown": event("mood", {"text": "good"}),
    "unnamed": b'data: {"text": "?"}\n\n',
    "unknown-not-json": b"event: mood\ndata: good\n\n",
    "without-data": b"event: mood\n\n",
    "identified": b"id: 7\nretry: 10\n\n",
    "blank": b"\n\n\r\n\r\n",
}


@pytest.mark.parametrize("odd", ODDITIES.values(), ids=ODDITIES)
def test_unknown_event_is_ignored(chat: Chat, odd: bytes) -> None:
    with serve(stream(odd, token("Once "), odd, token("more."), odd, DONE)) as stub:
        assert not chat.ask(stub.url).error
    assert chat.saved() == [("hello", "Once more.", "done")]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_events_are_read_whatever_their_line_ends(chat: Chat, ends: str) -> None:
    said = "👩🏽‍🚀 \u2028 \u0085 \r\n \x1c ."
    raw = f"event: token\ndata: {json.dumps({'text': said}, ensure_ascii=False)}\n\n".encode()
    with serve(stream((raw + DONE).replace(b"\n", ends.encode()))) as stub:
        assert chat.ask(stub.url).text == said


def test_stream_without_an_end_is_broken_off(chat: Chat) -> None:
    with serve(stream(token("Once "), token("upon "))) as stub:
        assert "broke off. Restart it if it is down" in chat.ask(stub.url).error
    assert chat.saved() == [("hello", "Once upon ", "failed")]


def test_error_in_mid_reply_is_its_sentence(chat: Chat) -> None:
    with serve(stream(token("Once "), event("error", {"detail": "The model failed."}))) as stub:
        assert chat.ask(stub.url).error == "The model failed."
    assert chat.saved() == [("hello", "Once ", "failed")]


def test_reply_without_a_word_is_a_reply(chat: Chat) -> None:
    with serve(stream(DONE)) as stub:
        assert not chat.ask(stub.url).error
    assert chat.saved() == [("hello", "", "done")]


def test_reply_that_never_ends_is_cut_and_can_still_be_saved_as_a_file(chat: Chat) -> None:
    with serve(stream(*[token("a" * 300_000)] * 10, then=hold)) as stub:
        assert NO_REPLY in chat.ask(stub.url).error
        assert stub.asked[0].left.wait(SOON_S)
    [(_, said, state)] = chat.saved()
    assert (set(said), state) == ({"a"}, "failed")
    assert 300_000 <= len(said) <= remote.MAX_REPLY_CHARS
    conversation = chat.kept.load(chat.key)
    assert files.conversation_json(conversation)


def test_waiting_in_line_is_told_until_the_first_word(chat: Chat) -> None:
    seen, said = threading.Event(), threading.Event()
    ahead = [event("waiting", {"ahead": 3}), seen, event("waiting", {"ahead": 0})]
    with serve(stream(*ahead, said, token("Now."), DONE)) as stub:
        writing = chat.begin(stub.url)
        wait_until(lambda: "busy. Requests ahead of yours: 3" in replies.look(writing).status)
        seen.set()
        wait_until(lambda: "busy. Requests ahead of yours: 0" in replies.look(writing).status)
        said.set()
        assert writing.wait(DEADLINE_S)
    assert replies.look(writing).status == ""
    assert chat.saved() == [("hello", "Now.", "done")]


# An article's backend, and what is asked of either


def test_article_s_backend_is_asked_on_its_own_route(chat: Chat) -> None:
    whole = answer(200, '"Hi\\n\\ud83d\\ude00"', X_Turns_Left_Out="3")
    options = protocol.Options(
        system_prompt="Be brief.", temperature=0.5, top_p=0.9, max_new_tokens=7
    )
    with serve(stream(token("Hi."), DONE), NOT_THERE, whole) as stub:
        chat.ask(stub.url, "hi")
        chat.ask(stub.url, "hello", options)
    past = {"past_user_inputs": ["hi"], "generated_responses": ["Hi."], "user_input": "hello"}
    chosen = {"system_prompt": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7}
    assert [(caller.path, caller.body) for caller in stub.asked[1:]] == [
        ("/chat/stream", past | {"options": chosen}),
        ("/chat", past),
    ]
    assert chat.saved()[1] == ("hello", "Hi\n😀", "done")
    assert chat.turns()[1].facts["turns_left_out"] == 3


@pytest.mark.parametrize("known", ["", "many", "-1", "1.5", "9" * 5000])
def test_article_s_reply_counts_when_its_header_does_not(chat: Chat, known: str) -> None:
    whole = answer(200, '"Hi."', X_Turns_Left_Out=known)
    with serve(answer(405, "{}"), whole) as stub:
        assert not chat.ask(stub.url).error
    assert chat.saved() == [("hello", "Hi.", "done")]


# Proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_backend_on_this_machine_is_asked_directly(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    ready = answer(200, '{"model": "a model", "engine": "a stub"}')
    with closed_port() as dead, serve(stream(token("Hi."), DONE), ready=ready) as stub:
        monkeypatch.setenv(name, dead)
        assert chat.ask(stub.url.replace("127.0.0.1", host)).text == "Hi."
        assert str(frontend.describe_model()) == "a model on a stub"


def test_backend_elsewhere_is_asked_through_the_proxy(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(stream(token("Hi."), DONE)) as stub:
        monkeypatch.setenv("HTTP_PROXY", stub.url)
        assert chat.ask("http://backend.example:8000").text == "Hi."
    assert stub.asked[0].path == "http://backend.example:8000/chat/stream"


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://me:{SECRET}/{SECRET}@proxy.example",
        f"http://me:{SECRET}\x01@proxy.example",
        f"ftp://me:{SECRET}@proxy.example",
        f"socks9://me:{SECRET}@proxy.example",
    ],
    ids=["port", "control", "ftp", "socks9"],
)
def test_proxy_that_is_none_is_a_sentence_without_its_password(
    page: Callable[[str], AppTest], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    opened = ask_page(page("http://backend.example:8000"), "hello")
    assert not opened.exception
    assert "HTTP_PROXY" in opened.error[0].value
    assert opened.chat_input[0].proto.value == "hello"
    assert SECRET not in seen_on(opened)


# Passwords


def seen_on(page: AppTest) -> str:
    """Return every text of a page that a visitor may read."""
    elements = (*page.error, *page.warning, *page.caption, *page.markdown, *page.sidebar.caption)
    failed = [each.message for each in page.exception]
    return "\n".join([*failed, *(each.value for each in elements)])


SECRETIVE_FAULTS = {
    "refused": None,
    "error": answer(500, "Internal Server Error", "text/plain"),
    "key": answer(401, '{"detail": "No."}'),
    "null": answer(200, "null"),
    "long": answer(200, LONG_TEXT),
    "nonsense": stream(event("token", "Hi.")),
    "article": NOT_THERE,
    "broken-off": stream(token("Once "), then=reset),
    "hanging": hold,
}


@pytest.mark.parametrize("fault", SECRETIVE_FAULTS.values(), ids=SECRETIVE_FAULTS)
def test_password_in_the_address_is_sent_and_never_shown(
    page: Callable[[str], AppTest],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Script | None,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "0.1")
    with contextlib.ExitStack() as opened:
        stub = opened.enter_context(serve(fault, ready=fault)) if fault else None
        url = stub.url if stub else opened.enter_context(closed_port())
        shown = ask_page(page(url.replace("http://", f"http://me:%2F{SECRET}@")), "hello")
        assert "backend" in shown.error[0].value
        assert not shown.exception
        assert SECRET not in seen_on(shown) + caplog.text
        if stub:
            login = base64.b64encode(f"me:/{SECRET}".encode()).decode()
            assert f"\r\nAuthorization: Basic {login}" in stub.asked[0].head


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@127.0.0.1:port",
        f"ftp://me:{SECRET}@127.0.0.1",
        f"me:{SECRET}@127.0.0.1",
        f"http://127.0.0.1/?token={SECRET}",
        f"http://127.0.0.1/#{SECRET}",
        f"http://me:12/{SECRET}@127.0.0.1",
    ],
    ids=["port", "ftp", "no-scheme", "query", "fragment", "slash"],
)
def test_address_that_cannot_be_used_is_not_shown(
    page: Callable[[str], AppTest], address: str
) -> None:
    opened = page(address)
    assert not opened.exception
    assert opened.error[0].value.startswith("CHATBOT_BACKEND_URL=...: ")
    assert SECRET not in seen_on(opened)


def test_settings_can_be_printed_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_URL", f"http://me:{SECRET}@127.0.0.1")
    monkeypatch.setenv("CHATBOT_DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1/chats")
    monkeypatch.setenv("CHATBOT_API_KEY", SECRET)
    choice = settings.read_settings()
    assert SECRET not in f"{choice} {choice!r} {choice.backend_url}"


# Stopping


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when the front end begins to ask."""
    begun, ask_once = threading.Event(), remote.ask_once

    async def marked(*asked: object) -> protocol.Facts:
        begun.set()
        return await ask_once(*asked)

    monkeypatch.setattr(remote, "ask_once", marked)
    return begun


@LINUX
def test_stop_while_connecting_ends_soon(chat: Chat, asking: threading.Event) -> None:
    with full_port() as url:
        writing = chat.begin(url)
        assert asking.wait(DEADLINE_S)
        with timed(0, remote.CONNECT_TIMEOUT_S / 2):
            writing.stop.set()
            assert writing.wait(DEADLINE_S)
    assert (replies.look(writing).error, chat.saved()) == ("", [])


STOPPED = {
    "hanging": ([hold], ""),
    "head": ([drip(b"", b"HTTP/1.1 200 OK\r\nX-Padding: a")], ""),
    "headers": ([drip(EVENTS_HEAD[:-2], b"X-Padding: a")], ""),
    "events": ([drip(EVENTS_HEAD + token("Once "), b": a")], "Once "),
    "silent": ([stream(token("Once "), then=hold)], "Once "),
    "waiting": ([stream(event("waiting", {"ahead": 7}), then=hold)], ""),
    "article": ([NOT_THERE, hold], ""),
}


@pytest.mark.parametrize(("scripts", "said"), STOPPED.values(), ids=STOPPED)
def test_stop_ends_soon_and_the_backend_sees_it(
    chat: Chat, scripts: list[Script], said: str
) -> None:
    with serve(*scripts) as stub:
        writing = chat.begin(stub.url)
        wait_until(lambda: len(stub.asked) == len(scripts) and replies.look(writing).text == said)
        assert not stub.asked[-1].left.is_set()
        with timed(0, SOON_S):
            writing.stop.set()
            assert writing.wait(DEADLINE_S)
        assert stub.asked[-1].left.wait(SOON_S)
        assert replies.look(writing).error == ""
    assert chat.saved() == ([("hello", said, "stopped")] if said else [])
    assert len(stub.asked) == len(scripts)


def test_stop_while_waiting_to_come_back_ends_soon(chat: Chat) -> None:
    with serve(answer(503, '{"detail": "Still loading."}', Retry_After="5")) as stub:
        writing = chat.begin(stub.url)
        wait_until(lambda: "Trying again in 5 s" in replies.look(writing).status)
        with timed(0, SOON_S):
            writing.stop.set()
            assert writing.wait(DEADLINE_S)
    assert len(stub.asked) == 1
    assert (replies.look(writing).error, chat.saved()) == ("", [])


# Which model it holds

ODD_DESCRIPTIONS = {
    name: script for name, script in ODD_CONTENTS.items() if name not in ("events", "untyped")
} | {
    "no-engine": answer(200, '{"model": "a model"}'),
    "error": answer(500, "Internal Server Error", "text/plain"),
    "hanging": hold,
    "dripping": drip(JSON_HEAD, b'{"model": "a'),
}


@pytest.mark.parametrize("ready", ODD_DESCRIPTIONS.values(), ids=ODD_DESCRIPTIONS)
def test_odd_description_is_a_sentence_soon(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, ready: Script
) -> None:
    with ThreadPoolExecutor(1) as pool, serve(ready=ready) as stub:
        monkeypatch.setenv("CHATBOT_BACKEND_URL", stub.url)
        described = pool.submit(sidebar.describe_model, frontend.describe_model)
        said, look_again = described.result(remote.DESCRIBE_TIMEOUT_S + SLACK_S)
    assert stub.url in said
    assert "Traceback" not in said
    assert look_again


def test_backend_that_does_not_describe_itself_is_not_asked_again_and_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(ready=answer(404, '{"detail": "Not Found"}')) as stub:
        monkeypatch.setenv("CHATBOT_BACKEND_URL", stub.url)
        said, look_again = sidebar.describe_model(frontend.describe_model)
    assert ("does not report its model" in said, look_again) == (True, False)


def test_certificates_that_are_not_there_are_a_sentence(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    remote.trusted.cache_clear()
    with serve(stream(token("Hi."), DONE)) as stub:
        assert "SSL_CERT_FILE" in chat.ask(stub.url).error
        assert not stub.asked


# The page


@pytest.fixture
def page(chat: Chat) -> Iterator[Callable[[str], AppTest]]:
    """Yield what opens the front end's page for a backend; no reply outlives the test."""
    opened: list[AppTest] = []

    def open_page(url: str) -> AppTest:
        chat.monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        st.cache_resource.clear()
        opened.append(AppTest.from_file(FRONTEND, default_timeout=DEADLINE_S).run())
        return opened[-1]

    yield open_page
    for each in opened:
        if "conversation_id" not in each.session_state:
            continue  # it could not be drawn
        if writing := replies.find(each.session_state.conversation_id):
            writing.stop.set()
            assert writing.wait(DEADLINE_S)


def ask_page(page: AppTest, question: str) -> AppTest:
    """Ask, wait for the reply, and return the page at the first run that shows its end."""
    page.chat_input[0].set_value(question).run()
    writing = replies.find(page.session_state.conversation_id)
    assert writing.wait(DEADLINE_S)
    state = page.session_state
    collected = state["collected"] if "collected" in state else ""  # noqa: SIM401
    return page if collected == writing.turn.id else page.run()


def expect_put_back(page: AppTest, sentence: str, question: str, questions: list[str]) -> None:
    """Check that the page says a sentence, puts the question back, and holds these turns."""
    [error] = page.error
    assert sentence in error.value
    assert page.chat_input[0].proto.value == question
    history = page.session_state.conversation_history
    assert history["past_user_inputs"] == questions
    assert len(history["generated_responses"]) == len(questions)
    assert not page.exception


def test_page_puts_the_question_back_when_no_backend_is_there(
    page: Callable[[str], AppTest],
) -> None:
    with closed_port() as url:
        opened = page(url)
        for _ in range(2):
            expect_put_back(ask_page(opened, "hello"), f"No backend answers at {url}", "hello", [])


def test_page_goes_on_after_each_fault(page: Callable[[str], AppTest]) -> None:
    seen = threading.Event()
    faults = [
        answer(500, "Internal Server Error", "text/plain"),
        answer(422, '{"detail": "Too long."}'),
        answer(200, "null"),
        stream(token("Once "), seen, then=reset),
    ]
    sentences = [
        "answered 500",
        "Too long.",
        "sent an invalid reply",
        "broke off. Restart it if it is down",
    ]
    fine = [stream(token(f"reply {number}"), DONE) for number in (1, 2)]
    seen.set()
    with serve(fine[0], *faults, fine[1]) as stub:
        opened = ask_page(page(stub.url), "first")
        for sentence in sentences:
            expect_put_back(ask_page(opened, "second"), sentence, "second", ["first"])
        assert turns.BROKEN_OFF in [each.value for each in opened.main.caption]
        ask_page(opened, "second")
    assert not opened.error
    assert opened.session_state.conversation_history == {
        "past_user_inputs": ["first", "second"],
        "generated_responses": ["reply 1", "reply 2"],
    }
    asked = [caller.body for caller in stub.asked]
    assert all(body["past_user_inputs"] == ["first"] for body in asked[1:])
    assert all(body["generated_responses"] == ["reply 1"] for body in asked[1:])


def test_page_of_an_odd_reply_can_be_opened_again(page: Callable[[str], AppTest]) -> None:
    odd = {"reason": "stop", "model": "a model", "reply_tokens": "many", "turns_left_out": [1]}
    with serve(stream(token("Hi\ud800."), event("done", odd))) as stub:
        opened = ask_page(page(stub.url), "hello")
        assert not opened.exception
        assert not opened.run().exception


# A slow reader


class LavishEngine(protocol.FakeEngine):
    """Answer "much" with more than any buffer holds, as fast as it is taken."""

    pieces = 5_000

    def __init__(self) -> None:
        super().__init__(token_s=0)
        self.said = 0
        self.ended = threading.Event()

    def stream(
        self, conversation: list, options: protocol.Options, stop: threading.Event
    ) -> protocol.Pieces:
        if conversation[-1]["content"] != "much":
            return (yield from super().stream(conversation, options, stop))
        try:
            for _ in range(self.pieces):
                if stop.is_set():
                    break
                self.said += 1
                yield "much" * 1_000
            return protocol.Facts("stop", prompt_tokens=1, reply_tokens=self.said)
        finally:
            self.ended.set()


@contextmanager
def slow_reader(url: str, question: str) -> Iterator[None]:
    """Ask the backend, and read nothing of what it answers."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"user_input": question})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        head = f"POST /chat/stream HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
        slow.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        yield


@pytest.fixture
def lavish(monkeypatch: pytest.MonkeyPatch) -> Iterator[LavishEngine]:
    """Put a lavish engine in the place of whatever the settings choose; let no cycle be freed.

    What a request held must come back when it ends, not when Python happens to clean up.
    """
    held = LavishEngine()
    monkeypatch.setattr(local, "load_engine", lambda choice, report=None: held)
    gc.disable()
    yield held
    gc.enable()


def test_client_that_does_not_read_blocks_nobody_and_fills_no_memory(
    chat: Chat, lavish: LavishEngine
) -> None:
    with serve_backend() as url:
        with slow_reader(url, "much"):
            wait_until(lambda: lavish.said > 10)
            for number in range(3):
                with timed(0, SOON_S):
                    chat.ask(url, f"/echo {number}")
            with timed(0, SOON_S):
                assert httpx.get(url, trust_env=False).json() == {"status": "OK!"}
            assert not lavish.ended.is_set()
        assert lavish.ended.wait(SOON_S)
        assert lavish.said < lavish.pieces
    assert [reply for _, reply, _ in chat.saved()] == ["0", "1", "2"]


def test_client_that_leaves_without_reading_gives_its_place_back(
    chat: Chat, lavish: LavishEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_MAX_REPLIES", "1")
    with serve_backend() as url:
        with slow_reader(url, "much"):
            wait_until(lambda: lavish.said > 10)
            writing = chat.begin(url, "/echo at last")
            wait_until(lambda: "Requests ahead of yours: 0" in replies.look(writing).status)
        assert writing.wait(SOON_S)
    assert chat.saved() == [("/echo at last", "at last", "done")]


def test_stopped_reply_gives_its_place_back(
    chat: Chat, lavish: LavishEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_MAX_REPLIES", "1")
    lavish.token_s = 0.01
    with serve_backend() as url:
        for number in range(3):
            writing = chat.begin(url, "/echo" + f" {number}" * 10_000)
            wait_until(lambda writing=writing: replies.look(writing).text, SOON_S)
            writing.stop.set()
            assert writing.wait(SOON_S)
        assert chat.begin(url, "/echo at last").wait(SOON_S)
    assert [state for _, _, state in chat.saved()] == ["stopped"] * 3 + ["done"]


# A locale without UTF-8

NARROW = {
    "c": {"LC_ALL": "C"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
}
WIDE_TEXT = "👩🏽‍🚀 שלום é \u2028 \u0085 „ß“"
ASK_PAGE = """
import json, sys
from streamlit.testing.v1 import AppTest
import chatbot_arch.page.files as files, chatbot_arch.page.replies as replies
page = AppTest.from_file(sys.argv[1], default_timeout=60).run()
page.chat_input[0].set_value("/echo " + json.loads(sys.argv[2])).run()
assert replies.find(page.session_state.conversation_id).wait(60)
page.run()
conversation = page.session_state.conversation
written = files.conversation_json(conversation).encode()
opened = files.read_conversation(written, "me").turns[0].reply
seen = page.session_state.conversation_history["generated_responses"]
print(json.dumps([sys.getfilesystemencoding(), *seen, opened, [e.value for e in page.error]]))
"""


@pytest.mark.parametrize("narrow", NARROW.values(), ids=NARROW)
def test_emoji_survive_a_locale_that_knows_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, narrow: dict[str, str]
) -> None:
    monkeypatch.setenv("CHATBOT_ENGINE", "fake")
    with serve_backend() as url:
        environment = os.environ | narrow
        environment["CHATBOT_BACKEND_URL"] = url
        environment["CHATBOT_DATABASE_URL"] = f"sqlite:///{tmp_path / 'chats.db'}"
        command = [sys.executable, "-c", ASK_PAGE, str(FRONTEND), json.dumps(WIDE_TEXT)]
        asked = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert asked.returncode == 0, asked.stderr.decode(errors="replace")
    encoding, seen, opened, errors = json.loads(asked.stdout.splitlines()[-1])
    assert (seen, opened, errors) == (WIDE_TEXT, WIDE_TEXT, [])
    if "PYTHONCOERCECLOCALE" in narrow:
        assert encoding != "utf-8"

"""What a body can cost: work is bounded before it is done, and memory is given back."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
from conftest import FAKE, serve_backend
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.measure.launch as launch
import chatbot_arch.service.openai_api as openai_api
import chatbot_arch.service.problems as problems
import chatbot_arch.settings as settings

DEADLINE_S = 60
JSON = {"content-type": "application/json"}
MOST = 7_900_000  # bytes: close to the largest body
MORE_MB = 150  # that any of this may take
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MODEL = protocol.FakeEngine.model
CODE = "def f(x):\n    return {'a': [1, \"b\\n\"], **x}  # so: one, two\n"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chat_of(content: object, count: int, **more: object) -> bytes:
    """Return a request for a chat completion with as many messages of one content."""
    messages = [{"role": "user", "content": content}] * count
    return json.dumps({"model": MODEL, "messages": messages} | more).encode()


def keys(count: int) -> bytes:
    """Return the inside of an object of as many fields that nobody knows."""
    return b",".join(b'"%06d":1' % number for number in range(count))


# The work


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the backend from a thread of this process."""
    speaker = protocol.FakeEngine(token_s=0)
    monkeypatch.setattr(local, "load_engine", lambda choice, report: speaker)
    with serve_backend() as address:
        backend.app.state.answerer.loading.engine.result(timeout=DEADLINE_S)
        yield address


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many errors were collected for each refused request from now on."""
    counts, find = [], problems.find_errors

    def count(error: RequestValidationError) -> list[problems.FieldError]:
        counts.append(len(error.errors()))
        return find(error)

    monkeypatch.setattr(problems, "find_errors", count)
    return counts


MANY = {
    "parts": ("/v1/chat/completions", chat_of([{}] * 100, 2000), "more than 50000 values"),
    "some-parts": ("/v1/chat/completions", chat_of([{}] * 100, 200), "messages[0].content[0]"),
    "messages": ("/v1/chat/completions", chat_of(7, 2000), "messages[0].content "),
    "keys": ("/chat", b"{" + keys(700_000) + b"}", "more than 50000 values"),
    "some-keys": ("/chat", b"{" + keys(20_000) + b"}", "more than 300 fields"),
    "keys-inside": (
        "/v1/chat/completions",
        b'{"messages":[{"role":"user",' + keys(20_000) + b"}]}",
        "more than 300 fields",
    ),
    "turns": (
        "/chat",
        json.dumps({"user_input": "hi", "past_user_inputs": [7] * 1000}).encode(),
        "past_user_inputs[0] ",
    ),
    "stops": ("/v1/chat/completions", chat_of("hi", 1, stop=[7] * 20_000), "stop"),
    "objects": ("/chat", b'{"user_input":[' + b"{}," * 900_000 + b"{}]}", "more than 50000"),
    "texts": ("/chat", b'{"user_input":[' + b'"",' * 900_000 + b'""]}', "more than 50000"),
    "quotes": ("/chat", b'{"user_input":' + b'"' * 900_000 + b"}", "more than 50000"),
    "wide": (
        "/chat",
        ('{"user_input":[' + "1," * 90_000 + "1]}").encode("utf-16"),
        "more than 50000",
    ),
}


@pytest.mark.parametrize(("path", "body", "says"), MANY.values(), ids=MANY)
def test_many_mistakes_cost_as_little_as_few(
    url: str, collected: list[int], path: str, body: bytes, says: str
) -> None:
    told = httpx.post(f"{url}{path}", content=body, headers=JSON, timeout=DEADLINE_S)
    assert told.status_code == (400 if path.startswith("/v1") else 422)
    assert says in told.text
    assert len(told.content) < 2000
    assert max(collected) <= 10


@pytest.mark.parametrize("levels", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_body_is_refused(url: str, opening: bytes, levels: int) -> None:
    body = b'{"user_input": "hi", "options": ' + opening * levels
    told = httpx.post(f"{url}/chat", content=body, headers=JSON, timeout=DEADLINE_S)
    assert told.status_code == (400 if opening == b"[" or levels < 50_000 else 422)


def lists_in(schema: object) -> Iterator[dict[str, Any]]:
    """Yield the lists in a schema of pydantic's core, at any depth."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "set", "tuple"):
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from lists_in(each)


@pytest.mark.parametrize(
    "body",
    [backend.ConversationHistory, openai_api.ChatCompletionRequest],
    ids=lambda b: b.__name__,
)
def test_every_list_of_a_body_has_a_limit_and_ends_at_its_first_mistake(body: type) -> None:
    found = list(lists_in(TypeAdapter(body).core_schema))
    assert found
    assert all(each.get("fail_fast") and each.get("max_length") for each in found)


def test_every_body_is_read_by_the_route_that_bounds_it() -> None:
    apart = backend.router, openai_api.router  # which an app includes as they are
    routes = [each for router in (backend.app.router, *apart) for each in router.routes]
    read = [each for each in routes if isinstance(each, APIRoute) and each.body_field]
    assert len(read) >= 3
    assert {type(each).__name__ for each in read} == {"BodyRoute"}


def test_largest_conversations_are_taken(url: str) -> None:
    turns = [CODE * 60] * 1000  # full of what would be counted outside of a text
    past = {"past_user_inputs": turns, "generated_responses": turns}
    body = json.dumps(past | {"user_input": "/echo hi"}).encode()
    assert MOST * 0.95 < len(body) < 8e6
    told = httpx.post(f"{url}/chat", content=body, headers=JSON, timeout=DEADLINE_S)
    assert told.json() == "hi"
    parts = chat_of([{"type": "text", "text": "/echo hi " + CODE}], 2000)
    told = httpx.post(f"{url}/v1/chat/completions", content=parts, headers=JSON, timeout=DEADLINE_S)
    assert told.status_code == 200


def test_service_answers_while_a_body_is_checked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checking, go_on = threading.Event(), threading.Event()

    def is_blank(text: str) -> bool:
        checking.set()
        return not go_on.wait(DEADLINE_S)

    monkeypatch.setattr(problems, "is_blank", is_blank)
    with ThreadPoolExecutor(1) as pool:
        body = {"content": chat_of("/echo hi", 1), "headers": JSON, "timeout": 2 * DEADLINE_S}
        asked = pool.submit(httpx.post, f"{url}/v1/chat/completions", **body)
        try:
            assert checking.wait(DEADLINE_S)
            assert httpx.get(url, timeout=10).status_code == 200
            assert not asked.done()
        finally:
            go_on.set()
        assert asked.result().status_code == 200


# The memory


class Backend:
    """A backend in a process of its own, and clients that leave it at the test's end."""

    def __init__(self, server: launch.Server, clients: ExitStack) -> None:
        self.server, self.url, self._clients = server, server.url, clients
        [self.process] = server.processes()
        self.began_mb = self.memory_mb()

    def memory_mb(self) -> float:
        return self.process.memory_info().rss / 1e6

    def post(self, content: bytes, path: str = "/chat", kind: str = JSON["content-type"]) -> Any:
        headers = {"content-type": kind}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=DEADLINE_S)

    def send(self, body: bytes, size: int) -> socket.socket:
        """Announce a body of some size; once it is awaited, send this much of it."""
        host, port = self.url.removeprefix("http://").split(":")
        sender = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self._clients.enter_context(sender)
        head = f"POST /chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Expect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
        sender.sendall(head.encode())
        assert sender.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        sender.sendall(body)
        return sender


@pytest.fixture
def run() -> Iterator[Callable[..., Backend]]:
    """Return what runs a backend with settings; it ends with the test."""
    with ExitStack() as running:

        def start(**choices: object) -> Backend:
            named = {f"CHATBOT_{name.upper()}": str(value) for name, value in choices.items()}
            port = launch.find_free_port()
            url, command = f"http://{launch.HOST}:{port}", launch.backend_command(port)
            server = launch.start_server("backend", command, url, "/ready", FAKE | named)
            running.callback(launch.stop_server, server)
            launch.wait_until_ready(server, DEADLINE_S)
            return Backend(server, running.enter_context(ExitStack()))

        yield start


REFUSED = {
    "cut": (b'{"user_input": "' + b"x" * MOST, "application/json", 422),
    "no-end": (b'{"user_input": "' + b"x" * MOST + b'"', "application/json", 422),
    "utf8": (b'{"user_input": "' + b"x" * MOST + b'\xff"}', "application/json", 400),
    "wrong": (b'{"user_input": ["' + b"x" * MOST + b'"]}', "application/json", 422),
    "too-long": (b'{"user_input": "' + b"x" * MOST + b'"}', "application/json", 422),
    "values": (b'{"user_input": [' + b"{}," * 2_600_000 + b"{}]}", "application/json", 422),
    "fields": (b'{"a":"' + b"x" * MOST + b'",' + keys(400) + b"}", "application/json", 422),
    "no-json": (b'{"user_input": "' + b"x" * MOST + b'"}', "text/plain", 422),
}


def test_refused_bodies_are_freed(run: Callable[..., Backend]) -> None:
    running = run()
    for body, kind, status in REFUSED.values():
        for _ in range(12):
            assert running.post(body, kind=kind).status_code == status
    assert running.memory_mb() - running.began_mb < MORE_MB


def test_accepted_bodies_are_freed(run: Callable[..., Backend]) -> None:
    running = run(fake_token_s=0)
    chat, path = chat_of("/echo " + "x" * 90_000, 83), "/v1/chat/completions"
    nobody = chat.replace(MODEL.encode(), b"nobody")
    for _ in range(20):
        assert running.post(nobody, path).status_code == 404
        assert running.post(chat, path).status_code == 200
    assert running.memory_mb() - running.began_mb < MORE_MB


def test_large_head_is_refused_and_not_kept(run: Callable[..., Backend]) -> None:
    running = run()
    for number in range(40):
        name = f"{number}" + "x" * 4_000_000
        told = httpx.get(running.url, headers={"Host": name}, timeout=DEADLINE_S)
        assert told.status_code == 431
        assert '"code":"head_too_large"' in told.text
        assert len(told.content) < 2000
    assert httpx.get(f"{running.url}?{'x' * 64_000}").status_code == 431
    assert running.memory_mb() - running.began_mb < MORE_MB


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_bodies_mb", "inf", "finite"),
        ("max_body_mb", "inf", "finite"),
        ("max_bodies_mb", "7.5", "at least CHATBOT_MAX_BODY_MB, 8"),
        ("max_body_mb", "64", "at least CHATBOT_MAX_BODY_MB, 64"),
    ],
)
def test_room_that_no_body_or_any_body_fits_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"CHATBOT_{name.upper()}", value)
    with pytest.raises(settings.SettingsError, match=says):
        settings.read_settings()


# The time


def status_of(answered: socket.socket) -> tuple[int, str]:
    """Return an answer's status and its text, read to the end of the connection."""
    told = answered.makefile("rb").read().decode()
    return int(told.split()[1]), told


def test_body_has_a_deadline(run: Callable[..., Backend]) -> None:
    running = run(body_timeout_s=0.5)
    halves = [running.send(b'{"user_input": ', size) for size in (100, 7_000_000)]
    halves += [running.send(b"", 100), running.send(b"x" * 500_000, 7_000_000)]
    dripping, stop = running.send(b"", 100_000), threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            try:
                dripping.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        for each in halves:
            status, told = status_of(each)  # and then the connection is closed
            assert status == 408
            assert "did not arrive within 0.5 s" in told
            assert '"code":"request_timeout"' in told
        assert dripping.recv(12) == b"HTTP/1.1 408"
    finally:
        stop.set()
        thread.join(DEADLINE_S)
    assert running.post(b'{"user_input": "/echo hi"}').json() == "hi"


def test_bodies_under_way_have_so_many_bytes_together(run: Callable[..., Backend]) -> None:
    running = run(max_bodies_mb=16, body_timeout_s=10 * DEADLINE_S)
    with ThreadPoolExecutor(10) as pool:
        halves = list(pool.map(lambda _: running.send(b"[" + b" " * MOST, 8_000_000), range(10)))
    for each in halves:
        each.setblocking(False)
    refused: list[str] = []

    def count() -> int:
        for each in halves:
            with suppress(BlockingIOError):
                refused.append(each.recv(4000).decode())
        return len([told for told in refused if told])

    wait_until(lambda: count() == 8)
    assert all("HTTP/1.1 429" in told and "retry-after" in told for told in refused if told)
    assert running.memory_mb() - running.began_mb < MORE_MB
    assert running.post(b'{"user_input": "/echo hi"}').json() == "hi"  # small ones have room
    large = b'{"user_input": "/echo hi"' + b" " * 1_000_000 + b"}"
    assert running.post(large).status_code == 429
    for each in halves:
        each.close()
    wait_until(lambda: running.post(large).status_code == 200)


@contextmanager
def half_bodies(running: Backend, count: int) -> Iterator[list[socket.socket]]:
    """Hold as many bodies open, each nearly there."""
    with ThreadPoolExecutor(4) as pool:
        yield list(pool.map(lambda _: running.send(b"[" + b" " * MOST, 8_000_000), range(count)))


def test_half_bodies_take_little_and_do_not_hold_up_the_end(run: Callable[..., Backend]) -> None:
    running = run(body_timeout_s=10 * DEADLINE_S, ending_timeout_s=10 * DEADLINE_S)
    with half_bodies(running, 60) as halves:
        assert running.memory_mb() - running.began_mb < MORE_MB
        assert running.post(b'{"user_input": "/echo hi"}').json() == "hi"
        running.process.send_signal(signal.SIGTERM)
        assert running.server.process.wait(DEADLINE_S) == 0  # with all of them still there
        assert len(halves) == 60
    assert "Traceback" not in running.server.log.read_text()


def test_body_that_arrives_at_the_end_is_told_so(run: Callable[..., Backend]) -> None:
    running = run(body_timeout_s=10 * DEADLINE_S, ending_timeout_s=10 * DEADLINE_S)
    half = running.send(b"{", 100)
    running.process.send_signal(signal.SIGTERM)
    status, told = status_of(half)
    assert (status, '"code":"ending"' in told, "retry-after" in told) == (503, True, True)
    assert running.server.process.wait(DEADLINE_S) == 0


def test_who_leaves_in_mid_body_is_forgotten(run: Callable[..., Backend]) -> None:
    running = run(max_bodies_mb=8, body_timeout_s=10 * DEADLINE_S)
    body = b'{"user_input": "/echo hi"' + b" " * 7_000_000 + b"}"
    for _ in range(5):
        running.send(b"[" + b" " * MOST, 8_000_000).close()
        wait_until(lambda: running.post(body).status_code == 200)
    assert '"code": "client_left"' in running.server.log.read_text()


def test_body_has_its_room_until_the_reply_is_at_its_end(run: Callable[..., Backend]) -> None:
    running = run(max_body_mb=1, max_bodies_mb=1, fake_token_s=0.05)
    talk = {"user_input": "/echo " + "word " * 10_000}
    large = json.dumps(talk | {"options": {}}).encode() + b" " * 900_000
    small = b'{"user_input": "/echo hi"}' + b" " * 900_000
    with httpx.stream(
        "POST", f"{running.url}/chat/stream", content=large, headers=JSON, timeout=DEADLINE_S
    ) as told:
        lines = told.iter_lines()
        assert next(lines) == "event: token"
        assert running.post(small).status_code == 429
        assert next(lines).startswith("data:")  # the reply goes on
    wait_until(lambda: running.post(small).status_code == 200)  # the client has left

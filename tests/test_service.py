"""What the backend promises as a service: whom it lets in, how it refuses, what it gives back."""

import io
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
import speakers
from conftest import FAKE, serve_backend
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families
from tabs import open_context

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote
import chatbot_arch.frontend as frontend
import chatbot_arch.measure.launch as launch
import chatbot_arch.page.replies as replies
import chatbot_arch.page.store as store
import chatbot_arch.service.lifecycle as lifecycle
import chatbot_arch.service.reply as reply
import chatbot_arch.service.telemetry as telemetry
import chatbot_arch.settings as settings

DEADLINE_S = 30
START_DEADLINE_S = 120  # for a process to import everything, on a machine that is busy
ENDLESS = {"user_input": "/echo " + "word " * 19_000}
MARK = "s3cret"  # what no answer and no log may repeat
JSON = {"content-type": "application/json"}


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Service:
    """A running backend, and clients that leave it at the test's end."""

    def __init__(self, url: str, clients: ExitStack) -> None:
        self.url, self._clients = url, clients
        self.http = clients.enter_context(httpx.Client(base_url=url, timeout=DEADLINE_S))
        clients.callback(self.wait_until_idle)

    def post(self, body: object, **more: object) -> httpx.Response:
        return self.http.post("/chat", json=body, **more)

    def speak(self) -> ExitStack:
        """Ask for a reply without an end; return, once it speaks, what leaves it."""
        leaving = self._clients.enter_context(ExitStack())
        client = leaving.enter_context(httpx.Client(timeout=DEADLINE_S))
        asked = client.stream("POST", f"{self.url}/chat/stream", json=ENDLESS)
        lines = leaving.enter_context(asked).iter_lines()
        leaving.callback(lines.close)
        assert next(lines) == "event: token"
        return leaving

    def metric(self, name: str, **labels: str) -> float:
        text = self.http.get("/metrics").text
        samples = [each for kind in text_string_to_metric_families(text) for each in kind.samples]
        return sum(
            each.value
            for each in samples
            if each.name == f"chatbot_{name}" and labels.items() <= each.labels.items()
        )

    def wait_until_idle(self) -> None:
        """Wait until every slot is given back; with a key, nobody may ask."""
        queue, slots = backend.app.state.queue, backend.app.state.choice.max_replies
        wait_until(lambda: queue.free == slots and not queue.waiting)
        if self.http.get("/metrics").is_success:
            assert self.metric("replies_in_flight") == self.metric("requests_waiting") == 0


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what the service logs from now on."""
    caught, start = io.StringIO(), telemetry.start_log

    def start_log() -> None:
        start()
        telemetry.LOG.handlers[0].setStream(caught)

    monkeypatch.setattr(telemetry, "start_log", start_log)
    return caught


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, log: io.StringIO) -> Iterator[Callable[..., Service]]:
    """Return what serves the backend with an engine and settings; all is back at the end."""
    with ExitStack() as servers:

        def start(speaker: protocol.Engine | None = None, **choices: object) -> Service:
            speaker = speaker or protocol.FakeEngine(token_s=0.005)
            monkeypatch.setattr(local, "load_engine", lambda choice, report: speaker)
            for name, value in choices.items():
                monkeypatch.setenv(f"CHATBOT_{name.upper()}", str(value))
            url = servers.enter_context(serve_backend())
            backend.app.state.answerer.loading.engine.result(timeout=DEADLINE_S)
            return Service(url, servers.enter_context(ExitStack()))

        yield start


# Input


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user_input is missing"),
        ({"user_input": 7}, "user_input "),
        ({"user_input": None}, "user_input "),
        ({"user_input": ""}, "user_input is blank"),
        ({"user_input": " \n\u2003\x1c\x85\ufeff"}, "user_input is blank"),
        ({"user_input": ["s3cret"]}, "user_input "),
        ({"user_input": "hi", "s3cret": 1}, "body contains an unknown field"),
        ({"user_input": "hi", "options": {"s3cret": 1}}, "options contains an unknown field"),
        ({"user_input": "hi", "likely_name": "s3cret"}, "likely_name is an unknown field"),
        ({"user_input": "hi", "past_user_inputs": "s3cret"}, "past_user_inputs "),
        ({"user_input": "hi", "past_user_inputs": ["s3cret", 3]}, "past_user_inputs[1] "),
        ({"user_input": "hi", "options": {"temperature": "s3cret"}}, "options.temperature "),
        ({"user_input": "s3cret" * 20_000}, "user_input String should have at most 100000 char"),
        (
            {"user_input": "hi", "past_user_inputs": ["s"] * 1001, "generated_responses": []},
            "past_user_inputs List should have at most 1000 items",
        ),
        (
            {"user_input": "hi", "past_user_inputs": ["s3cret"], "generated_responses": []},
            "has 1 past_user_inputs and 0 generated_responses",
        ),
        ([], "body "),
        ({"user_input": "\ud800 s3cret"}, "user_input contains half of a surrogate pair"),
        ({"user_input": "hi", "past_user_inputs": ["\ud800"]}, "past_user_inputs[0] contains half"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_body_is_a_short_problem_that_names_the_field_and_repeats_nothing(
    serve: Callable[..., Service], log: io.StringIO, body: object, field: str
) -> None:
    service = serve()
    for path in ("/chat", "/chat/stream"):
        told = service.http.post(path, content=json.dumps(body), headers=JSON)
        assert told.status_code == 422
        assert told.headers["content-type"] == "application/problem+json"
        problem = told.json()
        assert field in problem["detail"]
        assert problem["request_id"] == told.headers["x-request-id"]
        assert len(told.content) < 2000
        assert MARK not in told.text
    assert MARK not in log.getvalue()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"user_input": NaN}', 422),
        (b'{"user_input": "hi", "options": {"temperature": NaN}}', 422),
        (b'{"user_input": "hi", "options": {"temperature": 1e999}}', 422),
        (b'{"user_input": "hi", "options": {"max_new_tokens": ' + b"9" * 5000 + b"}}", 400),
        (b'\xef\xbb\xbf{"user_input": "hi"}', 200),
        ('{"user_input": "hi"}'.encode("utf-16"), 200),
        (b'{"user_input": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"user_input"', 422),
        (b"", 422),
    ],
    ids=["nan", "nan-option", "infinity", "digits", "bom", "utf16", "utf8", "deep", "cut", "none"],
)
def test_odd_bytes_are_never_the_services_fault(
    serve: Callable[..., Service], body: bytes, status: int
) -> None:
    told = serve().http.post("/chat", content=body, headers=JSON)
    assert told.status_code == status
    assert len(told.content) < 2000
    if status != 200:
        assert told.json()["request_id"]


@pytest.mark.parametrize(
    "text", ["\0", "👩‍👩‍👧", "עברית \u202e abc", "e\u0301", "<|im_end|> <think>"]
)
def test_text_comes_back_as_it_was(serve: Callable[..., Service], text: str) -> None:
    assert serve().post({"user_input": f"/echo x{text}x"}).json() == f"x{text}x"


@contextmanager
def run_backend(
    command: Sequence[str] = (), **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the backend, as the README says or by `command`, on a free port; yield it and its URL."""
    port = launch.find_free_port()
    uvicorn = [str(Path(sys.executable).parent / "uvicorn"), "chatbot_arch.backend:app"]
    process = subprocess.Popen(
        [*(command or uvicorn), "--port", str(port)],
        env=os.environ | FAKE | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(is_ready, START_DEADLINE_S)
        yield process, url
    finally:
        process.kill()
        process.communicate()


WITH_ENGINE = (
    "import sys, uvicorn; sys.path.insert(0, sys.argv.pop(1));"
    "import speakers, chatbot_arch.engines.local as local;"
    "speaker = getattr(speakers, sys.argv.pop(1))(token_s=0);"
    "local.load_engine = lambda choice, report: speaker;"
    "uvicorn.run('chatbot_arch.backend:app', port=int(sys.argv[-1]))"
)


def backend_with(name: str) -> list[str]:
    """Return the command of a backend that has one of the engines of `speakers`."""
    return [sys.executable, "-c", WITH_ENGINE, str(Path(__file__).parent), name]


def send_until_answered(url: str, head: str, parts: Iterator[bytes]) -> tuple[int, str]:
    """Send a request in parts until it is answered, whatever is left; return status and body."""
    place = url.removeprefix("http://")
    host, port = place.split(":")
    head = f"POST /chat HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\n{head}\r\n"
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as sender:
        sender.sendall(head.encode())
        with suppress(ConnectionError):  # no more is read; the answer was sent before
            for part in parts:
                sender.sendall(part)
                if select.select([sender], [], [], 0)[0]:
                    break
        answer = HTTPResponse(sender)
        answer.begin()
        return answer.status, answer.read().decode()


def test_body_that_is_too_large_is_refused_early_and_not_kept() -> None:
    sent = 0

    def endlessly() -> Iterator[bytes]:
        nonlocal sent
        yield chunk(b'{"user_input": "')
        for _ in range(1000):
            sent += 1
            yield chunk(b"s3cret" * 17_000)

    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)

    with run_backend() as (process, url), httpx.Client(trust_env=False) as client:
        before = psutil.Process(process.pid).memory_info().rss
        chunked = [("Transfer-Encoding: chunked\r\n", endlessly()) for _ in range(3)]
        announced = ("Content-Length: 100000000\r\n", iter(()))  # not a byte of it is sent
        for head, parts in (*chunked, announced):
            status, answer = send_until_answered(url, head, parts)
            assert (status, json.loads(answer)["code"]) == (413, "content_too_large")
            assert "The body is larger than 8 MB" in answer
            assert MARK not in answer
        assert sent < 3 * 1000  # it did not wait for the end
        counted = 'chatbot_refusals_total{code="content_too_large"} 4.0'
        wait_until(lambda: counted in client.get(f"{url}/metrics").text)
        assert psutil.Process(process.pid).memory_info().rss - before < 20e6
        assert client.post(f"{url}/chat", json={"user_input": "/echo hi"}).json() == "hi"


# Admission


def test_full_line_refuses_at_once_and_serves_all_it_took(serve: Callable[..., Service]) -> None:
    service = serve(max_replies=1, max_waiting=4)
    leaving = service.speak()
    with ThreadPoolExecutor(19) as pool:
        asked = [pool.submit(service.post, {"user_input": f"/echo {n}"}) for n in range(19)]
        wait_until(lambda: sum(each.done() for each in asked) == 15)  # while one still speaks
        for told in [each.result() for each in asked if each.done()]:
            assert told.status_code == 429
            assert int(told.headers["retry-after"]) > 0
            assert told.json()["code"] == "full"
        assert service.metric("requests_waiting") == 4
        assert service.http.get("/").status_code == 200
        leaving.close()
        served = [n for n, each in enumerate(asked) if each.result().status_code == 200]
        assert [asked[n].result().json() for n in served] == [str(n) for n in served]
        assert len(served) == 4


class CountingEngine(protocol.FakeEngine):
    """Note how many replies were made at once, at most."""

    now = most = 0

    def stream(self, *asked: object):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return (yield from super().stream(*asked))
        finally:
            self.now -= 1


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
def test_no_more_replies_are_made_at_once_than_there_are_places(
    serve: Callable[..., Service], path: str
) -> None:
    counting = CountingEngine(token_s=0.1)
    service = serve(counting, max_replies=2, max_waiting=4)
    bodies = [{"user_input": f"/echo {n} one two"} for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda body: service.http.post(path, json=body), bodies))
    assert [each.status_code for each in told] == [200] * 6
    assert all(f"{n}" in each.text and each.text.count("two") == 1 for n, each in enumerate(told))
    assert (counting.most, counting.now) == (2, 0)


def test_who_waits_too_long_is_told_to_come_back(serve: Callable[..., Service]) -> None:
    service = serve(max_replies=1, waiting_timeout_s=0.5)
    refused = service.metric("refusals_total", code="engine_busy")
    service.speak()
    told = service.post({"user_input": "/echo hi"})
    assert (told.status_code, told.json()["code"]) == (503, "engine_busy")
    assert int(told.headers["retry-after"]) > 0
    streamed = service.http.post("/chat/stream", json={"user_input": "/echo hi"}).text
    assert '"code": "engine_busy"' in streamed.split("event: error\ndata: ")[1]
    wait_until(lambda: service.metric("refusals_total", code="engine_busy") == refused + 2)


def test_clients_that_leave_leave_no_backlog(serve: Callable[..., Service]) -> None:
    service = serve(max_replies=2, max_waiting=20)
    before = service.metric("requests_total", route="/chat")
    with ThreadPoolExecutor(8) as pool:
        impatient = [
            pool.submit(httpx.post, f"{service.url}/chat", json=ENDLESS, timeout=0.5)
            for _ in range(8)
        ]
    assert all(isinstance(each.exception(), httpx.ReadTimeout) for each in impatient)
    assert service.post({"user_input": "/echo hi"}).json() == "hi"
    wait_until(lambda: service.metric("requests_total", route="/chat") == before + 9)


def fill(reader: socket.socket, url: str) -> None:
    """Ask for more than any buffer holds, and read only its beginning: what is sent gets stuck."""
    body = json.dumps({"user_input": "much"})
    host, port = url.removeprefix("http://").split(":")
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(DEADLINE_S)
    reader.connect((host, int(port)))
    head = f"POST /chat/stream HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    assert reader.recv(100)


def test_reader_that_reads_no_more_loses_its_place_and_its_request_ends(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    monkeypatch.setattr(reply, "READING_GRACE_S", 0)
    service = serve(speakers.LavishEngine(token_s=0), max_replies=1, reply_timeout_s=0.5)
    with socket.socket() as reader:
        fill(reader, service.url)
        assert service.post({"user_input": "/echo hi"}).json() == "hi"
        wait_until(lambda: not backend.app.state.requests)  # though the reader is still there
        wait_until(lambda: '"code": "reader_stalled"' in log.getvalue())


class FailingEngine(protocol.FakeEngine):
    """Fail unexpectedly, after some words."""

    after = 0
    fits = True

    def fit(self, *asked: object):
        if self.fits:
            return super().fit(*asked)
        raise RuntimeError(MARK)

    def stream(self, *asked: object):
        for _ in range(self.after):
            yield "word "
        raise RuntimeError(MARK)


def test_surprise_is_a_problem_with_an_id_and_a_traceback_in_the_log(
    serve: Callable[..., Service], log: io.StringIO
) -> None:
    failing = FailingEngine()
    service = serve(failing)
    told = service.post({"user_input": "hi"})
    assert (told.status_code, told.json()["code"]) == (500, "internal")
    assert MARK not in told.text
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    [surprise] = [line for line in lines if line["message"] == "failed"]
    assert surprise["request_id"] == told.json()["request_id"] == told.headers["x-request-id"]
    assert "RuntimeError: s3cret" in surprise["exc_info"]
    failing.after = 2
    streamed = service.http.post("/chat/stream", json={"user_input": "hi"}).text
    assert streamed.count("event: token") == 2
    assert '"code": "internal"' in streamed.split("event: error\ndata: ")[1]
    assert MARK not in streamed
    failing.fits = False
    told = service.http.post("/chat/stream", json={"user_input": "hi"})
    assert (told.status_code, told.json()["code"]) == (500, "internal")
    assert log.getvalue().count(f"RuntimeError: {MARK}") == 3


def test_reply_without_an_end_ends_at_its_limit(serve: Callable[..., Service]) -> None:
    service = serve(protocol.FakeEngine(reply_timeout_s=0.3), reply_timeout_s=0.3)
    streamed = service.http.post("/chat/stream", json=ENDLESS).text
    assert '"reason": "timeout"' in streamed.split("event: done\ndata: ")[1]


# Doors


def test_key_opens_everything_and_its_absence_only_what_is_asked_from_outside(
    serve: Callable[..., Service],
) -> None:
    service = serve(api_key="new, old")
    paths = ("/chat", "/docs", "/openapi.json", "/metrics", "/v1/models", "/nowhere")
    for path in paths:
        told = service.http.get(path)
        assert told.status_code == 401
        assert told.headers["www-authenticate"] == "Bearer"
        assert "new" not in told.text.replace("newer", "")
    assert [service.http.get(path).status_code for path in ("/", "/live", "/ready")] == [200] * 3
    for key, status in (("new", 200), ("old", 200), ("ne", 401), ("", 401), ("new, old", 401)):
        headers = {"Authorization": f"Bearer {key}".strip()}
        assert service.post({"user_input": "/echo hi"}, headers=headers).status_code == status
    assert service.http.get("/", headers={"Authorization": "Bearer no"}).status_code == 200


@pytest.mark.parametrize("key", [" , ", "schlüssel"])
def test_key_that_cannot_be_is_an_error_and_not_an_open_door(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("CHATBOT_API_KEY", key)
    with pytest.raises(settings.SettingsError, match=r"CHATBOT_API_KEY=\.\.\.: "):
        settings.read_settings()


def test_secret_comes_from_its_file_unless_a_variable_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "SECRETS_FOLDER", tmp_path)
    monkeypatch.setenv("CHATBOT_SYSTEM_PROMPT", str(tmp_path))  # nothing read before fits
    (tmp_path / "chatbot_api_key").write_text("from-a-file\n", encoding="utf-8")
    assert settings.read_settings().api_key.get_secret_value() == "from-a-file"
    monkeypatch.setenv("CHATBOT_API_KEY", "from-a-variable")
    assert settings.read_settings().api_key.get_secret_value() == "from-a-variable"


def test_secret_that_cannot_be_read_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "SECRETS_FOLDER", tmp_path)
    monkeypatch.setenv("CHATBOT_SYSTEM_PROMPT", str(tmp_path))
    (tmp_path / "chatbot_api_key").write_bytes(b"\xff")
    with pytest.raises(settings.SettingsError, match=f"A file in {tmp_path} cannot be read: "):
        settings.read_settings()


def ask_from_page(service: Service, monkeypatch: pytest.MonkeyPatch) -> replies.View:
    """Ask as the page does, with the settings as they are; return what it would show."""
    monkeypatch.setenv("CHATBOT_BACKEND_URL", service.url)
    kept, key = store.Store("sqlite://"), store.new_id()
    turn = store.Turn(id=store.new_id(), conversation_id=key, position=0, question="/echo hi")
    kept.keep_draft(key, "me", "/echo hi", {})
    writing = replies.Writing(frontend.microservice_llm_response, kept, turn)
    replies.start(writing)
    assert writing.wait(DEADLINE_S)
    return replies.look(writing)


def test_page_sends_the_first_key_and_says_when_another_is_wanted(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(api_key="new,old")
    assert ask_from_page(service, monkeypatch).text == "hi"
    monkeypatch.setenv("CHATBOT_API_KEY", "stolen")
    assert "rejected the API key. Set CHATBOT_API_KEY" in ask_from_page(service, monkeypatch).error


def test_page_waits_in_the_line_longer_than_for_a_reply(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_GRACE_S", 0.6)
    service = serve(max_replies=1, waiting_timeout_s=20)
    leaving = service.speak()
    monkeypatch.setenv("CHATBOT_REPLY_TIMEOUT_S", "0.4")  # the page's: a second for a reply
    timer = threading.Timer(2.5, leaving.close)
    timer.start()
    try:
        assert ask_from_page(service, monkeypatch).text == "hi"
    finally:
        timer.join()


def test_page_sends_no_more_turns_than_a_backend_takes() -> None:
    past = [str(number) for number in range(settings.MAX_TURNS + 7)]
    assert remote.turns_too_many(past, past) == 7
    longest = "x" * settings.MAX_TEXT_CHARS
    assert remote.turns_too_many(["a", longest, "b"], ["c", longest + "x", "d"]) == 2
    assert remote.turns_too_many(["a"] * 20, [longest] * 20) == 11
    assert remote.turns_too_many([], []) == 0


def test_host_that_is_not_ours_is_refused(serve: Callable[..., Service]) -> None:
    service = serve()
    for host in ("localhost:1", "[::1]:8000", "LOCALHOST"):
        assert service.http.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil@localhost", "localhost/evil", "[::1", "localhost.evil"):
        assert service.http.get("/", headers={"Host": host}).status_code == 400
    named = serve(allowed_hosts="Chat.Example, [::1]")
    for host, status in (("chat.example", 200), ("[::1]", 200), ("localhost", 400)):
        assert named.http.get("/", headers={"Host": host}).status_code == status
    named.http.headers["Host"] = "chat.example"


def test_page_of_another_origin_is_let_in_only_by_name(serve: Callable[..., Service]) -> None:
    asks = {"Origin": "http://pages.example", "Access-Control-Request-Method": "POST"}
    told = serve().http.options("/chat", headers=asks)
    assert told.status_code == 405
    assert "access-control-allow-origin" not in told.headers
    told = serve(allowed_origins="http://pages.example").http.options("/chat", headers=asks)
    assert told.headers["access-control-allow-origin"] == "http://pages.example"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/chat", 405), ("/v1/x", 404)])
def test_framework_refuses_in_our_shapes(
    serve: Callable[..., Service], path: str, status: int
) -> None:
    told = serve().http.get(path)
    assert told.status_code == status
    known = told.json()["error"] if path.startswith("/v1") else told.json()
    assert known["request_id"] == told.headers["x-request-id"]


def test_documentation_has_every_route_and_asks_no_other_host(
    serve: Callable[..., Service], browser: Browser, hosts: list[str]
) -> None:
    service = serve()
    with open_context(browser, hosts) as context:
        tab = context.new_page()
        tab.goto(f"{service.url}/docs")
        v1 = ("/v1/models", "/v1/chat/completions")
        for path in ("/live", "/ready", "/chat", "/chat/stream", *v1):
            expect(tab.get_by_text(path, exact=True)).to_be_visible()
        tab.get_by_text("/chat", exact=True).click()
        expect(tab.get_by_text("What is a microservice?")).to_be_visible()


# Telemetry


def test_log_has_one_line_a_request_and_no_text(
    serve: Callable[..., Service], log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    service.post({"user_input": f"/echo {MARK} two"}, headers={"X-Request-ID": "from-the-page"})
    service.http.post("/chat/stream", json={"user_input": f"/echo {MARK}"})
    wait_until(lambda: log.getvalue().count("\n") == 2)  # written after the last byte was sent
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["route"] for line in lines] == ["/chat", "/chat/stream"]
    assert lines[0]["request_id"] == "from-the-page"
    assert [line["reply_tokens"] for line in lines] == [2, 1]
    assert all(0 < line["first_token_s"] <= line["seconds"] for line in lines)
    assert MARK not in log.getvalue()
    said = [{"role": "user", "content": f"/echo {MARK}"}]
    asked = {"model": protocol.FakeEngine.model, "messages": said}
    service = serve(log_texts=True)
    service.post({"user_input": f"/echo {MARK}"})
    service.http.post("/chat/stream", json={"user_input": f"/echo {MARK}"})
    service.http.post("/v1/chat/completions", json=asked)
    wait_until(lambda: log.getvalue().count('"question"') == 3)
    for line in log.getvalue().splitlines()[-3:]:
        assert (json.loads(line)["question"], json.loads(line)["reply"]) == (f"/echo {MARK}", MARK)


def test_id_that_would_forge_the_log_is_replaced(serve: Callable[..., Service]) -> None:
    service = serve()
    for sent in ("short", "x" * 65, 'quote"quote"', "späte-id"):
        told = service.http.get("/", headers={"X-Request-ID": sent.encode()})
        assert len(told.headers["x-request-id"]) == 16


def test_metrics_count_requests_tokens_and_refusals(serve: Callable[..., Service]) -> None:
    service = serve()
    names = {
        ("requests_total", "route", "/chat"): 2,
        ("tokens_total", "kind", "reply"): 3,
        ("tokens_total", "kind", "prompt"): 4,
        ("refusals_total", "code", "invalid_request"): 1,
        ("first_token_seconds_count", "le", ""): 1,
    }

    def count() -> list[float]:
        return [
            service.metric(name, **({label: value} if value else {}))
            for name, label, value in names
        ]

    before = count()
    service.post({"user_input": "/echo one two three"})
    service.post({})
    expected = [then + more for then, more in zip(before, names.values(), strict=True)]
    wait_until(lambda: count() == expected)  # counted after the last byte was sent
    assert service.http.get("/metrics").headers["content-type"].startswith("text/plain")


def test_question_is_one_trace_from_page_to_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[str, str, bytes, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                service = {
                    each.key: each.value.string_value for each in resource.resource.attributes
                }
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        name = service["service.name"]
                        spans.append((name, span.name, span.trace_id, span.parent_span_id))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    ask = (
        "import chatbot_arch.frontend as f, chatbot_arch.page.replies as r\n"
        "import chatbot_arch.page.store as s\n"
        "turn = s.Turn(id='t', conversation_id='c', position=0, question='/echo hi')\n"
        "kept = s.Store('sqlite://'); kept.keep_draft('c', 'me', '/echo hi', {})\n"
        "w = r.Writing(f.microservice_llm_response, kept, turn); r.make(w); print(r.look(w))\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            there = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            }
            with run_backend(**there) as (_, url):
                environment = os.environ | there | {"CHATBOT_BACKEND_URL": url}
                command = [sys.executable, "-c", ask]
                said = subprocess.run(
                    command,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=START_DEADLINE_S,
                )
                assert "text='hi'" in said.stdout, said.stderr
                wait_until(
                    lambda: {"chatbot-page", "chatbot-backend"} <= {each[0] for each in spans}
                )
                wait_until(lambda: any("/chat/stream" in each[1] for each in spans))
        finally:
            collector.shutdown()
            thread.join(DEADLINE_S)
    [page] = [each for each in spans if each[0] == "chatbot-page"]
    [backend_span] = [each for each in spans if "/chat/stream" in each[1]]
    assert page[2] == backend_span[2]
    assert backend_span[3]


# Ending


def test_sigterm_lets_replies_finish_refuses_new_ones_and_exits_0(tmp_path: Path) -> None:
    words, released = " ".join(str(number) for number in range(150)), tmp_path / "released"
    command = backend_with("HeldEngine")
    with (
        run_backend(command, RELEASED=str(released)) as (process, url),
        httpx.Client(timeout=DEADLINE_S) as client,
    ):
        place = ("127.0.0.1", int(url.rsplit(":")[-1]))
        body = {"user_input": f"/echo {words}"}
        with client.stream("POST", f"{url}/chat/stream", json=body) as told:
            lines = told.iter_lines()
            assert next(lines) == "event: token"
            process.send_signal(signal.SIGTERM)

            def is_shut() -> bool:
                try:  # a connection that is reset after it was made came before the port was shut
                    socket.create_connection(place, timeout=DEADLINE_S).close()
                except ConnectionRefusedError:
                    return True
                return False

            wait_until(is_shut)
            assert process.poll() is None
            released.touch()
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert "".join(each["text"] for each in data[:-1]) == words
        assert data[-1]["reason"] == "stop"
        assert process.wait(DEADLINE_S) == 0
        with socket.create_server(place):
            pass


def test_who_still_waits_when_the_service_ends_is_told_so(serve: Callable[..., Service]) -> None:
    service = serve(max_replies=1)
    service.speak()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(service.post, {"user_input": "/echo hi"})
        wait_until(lambda: backend.app.state.queue.waiting)
        backend.app.state.ending = True
        lifecycle.end_replies(backend.app)
        for told in (waiting.result(), service.post({"user_input": "/echo hi"})):
            assert (told.status_code, told.json()["code"]) == (503, "ending")
            assert int(told.headers["retry-after"]) > 0


def test_sigterm_ends_what_does_not_finish_in_time() -> None:
    with run_backend(CHATBOT_ENDING_TIMEOUT_S="0.3") as (process, url):
        with httpx.stream("POST", f"{url}/chat/stream", json=ENDLESS, timeout=DEADLINE_S) as told:
            lines = told.iter_lines()
            assert next(lines) == "event: token"
            process.send_signal(signal.SIGTERM)
            assert any('"code": "ending"' in line for line in lines)
        assert process.wait(DEADLINE_S) == 0


def test_sigterm_does_not_wait_for_who_does_not_read() -> None:
    with (
        run_backend(backend_with("LavishEngine"), CHATBOT_ENDING_TIMEOUT_S="0.3") as (process, url),
        socket.socket() as reader,
    ):
        fill(reader, url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert process.stdout.read().count(b"engine closed") == 1


def test_busy_port_is_a_sentence_and_a_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "uvicorn", "chatbot_arch.backend:app", "--port", port]
        ended = subprocess.run(
            command, env=os.environ | FAKE, capture_output=True, text=True, timeout=START_DEADLINE_S
        )
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_uvicorns_own_line_for_a_request_is_off(serve: Callable[..., Service]) -> None:
    serve()
    assert logging.getLogger("uvicorn.access").disabled

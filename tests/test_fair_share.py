"""What one client may hold of the backend while others want in, and what a probe is told."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from conftest import serve_backend

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol

DEADLINE_S = 30
ENDLESS = {"user_input": "/echo " + "word " * 19_000}
SHORT = {"user_input": "/echo hi"}


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition; fail if it does not come true in time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return what serves the backend with settings, and returns its address."""
    monkeypatch.setattr(local, "load_engine", lambda choice, report: protocol.FakeEngine(0.005))
    with ExitStack() as servers:

        def start(**choices: object) -> str:
            for name, value in choices.items():
                monkeypatch.setenv(f"CHATBOT_{name.upper()}", str(value))
            url = servers.enter_context(serve_backend())
            backend.app.state.answerer.loading.engine.result(timeout=DEADLINE_S)
            return url

        yield start


class Asker:
    """A client that asks for replies without an end, each from a thread of its own."""

    def __init__(self, url: str, key: str = "", address: str = "127.0.0.1") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=DEADLINE_S,
            transport=httpx.HTTPTransport(local_address=address),
        )
        self.leave = threading.Event()
        self.threads: list[threading.Thread] = []
        self.told: list[int] = []  # statuses, as they come

    def hold(self) -> None:
        """Ask, and keep what was given until `leave` is set."""
        with self.http.stream("POST", "/chat/stream", json=ENDLESS) as answer:
            self.told.append(answer.status_code)
            for _ in answer.iter_lines() if answer.is_success else ():
                if self.leave.is_set():
                    break

    def flood(self, requests: int) -> None:
        """Ask many times at once; return when all were let in or refused."""
        before = len(self.told)
        new = [threading.Thread(target=self.hold) for _ in range(requests)]
        self.threads += new
        for thread in new:
            thread.start()
        wait_until(lambda: len(self.told) == before + requests)

    def end(self) -> None:
        """Leave, and wait for the threads."""
        self.leave.set()
        for thread in self.threads:
            thread.join(DEADLINE_S)
        self.http.close()


@pytest.fixture
def ask() -> Iterator[Callable[..., Asker]]:
    """Return how to make clients, which all leave at the test's end."""
    with ExitStack() as clients:

        def make(*args: str, **more: str) -> Asker:
            asker = Asker(*args, **more)
            clients.callback(asker.end)
            return asker

        yield make


Ask = Callable[..., Asker]


@pytest.mark.parametrize("by", ["key", "address"])
def test_client_takes_its_share_and_another_gets_in(serve: Serve, ask: Ask, by: str) -> None:
    if by == "key":
        url = serve(max_replies=2, max_waiting=4, max_per_client=3, api_key="one,two")
        greedy, other = ask(url, "one"), ask(url, "two")
    else:
        url = serve(max_replies=2, max_waiting=4, max_per_client=3)
        greedy, other = ask(url), ask(url, address="127.0.0.2")
    greedy.flood(8)
    assert sorted(greedy.told) == [200] * 3 + [429] * 5
    queue = backend.app.state.queue
    assert (queue.free, len(queue.waiting)) == (0, 1)
    other.flood(1)
    assert other.told == [200]
    assert len(queue.waiting) == 2
    greedy.leave.set()
    assert other.http.post("/chat", json=SHORT).json() == "hi"  # once the greedy one has left


@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/v1/chat/completions"])
def test_refusal_says_whose_share_is_full_and_when_to_come_back(
    serve: Serve, ask: Ask, path: str
) -> None:
    greedy = ask(serve(max_per_client=1))
    greedy.flood(1)
    model = {"model": protocol.FakeEngine.model}
    question = model | {"messages": [{"role": "user", "content": "hi"}]}
    refused = greedy.http.post(path, json=question if path.startswith("/v1") else SHORT)
    told = refused.json().get("error", refused.json())
    assert (refused.status_code, told["code"]) == (429, "client_full")
    assert "1 request" in told.get("detail", told.get("message"))
    assert int(refused.headers["retry-after"]) > 0
    greedy.leave.set()
    wait_until(lambda: greedy.http.post("/chat", json=SHORT).is_success)  # all was given back


def test_share_is_given_back_however_a_request_ends(serve: Serve, ask: Ask) -> None:
    client = ask(serve(max_per_client=1, max_waiting=0)).http
    for body, status in ((SHORT, 200), ({"user_input": "/raise"}, 500), ({}, 422), (SHORT, 200)):
        wait_until(lambda: not backend.app.state.queue.held)
        assert client.post("/chat", json=body).status_code == status
    wait_until(lambda: not backend.app.state.queue.held)


@pytest.mark.parametrize("step", ["fit", "stream"])
def test_place_is_given_back_when_a_library_panics(
    serve: Serve, ask: Ask, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Panic(BaseException):
        """As Rust's libraries raise it: no `Exception`."""

    def panic(*arguments: object) -> None:
        raise Panic

    client = ask(serve(max_replies=1, max_waiting=0, max_per_client=1)).http
    with monkeypatch.context() as broken:
        broken.setattr(protocol.FakeEngine, step, panic)
        assert client.post("/chat", json=SHORT).status_code == 500
    wait_until(lambda: not backend.app.state.queue.held)
    assert not backend.app.state.requests
    assert client.post("/chat", json=SHORT).status_code == 200


def test_key_is_the_client_wherever_it_comes_from(serve: Serve, ask: Ask) -> None:
    url = serve(max_per_client=1, api_key="one,two")
    here, there = ask(url, "one"), ask(url, "one", address="127.0.0.2")
    here.flood(1)
    refused = there.http.post("/chat", json=SHORT, headers={"Authorization": "bearer  one"})
    assert refused.json()["code"] == "client_full"
    forged = {"X-Forwarded-For": "192.0.2.7"}  # believed from this address, and yet no way out
    assert there.http.post("/chat", json=SHORT, headers=forged).json()["code"] == "client_full"


def test_without_the_setting_one_client_may_hold_everything(serve: Serve, ask: Ask) -> None:
    crowd = ask(serve(max_replies=2, max_waiting=2))
    crowd.flood(4)
    assert crowd.told == [200] * 4
    assert crowd.http.post("/chat", json=SHORT).json()["code"] == "full"


# Probes


def test_liveness_fails_once_the_engine_died_and_health_does_not(serve: Serve) -> None:
    url = serve(api_key="secret")
    loading = backend.app.state.answerer.loading
    loaded = loading.engine
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as probe:

        def statuses() -> list[int]:
            return [probe.get(path).status_code for path in ("/", "/live", "/ready")]

        loading.engine = type(loaded)()  # as while the model loads
        while_loading = statuses()
        loading.engine = loaded
        assert (while_loading, statuses()) == ([200, 200, 503], [200, 200, 200])
        key = {"Authorization": "Bearer secret"}
        died = probe.post("/chat", json={"user_input": "/die"}, headers=key)
        assert (died.status_code, died.json()["code"]) == (503, "engine_died")
        assert statuses() == [200, 503, 503]
        told = probe.get("/live")
    assert (told.json()["code"], "retry-after" in told.headers) == ("engine_died", False)

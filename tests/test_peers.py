"""The backend in front of servers of other projects: what a client of ours gets from them."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.peers as peers
import chatbot_arch.settings as settings

READY_S, REPLY_S = 300, 120
LONG = "Write a very long story about a river, a baker and a ship."

pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]


@dataclasses.dataclass
class Pair:
    """A server, and our backend in front of it."""

    server: launch.Server
    backend: launch.Server

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask the backend."""
        return httpx.post(f"{self.backend.url}{path}", json=body, timeout=REPLY_S, trust_env=False)

    def events(self, **body: Any) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of a streamed reply."""
        text = self.post("/chat/stream", **body).raise_for_status().text
        found = re.findall(r"event: (\w+)\ndata: (.*)\n", text)
        return [(event, json.loads(data)) for event, data in found]

    def ready(self) -> int:
        """Return the status of the backend's readiness."""
        return httpx.get(self.backend.ready_url, timeout=10, trust_env=False).status_code


def stop(pair: Pair, name: str) -> None:
    """Stop a server of a pair, or what has taken its place."""
    launch.stop_server(getattr(pair, name))


@pytest.fixture(scope="module", params=[peers.TRANSFORMERS_SERVE, *peers.PACKAGES])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    cache_dir = settings.read_settings().cache_dir
    package = peers.PACKAGES.get(request.param)
    if package and not (cache_dir / "peers" / package.name / "made").exists():
        pytest.skip(f"{package.name} was not built: `make bench-engines` does that")
    [peer], _ = peers.find_peers([request.param], cache_dir)
    url = f"http://{launch.HOST}:{launch.find_free_port()}"
    where = ["--host", launch.HOST, "--port", url.rpartition(":")[2]]
    command = [*peer.command, *where]
    asked = {"CHATBOT_ENGINE": "openai", "CHATBOT_ENGINE_URL": f"{url}/v1"}
    asked["CHATBOT_MODEL"] = peer.model if peer.name == peers.TRANSFORMERS_SERVE else ""
    asked = {name: value for name, value in asked.items() if value}
    asked["CHATBOT_REPLY_TIMEOUT_S"] = str(REPLY_S)
    with ExitStack() as stack:
        server = launch.start_server(peer.name, command, url, peer.ready_path, peer.environment)
        running = Pair(server, server)
        stack.callback(stop, running, "server")
        running.backend = launch.start_backend(asked)
        stack.callback(stop, running, "backend")
        for each in (server, running.backend):
            launch.wait_until_ready(each, READY_S)
        yield running


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_six_turns_are_answered(pair: Pair) -> None:
    asked: list[str] = []
    answers: list[str] = []
    for number in range(6):
        question = f"Tell me about the number {number}."
        body = {"past_user_inputs": asked, "generated_responses": answers}
        answer = pair.post(
            "/chat", user_input=question, options={"max_new_tokens": 24}, **body
        ).raise_for_status()
        asked, answers = [*asked, question], [*answers, answer.json()]
    assert all(isinstance(answer, str) and answer.strip() for answer in answers)


def test_stream_ends_with_its_reason_and_counts(pair: Pair) -> None:
    *pieces, (event, done) = pair.events(user_input=LONG, options={"max_new_tokens": 12})
    assert {name for name, _ in pieces} <= {"token", "waiting"}
    assert len(pieces) > 5
    assert (event, done["reason"], done["engine"]) == ("done", "length", "openai")
    assert done["prompt_tokens"] is None or done["prompt_tokens"] > 12  # None: it does not count
    assert done["reply_tokens"] in (None, 0, 12)


def test_likeliest_words_are_the_same_each_time(pair: Pair) -> None:
    options = {"max_new_tokens": 12, "temperature": 0}
    answers = {pair.post("/chat", user_input="Hello!", options=options).json() for _ in range(3)}
    assert len(answers) == 1


def test_stop_string_and_the_openai_route(pair: Pair) -> None:
    [model] = httpx.get(f"{pair.backend.url}/v1/models", trust_env=False).json()["data"]
    body = {"model": model["id"], "messages": [{"role": "user", "content": LONG}]}
    whole = pair.post("/v1/chat/completions", **body, temperature=0, max_tokens=24).json()
    text = whole["choices"][0]["message"]["content"]
    stop = text.split()[4]
    cut = pair.post("/v1/chat/completions", **body, temperature=0, max_tokens=24, stop=stop).json()
    assert cut["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"


def test_wrong_body_never_reaches_the_server(pair: Pair) -> None:
    refused = pair.post("/chat", user_input=7)
    assert refused.status_code == 422
    assert "user_input" in refused.json()["detail"]


def test_who_leaves_stops_the_reply(pair: Pair) -> None:
    url, body = f"{pair.backend.url}/chat/stream", {"user_input": LONG}

    def idle() -> bool:
        told = httpx.get(f"{pair.backend.url}/metrics", trust_env=False).text
        return "\nchatbot_replies_in_flight 0.0\n" in told

    began = time.monotonic()
    assert pair.events(**body)[-1][0] == "done"
    whole_s = time.monotonic() - began
    with httpx.stream("POST", url, json=body, timeout=REPLY_S, trust_env=False) as answer:
        lines = answer.iter_lines()  # a generator that is collected closes the answer
        next(lines)
        assert not idle()
    began = time.monotonic()
    wait_until(idle)
    assert time.monotonic() - began < whole_s / 2
    assert pair.post("/chat", user_input="Hello!", options={"max_new_tokens": 4}).json()


def test_server_dies_and_comes_back(pair: Pair) -> None:
    url, said = f"{pair.backend.url}/chat/stream", ""
    body = {"user_input": LONG, "options": {"max_new_tokens": 200}}
    with httpx.stream("POST", url, json=body, timeout=REPLY_S, trust_env=False) as answer:
        for line in answer.iter_lines():
            if not said:
                launch.kill_server(pair.server)
            said += line
    assert "event: error" in said
    assert "Traceback" not in said
    wait_until(lambda: pair.ready() == 503)
    old = pair.server
    path = old.ready_url.removeprefix(old.url)
    pair.server = launch.start_server(old.name, old.command, old.url, path, old.environment)
    launch.wait_until_ready(pair.server, READY_S)
    wait_until(lambda: pair.ready() == 200)
    assert pair.post("/chat", user_input="Hello!", options={"max_new_tokens": 4}).json()

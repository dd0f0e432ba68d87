"""The two pages are the same file but for what answers, and what answers keeps one contract."""

import ast
import difflib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import streamlit as st
from conftest import serve_backend

import chatbot_arch
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote
import chatbot_arch.settings as settings

PACKAGE = Path(chatbot_arch.__file__).parent
LONGEST = {"monolith": 60, "frontend": 60, "utils": 150, "backend": 200}
MOST_DIFFERENT_LINES = 20
DEADLINE_S = 60


def lines_of(name: str) -> list[str]:
    """Return a module's lines without blank ones and nbdev's marks."""
    lines = (PACKAGE / f"{name}.py").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("# %%", "# AUTO"))]


@pytest.mark.parametrize("name", LONGEST)
def test_front_file_is_short(name: str) -> None:
    assert len(lines_of(name)) <= LONGEST[name]


def test_pages_differ_in_few_lines() -> None:
    opcodes = difflib.SequenceMatcher(
        a=lines_of("monolith"), b=lines_of("frontend"), autojunk=False
    ).get_opcodes()
    changed = [(to - at, upto - begin) for tag, at, to, begin, upto in opcodes if tag != "equal"]
    assert max(map(sum, zip(*changed, strict=True))) <= MOST_DIFFERENT_LINES


@pytest.mark.parametrize("name", ["utils", "monolith", "frontend"])
def test_no_page_branches_on_its_architecture(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)]
    asked = " ".join(ast.unparse(test) for test in tests)
    assert not any(word in asked for word in ("monolith", "microservice", "frontend", "remote"))


@pytest.fixture(autouse=True)
def no_loop_but_our_own() -> Iterator[None]:
    """Close the clients of pages that other tests opened, and see that ours are closed, too."""
    st.cache_resource.clear()
    wait_until(lambda: not loops())
    yield
    wait_until(lambda: not loops())


def loops() -> list[threading.Thread]:
    """Return the threads of event loops that ask backends."""
    return [each for each in threading.enumerate() if each.name == "ask-backend"]


@pytest.fixture(params=["local", "remote"])
def answerer(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[protocol.Answerer]:
    """Yield each answerer, with the engine that needs no model behind it."""
    monkeypatch.setenv("CHATBOT_ENGINE", "fake")
    monkeypatch.setenv("CHATBOT_MAX_REPLIES", "64")
    with serve_backend() as url:
        monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        made = local.LocalAnswerer() if request.param == "local" else remote.RemoteAnswerer()
        wait_until(lambda: is_ready(made))
        yield made
        made.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_ready(answerer: protocol.Answerer) -> bool:
    try:
        return answerer.describe().model == "known-text"
    except protocol.NotReadyError:
        return False


def ask(answerer: protocol.Answerer, question: str, stop: protocol.Stop) -> tuple[str, str]:
    """Return the whole reply and how it ended."""
    said: list[str] = []
    talk = protocol.to_conversation([], [], question)
    facts = protocol.speak(answerer.stream(talk, protocol.Options(), stop), said.append)
    return "".join(said), facts.reason


def test_answerer_streams_a_reply_and_returns_its_facts(answerer: protocol.Answerer) -> None:
    talk = protocol.to_conversation(["hi"], ["Hello!"], "/echo a b c")
    pieces, said = answerer.stream(talk, protocol.Options(), protocol.Stop()), []
    facts = protocol.speak(pieces, said.append)
    assert [piece for piece in said if piece] == ["a", " b", " c"]
    assert (facts.reason, facts.model, facts.engine) == ("stop", "known-text", "fake")
    assert (facts.prompt_tokens, facts.reply_tokens, facts.turns_left_out) == (6, 3, 0)


def test_stop_wakes_one_who_waits_for_a_word(answerer: protocol.Answerer) -> None:
    stop = protocol.Stop()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, answerer, "/hang", stop)
        time.sleep(0.2)  # whether it waits by now or not, the outcome is the same
        assert not asking.done()
        stop.set()
        assert asking.result(DEADLINE_S) == ("", "cancelled")


def test_one_that_is_stopped_before_it_begins_says_nothing(answerer: protocol.Answerer) -> None:
    stop = protocol.Stop()
    stop.set()
    assert ask(answerer, "/echo hello", stop) == ("", "cancelled")


def test_left_generator_ends_its_work(answerer: protocol.Answerer) -> None:
    talk = protocol.to_conversation([], [], "/echo " + "word " * 10_000)
    for _ in range(64):  # as many as the backend makes at once: if one stayed, the last would wait
        pieces = answerer.stream(talk, protocol.Options(), protocol.Stop())
        while not isinstance(next(pieces), str):
            pass
        pieces.close()
    assert ask(answerer, "/echo free", protocol.Stop()) == ("free", "stop")


def test_many_threads_may_ask_at_once(answerer: protocol.Answerer) -> None:
    with ThreadPoolExecutor(32) as pool:
        asking = [
            pool.submit(ask, answerer, f"/echo {number} and on", protocol.Stop())
            for number in range(96)
        ]
        heard = [each.result(DEADLINE_S) for each in asking]
        open_loops = len(loops())
    assert heard == [(f"{number} and on", "stop") for number in range(96)]
    assert open_loops <= 1, "one event loop for all"


def test_remote_connects_anew_when_the_settings_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_ENGINE", "fake")
    made = remote.RemoteAnswerer()
    for _ in range(2):
        with serve_backend() as url:
            monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
            wait_until(lambda: is_ready(made))
            assert ask(made, "/echo hello", protocol.Stop()) == ("hello", "stop")
    made.close()


def test_remote_goes_on_after_its_backend_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_ENGINE", "fake")
    made = remote.RemoteAnswerer()
    with serve_backend() as url:
        monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        wait_until(lambda: is_ready(made))
        assert ask(made, "/echo hello", protocol.Stop()) == ("hello", "stop")
    with pytest.raises(remote.BackendError):
        ask(made, "/echo are you there?", protocol.Stop())
    assert not is_ready(made), "what it said of itself is no longer believed"
    port = int(url.rpartition(":")[2])
    with serve_backend(port):
        wait_until(lambda: is_ready(made))
        assert ask(made, "/echo again", protocol.Stop()) == ("again", "stop")
    made.close()


def test_failed_local_engine_is_loaded_again_only_for_a_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = []

    def load(choice: settings.Settings, report: Callable[[str], None]) -> protocol.Engine:
        loads.append(choice)
        if len(loads) == 1:
            raise protocol.ReplyError("No.")
        return protocol.FakeEngine(token_s=0)

    monkeypatch.setattr(local, "load_engine", load)
    made = local.LocalAnswerer()
    for _ in range(3):
        wait_until(made.loading.engine.done)
        with pytest.raises(protocol.ReplyError):
            made.describe()
    assert ask(made, "/echo hello", protocol.Stop()) == ("hello", "stop")
    assert len(loads) == 2
    made.close()

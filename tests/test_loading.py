"""The monolith's engine: loaded once, loaded again only for a question, closed exactly once."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.monolith as monolith
import chatbot_arch.page.replies as replies
import chatbot_arch.page.sidebar as sidebar
import chatbot_arch.page.store as store
import chatbot_arch.settings as settings

MONOLITH = Path(monolith.__file__)
DEADLINE_S = 60
VISITS = 5
NOT_THERE = "There is no such model. Correct CHATBOT_MODEL."


class ClosableEngine(protocol.FakeEngine):
    """An engine that counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__(token_s=0)
        self.closed = 0
        self.may_close = threading.Event()
        self.may_close.set()

    def close(self) -> None:
        self.closed += 1
        assert self.may_close.wait(DEADLINE_S)


class Loads:
    """Stands in for `load_engine`: each load takes the next outcome, the last one for ever."""

    def __init__(self, *outcomes: Callable[[], protocol.Engine]) -> None:
        self.outcomes, self.begun, self.under_way, self.most = outcomes, 0, 0, 0
        self.loaded: list[ClosableEngine] = []
        self.open_when_begun: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def __call__(
        self, choice: settings.Settings, report: Callable[[str], None] = print
    ) -> protocol.Engine:
        with self._lock:
            outcome = self.outcomes[min(self.begun, len(self.outcomes) - 1)]
            self.begun, self.under_way = self.begun + 1, self.under_way + 1
            self.most = max(self.most, self.under_way)
            self.open_when_begun.append(sum(not each.closed for each in self.loaded))
        try:
            assert self.gate.wait(DEADLINE_S)
            loaded = outcome()
            self.loaded.append(loaded)
            return loaded
        finally:
            with self._lock:
                self.under_way -= 1


def fail() -> protocol.Engine:
    raise weights.ModelError(NOT_THERE)


def fail_unforeseen() -> protocol.Engine:
    raise RuntimeError("no memory")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loads]]:
    """Yield what replaces `load_engine`; no reply outlives the test, and no engine."""
    used: list[Loads] = []

    def begin(*outcomes: Callable[[], protocol.Engine]) -> Loads:
        used.append(Loads(*outcomes))
        monkeypatch.setattr(local, "load_engine", used[-1])
        return used[-1]

    st.cache_resource.clear()
    yield begin
    for each in used:
        each.gate.set()
        for loaded in each.loaded:
            loaded.may_close.set()
    for writing in list(replies._writings.values()):
        writing.stop.set()
        assert writing.wait(DEADLINE_S)
    replies._writings.clear()
    st.cache_resource.clear()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_page() -> AppTest:
    return AppTest.from_file(MONOLITH, default_timeout=DEADLINE_S).run()


def ask(page: AppTest, question: str) -> AppTest:
    """Ask, wait for the reply's end, and return the page that shows it."""
    page.chat_input[0].set_value(question).run()
    assert replies.find(page.session_state.conversation_id).wait(DEADLINE_S)
    return page.run()


def said(page: AppTest) -> str:
    """Return what the page says of its model."""
    return page.sidebar.caption[-1].value


def settled(loads: Loads, page: AppTest) -> AppTest:
    """Run a page until nothing loads any more, and as often again as people come by."""
    wait_until(lambda: "still loading" not in said(page.run()))
    for _ in range(VISITS):
        page.run()
        open_page()
    wait_until(lambda: not loads.under_way)
    return page.run()


def begin_reply(kept: store.Store, name: str, question: str) -> replies.Writing:
    """Ask as a page of its own does, at once."""
    kept.keep_draft(name, "somebody", question, {})
    turn = store.Turn(id=store.new_id(), conversation_id=name, position=0, question=question)
    writing = replies.Writing(monolith.monolith_llm_response, kept, turn)
    replies.start(writing)
    return writing


# A load that fails


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [(fail, NOT_THERE), (fail_unforeseen, "could not be loaded: no memory")],
    ids=["foreseen", "unforeseen"],
)
def test_failed_load_is_told_and_kept_until_somebody_asks(
    use: Callable[..., Loads], outcome: Callable[[], protocol.Engine], sentence: str
) -> None:
    loads = use(outcome)
    page = settled(loads, open_page())
    assert sentence in said(page)
    assert loads.begun == 1
    ask(page, "hello")
    assert sentence in page.error[0].value
    settled(loads, page)
    assert loads.begun == 2


def test_load_that_failed_once_is_made_good_by_a_question(use: Callable[..., Loads]) -> None:
    loads = use(fail, ClosableEngine)
    page = settled(loads, open_page())
    assert NOT_THERE in said(page)
    ask(page, "/echo alive")
    assert page.session_state.conversation_history["generated_responses"] == ["alive"]
    assert said(settled(loads, page)).startswith("known-text on fake")
    assert (loads.begun, loads.loaded[0].closed) == (2, 0)


def test_many_questions_after_a_failed_load_begin_one_load(use: Callable[..., Loads]) -> None:
    loads = use(fail, ClosableEngine)
    wait_until(lambda: NOT_THERE in sidebar.describe_model(monolith.describe_model)[0])
    loads.gate.clear()
    kept = store.Store("sqlite://")
    asked = [begin_reply(kept, f"talk {number}", "/echo alive") for number in range(20)]
    wait_until(lambda: all("still loading" in replies.look(each).status for each in asked))
    said, look_again = sidebar.describe_model(monolith.describe_model)
    assert ("still loading" in said, look_again) == (True, True)
    loads.gate.set()
    for each in asked:
        assert each.wait(DEADLINE_S)
    assert {replies.look(each).text for each in asked} == {"alive"}
    assert (loads.begun, loads.most) == (2, 1)


def test_bad_setting_is_told_and_a_better_one_is_used(
    use: Callable[..., Loads], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = use(ClosableEngine)
    monkeypatch.setenv("CHATBOT_ENGINE", "warp")
    assert "CHATBOT_ENGINE='warp'" in open_page().error[0].value
    monkeypatch.delenv("CHATBOT_ENGINE")
    assert said(settled(loads, open_page())).startswith("known-text on fake")
    assert loads.begun == 1


# An engine that died


def test_died_engine_is_closed_once_and_replaced_for_the_next_question(
    use: Callable[..., Loads],
) -> None:
    loads = use(ClosableEngine)
    page = ask(settled(loads, open_page()), "/die")
    assert "has died" in page.error[0].value
    settled(loads, page)
    assert "has died" in said(page)
    assert (loads.begun, loads.loaded[0].closed) == (1, 0)
    ask(page, "/echo alive")
    assert page.session_state.conversation_history["generated_responses"] == ["alive"]
    assert [each.closed for each in loads.loaded] == [1, 0]
    assert loads.open_when_begun == [0, 0]


def test_died_engine_is_closed_once_when_many_pages_notice_at_once(
    use: Callable[..., Loads],
) -> None:
    loads = use(ClosableEngine)
    ask(settled(loads, open_page()), "/die")
    died = loads.loaded[0]
    died.may_close.clear()
    pages = [open_page() for _ in range(VISITS)]  # each runs the script, and so its lines, anew
    for page in pages:
        page.chat_input[0].set_value("/echo alive").run()
    wait_until(lambda: died.closed)
    assert "has died" in said(open_page())  # a page does not wait for the closing
    assert loads.begun == 1
    died.may_close.set()
    for page in pages:
        assert replies.find(page.session_state.conversation_id).wait(DEADLINE_S)
        heard = page.run().session_state.conversation_history["generated_responses"]
        assert heard == ["alive"]
    assert [each.closed for each in loads.loaded] == [1, 0]
    assert (loads.begun, loads.most) == (2, 1)


def test_died_engine_is_closed_once_when_many_threads_notice_at_once(
    use: Callable[..., Loads],
) -> None:
    loads = use(ClosableEngine)
    kept = store.Store("sqlite://")
    assert begin_reply(kept, "a talk", "/die").wait(DEADLINE_S)
    asked = [begin_reply(kept, f"talk {number}", "/echo alive") for number in range(20)]
    for each in asked:
        assert each.wait(DEADLINE_S)
    assert {replies.look(each).text for each in asked} == {"alive"}
    assert [each.closed for each in loads.loaded] == [1, 0]
    assert (loads.begun, loads.most) == (2, 1)


def test_died_engine_that_cannot_be_closed_is_replaced_all_the_same(
    use: Callable[..., Loads], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = use(ClosableEngine)
    page = ask(settled(loads, open_page()), "/die")

    def fail_to_close() -> None:
        loads.loaded[0].closed += 1
        raise RuntimeError("stuck")

    monkeypatch.setattr(loads.loaded[0], "close", fail_to_close)
    ask(page, "/echo alive")
    assert page.session_state.conversation_history["generated_responses"] == ["alive"]
    assert [each.closed for each in loads.loaded] == [1, 0]


# The end


def test_cleared_cache_closes_its_engine_once(use: Callable[..., Loads]) -> None:
    loads = use(ClosableEngine)
    settled(loads, open_page())
    st.cache_resource.clear()  # as Streamlit's menu does
    settled(loads, open_page())
    assert [each.closed for each in loads.loaded] == [1, 0]


def test_closed_loading_loads_no_engine_that_nobody_closes(use: Callable[..., Loads]) -> None:
    loads = use(ClosableEngine)
    held = local.LocalAnswerer()  # by a reply under way, while its page's menu clears the cache
    only = held.loading.engine.result(DEADLINE_S)
    held.close()
    only.check = fail  # as a closed engine says
    assert held.renew().engine.result(DEADLINE_S) is only
    assert loads.begun == 1


ENDS = """
import sys
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.local as local
import chatbot_arch.monolith as monolith

class Loud(protocol.FakeEngine):
    def close(self):
        print("closed", flush=True)

local.load_engine = lambda choice, report: Loud()
answerer = monolith.get_answerer()

def is_loading():
    try:
        monolith.describe_model()
    except protocol.NotReadyError:
        return True

"""


@pytest.mark.parametrize(
    "then",
    [
        "while is_loading(): pass",
        "import streamlit as st; answerer.loading.engine.result(); st.cache_resource.clear()",
        "",
    ],
    ids=["loaded", "cleared", "loading"],
)
def test_engine_is_closed_once_when_its_process_ends(then: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", ENDS + then],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S * 2,
    )
    assert run.stdout == "closed\n"

"""Both pages without a browser: what a person does, and what must not happen."""

import html
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from conftest import serve_backend
from streamlit.testing.v1 import AppTest

import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.page.replies as replies
import chatbot_arch.page.session as session
import chatbot_arch.page.store as store
import chatbot_arch.page.turns as turns
import chatbot_arch.settings as settings
import chatbot_arch.utils as utils

PACKAGE = Path(utils.__file__).parent
SCRIPTS = {"monolith": "monolith.py", "microservices": "frontend.py"}
DEADLINE_S = 30


class CountingEngine(protocol.FakeEngine):
    """Answer with the number of the request, after `turns_left_out` turns were dropped.

    A question that begins with "slowly" is answered with words until it is stopped.
    """

    def __init__(self) -> None:
        super().__init__(token_s=0)
        self.asked: list[list[protocol.Message]] = []
        self.options: list[protocol.Options] = []
        self.under_way = 0
        self.turns_left_out = 0
        self.error: BaseException | None = None
        self.error_after = 0  # pieces

    def fit(self, conversation: list, options: protocol.Options) -> tuple[list, int]:
        return conversation, self.turns_left_out

    def stream(self, conversation: list, options: protocol.Options, stop: protocol.Stop):
        self.asked.append(conversation)
        self.options.append(options)
        number = len(self.asked)
        question = conversation[-1]["content"]
        slowly, reply = question.startswith("slowly"), f"reply {number}"
        said = (f"word{index} " for index in range(10_000)) if slowly else iter([reply])
        if question == "say nothing":
            said = iter(())
        self.under_way += 1
        try:
            for index, piece in enumerate(said):
                if self.error and index == self.error_after:
                    raise self.error
                yield piece
                if slowly and stop.wait(0.01):
                    return protocol.Facts("cancelled", 1, index)
            return protocol.Facts("stop", 1, 1)
        finally:
            self.under_way -= 1


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    """Put a counting engine in the place of whatever the settings choose."""
    counted = CountingEngine()
    monkeypatch.setattr(local, "load_engine", lambda choice, report=None: counted)
    return counted


@pytest.fixture
def backend_url(counting: CountingEngine) -> Iterator[str]:
    """Serve the backend with the counting engine."""
    with serve_backend() as url:
        yield url


@pytest.fixture(params=SCRIPTS)
def page(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    backend_url: str,
    tmp_path: Path,
) -> Iterator[AppTest]:
    """Return the freshly opened page of each architecture, with a database of its own."""
    monkeypatch.setenv("CHATBOT_BACKEND_URL", backend_url)
    monkeypatch.setenv("CHATBOT_DATABASE_URL", f"sqlite:///{tmp_path / 'chats.db'}")
    st.cache_resource.clear()
    st.cache_data.clear()
    opened = open_page(SCRIPTS[request.param])
    yield opened
    monkeypatch.undo()  # so that what could not be saved is saved now
    for writing in list(replies._writings.values()):  # nothing outlives its test
        writing.stop.set()
        assert writing.wait(DEADLINE_S)
    replies._writings.clear()
    wait_until(lambda: not any(each.name == "keep-reply" for each in threading.enumerate()))


def say_nothing(*asked: object) -> protocol.Answer:
    """Answer with no word."""
    yield from ()
    return protocol.Facts("stop")


def open_page(script: str, conversation_id: str = "") -> AppTest:
    """Open a page in a new session, as a new tab or a refresh does."""
    opened = AppTest.from_file(PACKAGE / script, default_timeout=60)
    if conversation_id:
        opened.query_params["conversation"] = conversation_id
    return opened.run()


def reopen(page: AppTest) -> AppTest:
    """Open the page's address in a new session."""
    return open_page(Path(page._script_path).name, page.query_params["conversation"])


def begin(page: AppTest, question: str) -> replies.Writing:
    """Ask, and return the reply under way."""
    page.chat_input[0].set_value(question).run()
    return replies.find(page.session_state.conversation_id)


def ask(page: AppTest, question: str) -> AppTest:
    """Ask, wait for the reply, and return the page at the first run that shows its end."""
    return see_end(page, begin(page, question))


def see_end(page: AppTest, writing: replies.Writing) -> AppTest:
    """Wait for a reply, and return the page at the first run that shows its end."""
    assert writing.wait(DEADLINE_S)
    state = page.session_state
    collected = state["collected"] if "collected" in state else ""  # noqa: SIM401
    return page if collected == writing.turn.id else page.run()


def click(page: AppTest, label: str) -> AppTest:
    return next(each for each in page.button if label in each.label).click().run()


def said(page: AppTest) -> dict[str, list[str]]:
    return page.session_state.conversation_history


def shown(page: AppTest) -> list[tuple[str, str, str]]:
    return [
        (each.question, each.reply, each.state) for each in page.session_state.conversation.turns
    ]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_same_question_twice_is_asked_twice(page: AppTest) -> None:
    ask(page, "hello")
    ask(page, "hello")
    assert said(page) == {
        "past_user_inputs": ["hello", "hello"],
        "generated_responses": ["reply 1", "reply 2"],
    }


def test_same_question_after_clear_is_answered_anew(page: AppTest) -> None:
    ask(page, "hello")
    click(page, "Clear conversation")
    assert said(page) == {"past_user_inputs": [], "generated_responses": []}
    ask(page, "hello")
    assert said(page)["generated_responses"] == ["reply 2"]


def test_model_sees_the_turns_before(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "one")
    ask(page, "two")
    contents = [message["content"] for message in counting.asked[-1]]
    assert contents == ["one", "reply 1", "two"]


def test_second_session_gets_its_own_conversation(page: AppTest) -> None:
    ask(page, "hello")
    other = open_page(Path(page._script_path).name)
    assert said(other)["past_user_inputs"] == []
    ask(other, "hello")
    assert said(other)["generated_responses"] == ["reply 2"]
    assert said(page)["generated_responses"] == ["reply 1"]


def test_click_elsewhere_asks_nothing(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    page.run()
    page.run()
    assert len(counting.asked) == 1
    assert said(page)["generated_responses"] == ["reply 1"]


def test_click_elsewhere_does_not_end_a_reply(page: AppTest, counting: CountingEngine) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: "word5" in replies.look(writing).text)
    page.slider[0].set_value(0.5).run()
    said = replies.look(writing).text
    wait_until(lambda: len(replies.look(writing).text) > len(said))
    assert len(counting.asked) == 1


def test_stop_keeps_what_was_shown_and_stops_the_engine(
    page: AppTest, counting: CountingEngine
) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: "word5" in replies.look(writing).text)
    said = replies.look(writing).text
    click(page.run(), "Stop")
    assert writing.wait(DEADLINE_S)
    page.run()
    [(_, reply, state)] = shown(page)
    assert reply.startswith(said)
    assert state == "stopped"
    assert turns.STOPPED in [caption.value for caption in page.main.caption]
    wait_until(lambda: counting.under_way == 0)
    ask(page, "and now?")
    assert [message["content"] for message in counting.asked[-1]] == ["slowly", reply, "and now?"]


def test_question_during_a_reply_waits_in_the_box(page: AppTest, counting: CountingEngine) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: replies.look(writing).text)
    page.chat_input[0].set_value("too early").run()
    assert "A reply is being written" in page.error[0].value
    assert page.chat_input[0].proto.value == "too early"
    assert len(counting.asked) == 1
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    assert len(said(page.run())["past_user_inputs"]) == 1


@pytest.mark.parametrize("first", ["clear", "stop"])
def test_clear_and_stop_in_either_order_leave_both_conversations_whole(
    page: AppTest, first: str
) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: replies.look(writing).text)
    address = page.query_params["conversation"]
    if first == "stop":
        click(page.run(), "Stop")
    click(page.run(), "Clear conversation")
    assert said(page) == {"past_user_inputs": [], "generated_responses": []}
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    ask(page, "hello")
    assert len(shown(page)) == 1
    [(question, reply, state)] = shown(open_page(Path(page._script_path).name, address))
    assert (question, state) == ("slowly", "stopped")
    assert reply


def test_regenerate_replaces_the_last_reply(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "one")
    ask(page, "two")
    click(page, "Regenerate")
    assert replies.find(page.session_state.conversation_id).wait(DEADLINE_S)
    assert shown(page.run()) == [("one", "reply 1", "done"), ("two", "reply 3", "done")]
    assert [message["content"] for message in counting.asked[-1]] == ["one", "reply 1", "two"]


def test_edit_asks_the_changed_question_instead(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "one")
    ask(page, "two")
    click(page, "Edit")
    area = next(each for each in page.text_area if each.label == "Your question")
    assert area.value == "two"
    area.set_value("three")
    click(page, "Ask this instead")
    assert replies.find(page.session_state.conversation_id).wait(DEADLINE_S)
    assert shown(page.run()) == [("one", "reply 1", "done"), ("three", "reply 3", "done")]


def test_failed_regenerate_leaves_the_reply_there_was(
    page: AppTest, counting: CountingEngine
) -> None:
    ask(page, "one")
    counting.error = protocol.ReplyError("This reply failed.")
    click(page, "Regenerate")
    see_end(page, replies.find(page.session_state.conversation_id))
    assert [error.value for error in page.error] == ["This reply failed."]
    assert shown(page) == [("one", "reply 1", "done")]


def slow_then_failing(counting: CountingEngine, page: AppTest) -> list[tuple[str, str, str]]:
    """Ask something that is answered slowly, stop it, and let the next reply fail in its middle."""
    writing = begin(page, "slowly")
    wait_until(lambda: "word3" in replies.look(writing).text)
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    good = shown(page.run())
    counting.error, counting.error_after = protocol.ReplyError("This reply failed."), 3
    return good


def test_regenerate_that_fails_after_its_first_word_leaves_the_reply_there_was(
    page: AppTest, counting: CountingEngine
) -> None:
    good = slow_then_failing(counting, page)
    click(page, "Regenerate")
    see_end(page, replies.find(page.session_state.conversation_id))
    assert [error.value for error in page.error] == ["This reply failed."]
    assert page.chat_input[0].proto.value == "slowly"
    assert shown(page) == shown(reopen(page)) == good
    counting.error = None
    click(page, "Regenerate")
    again = replies.find(page.session_state.conversation_id)
    wait_until(lambda: "word9" in replies.look(again).text)
    again.stop.set()
    assert again.wait(DEADLINE_S)
    (only,) = shown(page.run())
    assert "word9" in only[1], "stopped by its reader, it takes the old one's place"


def test_edit_that_fails_after_its_first_word_leaves_the_turn_there_was(
    page: AppTest, counting: CountingEngine
) -> None:
    good = slow_then_failing(counting, page)
    click(page, "Edit")
    next(each for each in page.text_area if each.label == "Your question").set_value("slowly now")
    click(page, "Ask this instead")
    see_end(page, replies.find(page.session_state.conversation_id))
    assert [error.value for error in page.error] == ["This reply failed."]
    assert page.chat_input[0].proto.value == "slowly now"
    assert shown(page) == shown(reopen(page)) == good


def test_reply_stays_in_the_store_while_another_is_made_in_its_place(
    page: AppTest, counting: CountingEngine
) -> None:
    good = slow_then_failing(counting, page)
    counting.error = None
    click(page, "Regenerate")
    key, kept = page.session_state.conversation_id, session.get_store()[0]
    writing = replies.find(key)
    wait_until(lambda: "word9" in replies.look(writing).text)
    assert "word9" in replies.look(writing).text, "the page shows it growing"
    (left,) = kept.load(key).turns  # what a page finds after a crash now
    assert (left.question, left.reply, left.state) == good[0]
    assert kept.load(key).draft == "slowly"
    writing.stop.set()
    assert writing.wait(DEADLINE_S)


def test_reply_that_ends_with_its_process_takes_no_place(
    page: AppTest, counting: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = slow_then_failing(counting, page)
    counting.error = None
    click(page, "Regenerate")
    writing = replies.find(page.session_state.conversation_id)
    wait_until(lambda: "word3" in replies.look(writing).text)
    ended = type("Ended", (), {"join": lambda self: None})()
    monkeypatch.setattr(threading, "main_thread", lambda: ended)
    replies.end_with_process()
    monkeypatch.undo()
    assert writing.wait(DEADLINE_S)
    assert shown(reopen(page)) == good


def test_turn_of_another_process_and_the_reply_that_came_second_both_stay(
    page: AppTest, counting: CountingEngine
) -> None:
    ask(page, "one")
    key, kept = page.session_state.conversation_id, session.get_store()[0]
    gate, said = threading.Event(), counting.stream
    counting.stream = lambda *asked: (gate.wait(DEADLINE_S), (yield from said(*asked)))[1]
    writing = begin(page, "mine")
    theirs = store.Turn(id="theirs", position=1, question="theirs", reply="Yes.", state="done")
    kept.begin_turn(key, theirs)
    gate.set()
    assert writing.wait(DEADLINE_S)
    assert not page.run().error
    both = ["one", "theirs", "mine"]
    assert [question for question, _, _ in shown(page)] == both
    assert [question for question, _, _ in shown(ask(page, "next"))] == [*both, "next"]
    assert [question for question, _, _ in shown(reopen(page))] == [*both, "next"]


def test_reply_whose_turn_was_replaced_elsewhere_becomes_a_turn_of_its_own(page: AppTest) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: "word3" in replies.look(writing).text)
    key, kept = page.session_state.conversation_id, session.get_store()[0]
    theirs = store.Turn(id="theirs", position=0, question="slowly", reply="Yes.", state="done")
    kept.begin_turn(key, theirs, replaces=writing.turn.id)
    wait_until(lambda: len(kept.load(key).turns) == 2)
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    assert [state for _, _, state in shown(page.run())] == ["done", "stopped"]
    assert not page.error


@pytest.mark.parametrize("step", ["begin_turn", "save_turn"])
def test_save_that_fails_as_nobody_foresaw_ends_the_reply_and_loses_nothing(
    page: AppTest, counting: CountingEngine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ask(page, "one")
    real, broken = getattr(store.Store, step), threading.Event()

    def fail(*arguments: object, **named: object) -> None:
        if broken.is_set():
            raise OverflowError("nobody foresaw this")
        real(*arguments, **named)

    monkeypatch.setattr(store.Store, step, fail)
    if step == "begin_turn":
        broken.set()
    writing = begin(page, "slowly")
    wait_until(lambda: "word3" in replies.look(writing).text)
    broken.set()
    wait_until(lambda: "word9" in replies.look(writing).text)
    writing.stop.set()
    assert writing.wait(DEADLINE_S), "or its conversation would be being written for ever"
    assert "could not be saved" in page.run().error[0].value
    assert "word9" in shown(page)[1][1]
    broken.clear()
    ask(page, "three")
    wait_until(lambda: not page.run().error)
    assert [question for question, _, _ in shown(page)] == ["one", "slowly", "three"]
    stored = {question: reply for question, reply, _ in shown(reopen(page))}
    assert stored.keys() == {"one", "slowly", "three"}
    assert "word9" in stored["slowly"]


def test_reply_that_cannot_be_saved_stays_on_its_page_and_blocks_nothing(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.Store.begin_turn

    def fail(self: store.Store, key: str, turn: store.Turn, **named: object) -> None:
        if turn.question == "never":
            raise store.StoreError("This one cannot be saved.")
        real(self, key, turn, **named)

    monkeypatch.setattr(store.Store, "begin_turn", fail)
    ask(page, "one")
    ask(page, "never")
    ask(page, "three")
    assert "This one cannot be saved." in page.error[0].value
    assert [question for question, _, _ in shown(page)] == ["one", "never", "three"]
    assert [question for question, _, _ in shown(page.run())] == ["one", "never", "three"]
    conversation, kept = page.session_state.conversation, session.get_store()[0]
    assert len(kept.load(conversation.id).turns) == 2
    saved = turns.latest(kept, conversation, page.session_state.unsaved)  # what a download holds
    assert [turn.question for turn in saved.turns] == ["one", "never", "three"]
    page.chat_input[0].set_value("").run()
    assert said(page)["past_user_inputs"] == ["one", "never", "three"]


def test_end_that_could_not_be_saved_is_saved_later_though_nobody_looks(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise store.StoreError("The database is locked.")

    writing = begin(page, "slowly")
    key, kept = page.session_state.conversation_id, session.get_store()[0]
    wait_until(lambda: kept.load(key).turns)
    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "save_turn", fail)
        writing.stop.set()
        assert writing.wait(DEADLINE_S)
        assert kept.load(key).turns[0].state == "writing"
        monkeypatch.setattr(replies, "FINISHED_KEPT", 1)
        for number in range(4):  # newer ones do not push it out of the list
            turn = store.Turn(
                id=f"t{number}", conversation_id=f"c{number}", position=0, question="?"
            )
            other = replies.Writing(say_nothing, kept, turn)
            replies.reserve(other)
            other.end()
    wait_until(lambda: kept.load(key).turns[0].state == "stopped")


class Panic(BaseException):
    """What a library in Rust raises when it fails: no `Exception`."""


def test_reply_that_ends_in_a_panic_blocks_nothing(page: AppTest, counting: CountingEngine) -> None:
    counting.error = Panic()
    ask(page, "hello")
    assert not page.exception
    assert page.error
    assert page.chat_input[0].proto.value == "hello"
    counting.error = None
    ask(page, "and now?")
    assert [question for question, _, _ in shown(page)] == ["and now?"]


def test_question_that_is_asked_as_the_one_before_fails_is_answered(
    page: AppTest, counting: CountingEngine
) -> None:
    gate, said = threading.Event(), counting.stream
    counting.stream = lambda *asked: (gate.wait(DEADLINE_S), (yield from said(*asked)))[1]
    counting.error = protocol.ReplyError("This reply failed.")
    writing = begin(page, "hello")
    gate.set()
    assert writing.wait(DEADLINE_S)  # and the page has not looked yet
    counting.error = None
    ask(page, "and now?")
    assert [question for question, _, _ in shown(page)] == ["and now?"]
    assert page.chat_input[0].proto.value == "hello", "what failed can be asked again"


def test_reply_without_a_thread_is_a_sentence_and_blocks_nothing(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if self.name == "reply":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", fail)
        page.chat_input[0].set_value("hello").run()
    assert not page.exception
    assert "can't start new thread" in page.error[0].value
    assert page.chat_input[0].proto.value == "hello"
    ask(page, "hello")
    assert [question for question, _, _ in shown(page)] == ["hello"]


def test_who_failed_to_prepare_does_not_throw_out_who_came_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def writing_of(number: int) -> replies.Writing:
        turn = store.Turn(id=f"t{number}", conversation_id="next", position=0, question="?")
        return replies.Writing(say_nothing, store.Store("sqlite://"), turn)

    first, second, came = writing_of(1), writing_of(2), []
    end = replies.Writing.end

    def end_slowly(self: replies.Writing) -> None:
        end(self)
        thread = threading.Thread(target=lambda: came.append(replies.reserve(second)))
        thread.start()
        thread.join(0.2)  # it comes now, or once it may

    replies.reserve(first)
    monkeypatch.setattr(replies.Writing, "end", end_slowly)
    replies.give_back(first, None)
    wait_until(lambda: came)
    assert replies.find("next") is second
    end(second)


def test_only_one_of_those_who_ask_at_once_changes_anything() -> None:
    gate, prepared, refused = threading.Barrier(8), [], []

    def respond(conversation: list, options: protocol.Options, stop: protocol.Stop):
        yield from ()
        stop.wait(DEADLINE_S)
        return protocol.Facts("cancelled")

    def ask_at_once(number: int) -> None:
        turn = store.Turn(id=f"t{number}", conversation_id="at once", position=0, question="?")
        writing = replies.Writing(respond, store.Store("sqlite://"), turn)
        gate.wait(DEADLINE_S)
        try:
            replies.start(writing, lambda: prepared.append(number))
        except replies.StillWritingError:
            refused.append(number)

    for _ in range(20):
        asking = [threading.Thread(target=ask_at_once, args=(number,)) for number in range(8)]
        for each in asking:
            each.start()
        for each in asking:
            each.join(DEADLINE_S)
        assert len(prepared) == 1
        assert len(refused) == 7
        winner = replies.find("at once")
        assert winner.turn.id == f"t{prepared[0]}"
        winner.stop.set()
        assert winner.wait(DEADLINE_S)
        prepared.clear()
        refused.clear()


def test_reply_that_could_not_be_prepared_leaves_the_one_before() -> None:
    turn = store.Turn(id="t", conversation_id="prepared", position=0, question="?")
    first = replies.Writing(say_nothing, store.Store("sqlite://"), turn)
    replies.start(first)
    assert first.wait(DEADLINE_S)

    def fail() -> None:
        raise store.StoreError("The database is locked.")

    second = replies.Writing(say_nothing, store.Store("sqlite://"), turn)
    with pytest.raises(store.StoreError, match="locked"):
        replies.start(second, fail)
    assert replies.find("prepared") is first
    assert second.wait(0), "a page that looks at it meanwhile must not wait for ever"


def test_blank_question_is_ignored(page: AppTest, counting: CountingEngine) -> None:
    page.chat_input[0].set_value("   ").run()
    assert not counting.asked
    assert not page.error


def test_too_long_question_is_a_sentence_and_kept(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    counting.error = protocol.TooLongError("9000 tokens, and 8144 fit. Shorten it.")
    ask(page, "too long")
    assert [error.value for error in page.error] == ["9000 tokens, and 8144 fit. Shorten it."]
    assert page.chat_input[0].proto.value == "too long"
    assert said(page)["past_user_inputs"] == ["hello"]
    counting.error = None
    ask(page, "too long")
    assert not page.error
    assert said(page)["past_user_inputs"] == ["hello", "too long"]


def test_longer_question_than_the_box_takes_is_cut_by_the_box(page: AppTest) -> None:
    assert page.chat_input[0].proto.max_chars == turns.MAX_QUESTION_CHARS


def test_reply_that_fails_in_the_middle_is_kept_marked_and_asked_again(
    page: AppTest, counting: CountingEngine
) -> None:
    counting.error, counting.error_after = protocol.ReplyError("The model failed."), 3
    ask(page, "slowly, please")
    assert [error.value for error in page.error] == ["The model failed."]
    assert shown(page) == [("slowly, please", "word0 word1 word2 ", "failed")]
    assert turns.BROKEN_OFF in [caption.value for caption in page.main.caption]
    assert said(page) == {"past_user_inputs": [], "generated_responses": []}
    assert page.chat_input[0].proto.value == "slowly, please"
    counting.error = None
    writing = begin(page, "slowly, please")
    wait_until(lambda: "word9" in replies.look(writing).text)
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    assert [state for _, _, state in shown(page.run())] == ["stopped"]
    assert [message["content"] for message in counting.asked[-1]] == ["slowly, please"]


def test_page_says_that_turns_were_left_out(page: AppTest, counting: CountingEngine) -> None:
    ask(page, "hello")
    assert not [each for each in page.main.caption if "left out" in each.value]
    counting.turns_left_out = 3
    ask(page, "hello")
    said = [each.value for each in page.main.caption if "left out" in each.value]
    assert said[0].endswith("Earlier turns left out: 3.")


def test_options_reach_the_engine_and_stay_with_the_conversation(
    page: AppTest, counting: CountingEngine
) -> None:
    page.sidebar.text_area[0].set_value("Be brief.")
    page.sidebar.slider[0].set_value(0.5)
    page.sidebar.slider[1].set_value(0.9)
    page.sidebar.number_input[0].set_value(7)
    ask(page.run(), "hello")
    assert counting.asked[0][0] == {"role": "system", "content": "Be brief."}
    chosen = counting.options[0]
    assert (chosen.temperature, chosen.top_p, chosen.max_new_tokens) == (0.5, 0.9, 7)
    again = reopen(page)
    assert again.sidebar.text_area[0].value == "Be brief."
    assert again.sidebar.slider[0].value == 0.5
    assert again.sidebar.number_input[0].value == 7
    click(again, "Clear conversation")
    assert again.sidebar.slider[0].value == 0.0


def set_options(page: AppTest) -> None:
    """Set every option in the sidebar to a value of its own."""
    page.sidebar.text_area[0].set_value("Be brief.")
    page.sidebar.slider[0].set_value(0.5)
    page.sidebar.slider[1].set_value(0.9)
    page.sidebar.number_input[0].set_value(7)
    page.run()


def test_browser_that_missed_a_run_shows_the_options_of_the_conversation(page: AppTest) -> None:
    set_options(page)
    again = reopen(ask(page, "hello")).run()  # a browser need not draw the first of two runs
    area, number = again.sidebar.text_area[0], again.sidebar.number_input[0]
    temperature, top_p = again.sidebar.slider
    assert [area.proto.default, number.proto.default] == ["Be brief.", 7]
    assert [*temperature.proto.default, *top_p.proto.default] == [0.5, 0.9]


def test_options_and_thumbs_outlive_a_run_that_fails_before_they_are_drawn(
    page: AppTest, counting: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(page, "hello")
    page.feedback[0].set_value(1).run()
    set_options(page)

    def fail(*arguments: object) -> None:
        raise settings.ChatbotError("Nothing more is drawn.")

    with monkeypatch.context() as broken:
        broken.setattr(utils, "draw_turns", fail)
        assert "Nothing more" in page.run().error[0].value
    ask(page, "and now?")
    chosen = counting.options[-1]
    assert (chosen.temperature, chosen.top_p, chosen.max_new_tokens) == (0.5, 0.9, 7)
    assert counting.asked[-1][0] == {"role": "system", "content": "Be brief."}
    assert page.sidebar.slider[1].value == 0.9
    [turn, _] = session.get_store()[0].load(page.session_state.conversation_id).turns
    assert turn.rating == 1
    assert 1 in [thumbs.value for thumbs in page.feedback]


def test_sidebar_tells_what_answered_and_what_it_took(page: AppTest) -> None:
    ask(page, "hello")
    captions = html.unescape(" ".join(caption.value for caption in page.sidebar.caption))
    assert "known-text on fake" in captions
    assert "first word after" in captions
    assert "tokens: 1, and 1 in the prompt" in captions


def test_facts_that_no_page_can_count_with_break_nothing(page: AppTest) -> None:
    ask(page, "one")
    (turn,) = page.session_state.conversation.turns
    facts = turn.facts | {"reply_tokens": 10**400, "prompt_tokens": 10**400, "first_s": 1e308}
    session.get_store()[0].save_turn(turn.id, facts=facts)  # as an older file may have brought them
    again = reopen(page)
    assert not again.exception
    assert "1000000000" in " ".join(caption.value for caption in again.sidebar.caption)


def test_conversation_is_there_again_in_a_new_session(page: AppTest) -> None:
    ask(page, "one")
    ask(page, "two")
    assert shown(reopen(page)) == [("one", "reply 1", "done"), ("two", "reply 2", "done")]


def test_refresh_in_mid_reply_shows_the_part_and_goes_on(
    page: AppTest, counting: CountingEngine
) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: "word5" in replies.look(writing).text)
    said = replies.look(writing).text
    again = reopen(page)
    bubbles = [each.proto.json_args for each in again.get("component_instance")]
    assert len(bubbles) == 2
    assert said.strip() in bubbles[1]
    click(again, "Stop")
    assert writing.wait(DEADLINE_S)
    assert len(counting.asked) == 1
    assert shown(again.run())[0][2] == "stopped"
    assert shown(page.run())[0][2] == "stopped"


def test_reply_of_a_killed_process_is_broken_off_and_can_be_asked_again(page: AppTest) -> None:
    ask(page, "hello")
    kept = session.get_store()[0]
    key = page.session_state.conversation_id
    left = store.Turn(id="left", conversation_id=key, position=1, question="and?", reply="Once up")
    kept.begin_turn(key, left)
    with_life = reopen(page)
    assert "Being written by another server ..." in [each.value for each in with_life.main.caption]
    kept.save_turn("left", reply="Once upon")
    wait_until(lambda: not turns.lives_elsewhere(kept.load(key).turns[-1]))
    after = reopen(page)
    assert turns.BROKEN_OFF in [each.value for each in after.main.caption]
    assert shown(after)[1] == ("and?", "Once upon", "writing")
    click(after, "Regenerate")
    assert replies.find(key).wait(DEADLINE_S)
    assert shown(after.run())[1] == ("and?", "reply 2", "done")


def test_draft_of_a_killed_process_is_back_in_the_box(page: AppTest) -> None:
    ask(page, "hello")
    key = page.session_state.conversation_id
    session.get_store()[0].keep_draft(key, "me", "what was I asking?", {})
    assert reopen(page).chat_input[0].proto.value == "what was I asking?"


def test_unknown_address_is_a_sentence_and_a_new_conversation(page: AppTest) -> None:
    lost = open_page(Path(page._script_path).name, "no-such-conversation")
    assert "No conversation has this address" in lost.error[0].value
    ask(lost, "hello")
    assert len(shown(lost)) == 1
    assert lost.query_params["conversation"] != "no-such-conversation"


def test_conversations_are_listed_renamed_and_deleted(page: AppTest) -> None:
    ask(page, "first talk")
    first = page.query_params["conversation"]
    click(page, "Clear conversation")
    ask(page, "second talk")
    page.sidebar.text_input[0].set_value("Another name")
    click(page, "Rename")
    labels = [each.label for each in page.sidebar.button]
    assert labels[:2] == ["Another name", "first talk"]
    click(page, "first talk")
    assert page.query_params["conversation"] == first
    assert shown(page)[0][0] == "first talk"
    click(page, "Delete this conversation")
    assert shown(page) == []
    labels = [each.label for each in page.sidebar.button]
    assert "Another name" in labels
    assert "first talk" not in labels


def test_question_after_clear_is_not_asked_in_the_conversation_that_was_left(page: AppTest) -> None:
    ask(page, "first talk")
    first = page.query_params["conversation"]
    click(page, "Clear conversation")
    page.query_params["conversation"] = first  # as sent before the browser heard of the new one
    ask(page, "second talk")
    assert [question for question, _, _ in shown(page)] == ["second talk"]
    assert page.query_params["conversation"] != first
    page.query_params["conversation"] = first  # as the browser's way back sends
    assert [question for question, _, _ in shown(page.run())] == ["first talk"]


def test_question_sent_together_with_clear_begins_the_new_conversation(page: AppTest) -> None:
    ask(page, "first talk")
    next(button for button in page.button if "Clear" in button.label).click()
    ask(page, "second talk")
    assert [question for question, _, _ in shown(page)] == ["second talk"]


def test_other_browsers_do_not_see_the_list(page: AppTest) -> None:
    ask(page, "a secret")
    other = open_page(Path(page._script_path).name)  # without the first one's cookie
    assert "a secret" not in [each.label for each in other.sidebar.button]


def test_thumb_is_kept_with_the_turn(page: AppTest) -> None:
    ask(page, "hello")
    turn = page.session_state.conversation.turns[0]
    page.feedback[0].set_value(1).run()
    assert session.get_store()[0].load(turn.conversation_id).turns[0].rating == 1
    assert reopen(page).feedback[0].value == 1


def test_no_database_is_said_once_and_the_chat_goes_on(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_DATABASE_URL", "sqlite:////proc/no/place/chats.db")
    st.cache_resource.clear()
    alone = open_page(Path(page._script_path).name)
    assert "in memory only" in alone.error[0].value
    ask(alone, "hello")
    assert not alone.error
    ask(alone, "hello")
    assert len(shown(alone)) == 2
    assert len(shown(reopen(alone))) == 2


def test_database_that_fails_keeps_the_question(
    page: AppTest, monkeypatch: pytest.MonkeyPatch, counting: CountingEngine
) -> None:
    ask(page, "hello")

    def fail(*arguments: object, **named: object) -> None:
        raise store.StoreError("The database is locked. Ask again in a moment.")

    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "keep_draft", fail)
        page.chat_input[0].set_value("and now?").run()
        assert [error.value for error in page.error] == [
            "The database is locked. Ask again in a moment."
        ]
        assert page.chat_input[0].proto.value == "and now?"
    assert len(counting.asked) == 1
    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "begin_turn", fail)
        ask(page, "and now?")
        assert "could not be saved" in page.error[0].value
        assert shown(page)[1] == ("and now?", "reply 2", "done")
    assert len(page.get("component_instance")) == 4
    wait_until(lambda: not page.run().error)  # it is saved as soon as that can be
    assert [question for question, _, _ in shown(ask(reopen(page), "and then?"))] == [
        "hello",
        "and now?",
        "and then?",
    ]


def test_database_that_fails_at_the_list_leaves_options_and_the_box(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(page, "hello")
    page.slider[0].set_value(0.5).run()

    def fail(*arguments: object) -> None:
        raise store.StoreError("The database is locked. Ask again in a moment.")

    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "list_conversations", fail)
        page.run()
        assert [error.value for error in page.sidebar.error] == [
            "The database is locked. Ask again in a moment."
        ]
        assert page.slider[0].value == 0.5
    ask(page, "and now?")
    assert not page.exception
    assert page.slider[0].value == 0.5
    assert page.number_input[0].value is None


def test_database_that_fails_at_opening_does_not_say_that_the_conversation_is_gone(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(page, "hello")

    def fail(*arguments: object) -> None:
        raise store.StoreError("The database is locked. Ask again in a moment.")

    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "load", fail)
        late = reopen(page)
        assert [error.value for error in late.error] == [
            "The database is locked. Ask again in a moment."
        ]
        late.chat_input[0].set_value("and now?").run()
        assert late.chat_input[0].proto.value == "and now?"
    assert late.query_params == page.query_params
    assert [question for question, _, _ in shown(late.run())] == ["hello"]
    assert not late.error, "what is over is not said any longer"


def test_options_and_draft_of_a_conversation_that_could_not_be_read_are_not_lost(
    page: AppTest, counting: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.slider[0].set_value(0.5).run()
    ask(page, "hello")
    kept, key = session.get_store()[0], page.session_state.conversation_id
    kept.keep_draft(key, "somebody", "and now?", kept.load(key).options)

    def fail(*arguments: object) -> None:
        raise store.StoreError("The database is locked. Ask again in a moment.")

    with monkeypatch.context() as broken:
        broken.setattr(store.Store, "load", fail)
        late = reopen(page)
        assert late.slider[0].value == 0.0
    late.run()
    assert late.slider[0].value == 0.5
    assert late.chat_input[0].proto.value == "and now?"
    ask(late, "and now?")
    assert counting.options[-1].temperature == 0.5
    assert kept.load(key).options["temperature"] == 0.5


def test_reply_that_no_page_looks_at_is_saved_while_it_grows(page: AppTest) -> None:
    writing = begin(page, "slowly")
    key, kept = page.session_state.conversation_id, session.get_store()[0]
    wait_until(lambda: kept.load(key).turns)
    first = kept.load(key).turns[0]
    wait_until(lambda: len(kept.load(key).turns[0].reply) > len(first.reply))
    wait_until(lambda: kept.load(key).turns[0].saved_at > first.saved_at)
    writing.stop.set()


def test_question_during_a_reply_leaves_its_draft(page: AppTest, counting: CountingEngine) -> None:
    counting.first_token_s = 0
    gate = threading.Event()
    said = counting.stream
    counting.stream = lambda *asked: (gate.wait(DEADLINE_S), (yield from said(*asked)))[1]
    writing = begin(page, "the first")
    page.chat_input[0].set_value("too early").run()
    assert "A reply is being written" in page.error[0].value
    kept = session.get_store()[0].load(page.session_state.conversation_id)
    gate.set()
    assert kept.draft == "the first"
    assert writing.wait(DEADLINE_S)


def test_conversation_that_another_tab_deleted_leaves_no_turn_behind(page: AppTest) -> None:
    writing = begin(page, "slowly")
    wait_until(lambda: "word5" in replies.look(writing).text)
    session.get_store()[0].delete(page.session_state.conversation_id)
    writing.stop.set()
    assert writing.wait(DEADLINE_S)
    page.run()
    assert shown(page) == []
    assert "No conversation has this address" in page.error[0].value


def test_emptied_system_prompt_reaches_the_engine_as_none(
    page: AppTest, counting: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_SYSTEM_PROMPT", "Be brief.")
    anew = open_page(Path(page._script_path).name)
    ask(anew, "hello")
    next(box for box in anew.text_area if box.label == "System prompt").set_value("")
    ask(anew, "and now?")
    assert [asked[0]["role"] for asked in counting.asked] == ["system", "user"]


def test_engine_is_loaded_once_for_all_clicks_and_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = []

    def load(choice: settings.Settings, report: object = None) -> protocol.Engine:
        loads.append(choice)
        return protocol.FakeEngine(token_s=0)

    monkeypatch.setattr(local, "load_engine", load)
    st.cache_resource.clear()
    for _ in range(2):
        page = open_page("monolith.py")
        ask(page, "hello")
        click(page, "Clear conversation")
    assert len(loads) == 1


def test_engine_that_died_is_loaded_anew_for_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "load_engine", lambda choice, report=None: protocol.FakeEngine())
    st.cache_resource.clear()
    page = ask(open_page("monolith.py"), "/die")
    assert "has died" in page.error[0].value
    assert shown(ask(page, "/echo alive"))[0][1] == "alive"


def test_reply_without_a_word_is_explained(page: AppTest) -> None:
    ask(page, "say nothing")
    assert shown(page) == [("say nothing", "", "done")]
    assert any("before its first word" in caption.value for caption in page.caption)

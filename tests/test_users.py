"""What the virtual user has in common with a browser: timers, and whose run it waits for."""

import json
import time

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

import chatbot_arch.measure.users as users

PAUSE_S = 0.35  # of a page that says nothing


class ScriptedPage:
    """A page that says what it is told to, whatever it is sent; None is a pause."""

    def __init__(self, *script: ForwardMsg | None) -> None:
        self.script, self.sent = list(script), []
        self.silent_until = 0.0

    def send(self, state: ClientState) -> None:
        self.sent.append((time.monotonic(), state))

    def receive(self, timeout_s: float) -> ForwardMsg | None:
        if self.script and self.script[0] is None:
            self.script.pop(0)
            self.silent_until = max(time.monotonic(), self.silent_until) + PAUSE_S
        left_s = self.silent_until - time.monotonic()
        if left_s > timeout_s or not self.script:
            time.sleep(max(0, timeout_s))
            return None
        time.sleep(max(0, left_s))
        return self.script.pop(0)


def begin(*parts: str) -> ForwardMsg:
    message = ForwardMsg()
    message.new_session.name = "page"
    message.metadata.run.fragment_ids.extend(parts)
    return message


def end(status: int = ForwardMsg.FINISHED_SUCCESSFULLY) -> ForwardMsg:
    return ForwardMsg(script_finished=status)


def again(part: str = "reply", interval_s: float = 0.1) -> ForwardMsg:
    message = ForwardMsg()
    message.auto_rerun.fragment_id, message.auto_rerun.interval = part, interval_s
    return message


def stop(part: str = "reply") -> ForwardMsg:
    message = ForwardMsg()
    message.stop_auto_rerun.fragment_ids.append(part)
    return message


def bubble(key: str, text: str, is_user: bool = False) -> ForwardMsg:
    message = ForwardMsg()
    drawn = message.delta.new_element.component_instance
    drawn.id, drawn.json_args = key, json.dumps({"message": text, "isUser": is_user})
    return message


@pytest.mark.parametrize(
    "script",
    [
        [begin(), again(), None, end(), begin(), end()],
        [begin(), again(), end(), None, stop(), begin("other"), end()],
        [begin(), again(), end(), begin("reply"), None, end(), begin(), end()],
    ],
    ids=["run under way", "stopped", "own run under way"],
)
def test_part_is_run_again_from_when_it_was_asked_for_until_it_is_not(
    script: list[ForwardMsg | None],
) -> None:
    page, started = ScriptedPage(*script), time.monotonic()
    list(users.watch(page, timeout_s=30))
    assert page.script == []
    assert {(state.fragment_id, state.is_auto_rerun) for _, state in page.sent} == {("reply", True)}
    sent_s = [moment - started for moment, _ in page.sent]
    assert len(sent_s) == 3  # after 0.1, 0.2 and 0.3 s of 0.35
    assert sent_s == sorted(sent_s)
    assert sent_s[0] >= 0.1


def test_part_that_is_asked_for_again_keeps_its_time() -> None:
    asked = again("reply", 0.5)
    page = ScriptedPage(begin(), asked, None, asked, None, end(), begin(), end())
    list(users.watch(page, timeout_s=30))
    assert [state.fragment_id for _, state in page.sent] == ["reply"]  # at 0.5 s of 0.7


def test_slow_part_is_run_again_and_nobody_waits_for_it() -> None:
    page = ScriptedPage(
        begin(), again("note", 0.6), again("reply", 0.1), None, None, begin(), end()
    )
    list(users.watch(page, timeout_s=30))
    assert [state.fragment_id for _, state in page.sent].count("note") == 1
    rests = ScriptedPage(begin(), again("note", 0.6), end(), bubble("b", "of a later run"))
    list(users.watch(rests, timeout_s=30))
    assert len(rests.script) == 1


def test_page_that_never_rests_is_an_error_in_time() -> None:
    page, started = ScriptedPage(begin(), again(), end()), time.monotonic()
    with pytest.raises(users.PageError, match="did not finish in time"):
        list(users.watch(page, timeout_s=0.5))
    assert 0.5 <= time.monotonic() - started < 5


def test_run_from_before_is_not_taken_for_the_answer() -> None:
    user = users.PageUser("http://127.0.0.1:9", timeout_s=30)
    user._bubbles = dict.fromkeys(("q0", "r0"))
    before = [begin("note"), end(), begin(), bubble("q0", "old", True), bubble("r0", "old"), end()]
    question, words = bubble("q1", "hello", True), [bubble("r1", "Hel"), bubble("r1", "Hello!")]
    user.page = ScriptedPage(*before, begin(), question, *words, words[1], end())
    answer = user.ask("hello")
    assert (answer.text, len(answer.updates_s)) == ("Hello!", 2)
    assert answer.updates_s == (answer.first_s, answer.reply_s)


def test_reply_that_a_late_timer_draws_is_seen() -> None:
    # Streamlit leaves out of a whole run what a part draws again right after it.
    user = users.PageUser("http://127.0.0.1:9", timeout_s=30)
    question = bubble("q1", "hello", True)
    whole = [begin(), question, again(), None, end(ForwardMsg.FINISHED_EARLY_FOR_RERUN)]
    user.page = ScriptedPage(*whole, begin(), end(), begin("reply"), bubble("r1", "Hello!"), end())
    assert user.ask("hello").text == "Hello!"


def test_question_without_a_reply_is_an_error_at_once() -> None:
    user, started = users.PageUser("http://127.0.0.1:9", timeout_s=30), time.monotonic()
    user.page = ScriptedPage(begin(), bubble("q1", "hello", True), end())
    with pytest.raises(users.PageError, match="showed no reply"):
        user.ask("hello")
    assert time.monotonic() - started < 5


def test_late_part_that_ends_early_is_waited_for_no_longer() -> None:
    early = end(ForwardMsg.FINISHED_EARLY_FOR_RERUN)
    page = ScriptedPage(begin(), again(), end(), None, begin(), end(), begin("reply"), early)
    assert len(list(users.watch(page, timeout_s=30))) == 7

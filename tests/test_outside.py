"""The browser user, on a page whose buttons and words come at the worst moments."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import chatbot_arch.measure.outside as outside
import chatbot_arch.measure.rounds as rounds
from chatbot_arch.measure.users import PageError

PAGE = """
<textarea data-testid="stChatInputTextArea"></textarea>
<script>
  const say = (text) => document.querySelectorAll("[data-testid]")[2].innerText = text;
  const stop = () => document.body.append(
    Object.assign(document.createElement("button"), { innerText: "Stop" }));
  const rest = () => document.querySelector("button").remove();
  const after = (ms, work, ...given) => setTimeout(work, ms, ...given);
  document.querySelector("textarea").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    document.body.insertAdjacentHTML("beforeend", `<div class="st-key-turn-1">
      <p data-testid="stChatMessageContent">question</p>
      <p data-testid="stChatMessageContent"></p></div>`);
    STEPS
  });
</script>
"""
LATE_BUTTON = "say('one'); after(500, stop); after(700, say, 'one two'); after(720, rest);"
LATE_WORD = "stop(); say('one'); after(300, say, 'one two'); after(320, rest);"
LAST = "after(380, say, 'one two three');"


def ask(url: str) -> str:
    """Return the reply that a user reads."""
    with outside.BrowserUser(url, timeout_s=60) as user:
        return user.ask("question").text


@pytest.fixture(scope="module")
def users() -> Iterator[rounds.Users]:
    """Yield a process for users: in this one, the browser of other tests may be open."""
    process = rounds.Users()
    yield process
    process.close()


def test_browser_user_tells_what_a_page_complains_of(tmp_path: Path, users: rounds.Users) -> None:
    page = tmp_path / "page.html"
    complain = "after(300, () => document.body.insertAdjacentHTML('beforeend', ALERT));"
    alert = "`<p data-testid='stAlertContentError'>No backend answers.</p>`"
    page.write_text(PAGE.replace("STEPS", complain.replace("ALERT", alert)), encoding="utf-8")
    with pytest.raises(PageError, match="No backend answers"):
        users.run(ask, page.as_uri())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (LATE_BUTTON, "one two"),
        (LATE_WORD + LAST, "one two three"),
        ("say('one');", "one"),
    ],
    ids=["the button comes after a word", "a word comes after the button", "no button"],
)
def test_browser_user_waits_for_the_whole_reply(
    tmp_path: Path, users: rounds.Users, steps: str, said: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("STEPS", steps), encoding="utf-8")
    assert users.run(ask, page.as_uri()) == said

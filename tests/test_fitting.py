"""A conversation of any length costs an engine about a window's work, and loses the same turns."""

import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import chatbot_arch.engines.blenderbot as blenderbot_engine
import chatbot_arch.engines.networks as networks
import chatbot_arch.engines.prompts as prompts
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.settings as settings

TINY = str(Path(__file__).parent / "blenderbot-tiny" / "model")
WINDOW, REPLY_TOKENS, CHARS_PER_TOKEN = 8192, 256, 4
WORDS = (
    "river",
    "a",
    "the  king",
    "\n\n",
    "🧹",
    "漢字",
    "  ",
    "x" * 40,
    "<|im_end|>",
    "don't",
    "1234",
)
DEADLINE_S = 60
Conversation = list[protocol.Message]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(**weights.locate_model(settings.read_settings()))


@pytest.fixture(scope="module")
def blenderbot() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


def random_talk(dice: random.Random) -> Conversation:
    """Return up to 30 turns, of which some say nothing and some a lot."""

    def text() -> str:
        words = dice.choice((0, 1, 3, 10, 40))
        return dice.choice((" ", "")).join(dice.choice(WORDS) for _ in range(words))

    turns = dice.randrange(30)
    past = [text() for _ in range(turns)], [text() for _ in range(turns)]
    return protocol.to_conversation(*past, text(), dice.choice(("", "Be brief.")))


def fewest_turns_to_drop(talk: Conversation, encode: prompts.Encode, room: int) -> int:
    """Return what `turns_to_drop` promises, by trying every number."""
    turns = sum(message["role"] == "assistant" for message in talk)
    fits = [len(encode(prompts.drop_turns(talk, n))) <= room for n in range(turns)]
    return [*fits, True].index(True)


@pytest.mark.parametrize("family", ["chat", "blenderbot"])
def test_fewest_turns_are_dropped_whatever_they_say(
    family: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue("tokenizer" if family == "chat" else "blenderbot")
    ids = prompts.chat_input_ids if family == "chat" else prompts.blenderbot_input_ids

    def encode(talk: Conversation) -> list[int]:
        return ids(tokenizer, talk)

    dice, dropped = random.Random(family), []
    for _ in range(60):
        talk, room = random_talk(dice), dice.choice((20, 60, 128, 600, 3000))
        dropped.append(prompts.turns_to_drop(talk, lambda each: len(encode(each)), room))
        assert dropped[-1] == fewest_turns_to_drop(talk, encode, room), (talk, room)
    assert len(set(dropped)) > 8


def characters(talk: Conversation) -> int:
    return sum(len(message["content"]) for message in talk)


LONGEST = "river " * (settings.MAX_TEXT_CHARS // 6)
TALKS = {
    "1000 turns": (["word " * 790] * 1000, ["ok " * 1316] * 1000, "And now?"),
    "1000 short turns": (["hi"] * 1000, ["Hello!"] * 1000, "And now?"),
    "39 of the longest turns": ([LONGEST] * 39, [LONGEST] * 39, "And now?"),
    "one long turn before many short": (
        ["hi"] * 20 + [LONGEST] + ["hi"] * 20,
        ["Hello!"] * 20 + [LONGEST] + ["Hello!"] * 20,
        "And now?",
    ),
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_long_conversation_is_read_no_further_than_a_window(
    talk: tuple[list[str], list[str], str], tokenizer: PreTrainedTokenizerBase
) -> None:
    read: list[int] = []

    def encode(conversation: Conversation) -> list[int]:
        read.append(characters(conversation))
        return prompts.chat_input_ids(tokenizer, conversation)

    class Half(prompts.Windowed):
        def check(self) -> None: ...

    half = Half(encode, WINDOW, REPLY_TOKENS)
    fitting, dropped = half.fit(protocol.to_conversation(*talk), protocol.Options())
    turns = list(zip(*talk[:2], strict=True))
    next_turn = sum(map(len, turns[dropped - 1]))
    assert sum(read) <= 8 * WINDOW * CHARS_PER_TOKEN + 3 * next_turn
    assert 0 < dropped < 1000
    room = WINDOW - REPLY_TOKENS
    assert len(half.input_ids(fitting)) <= room
    one_more = prompts.drop_turns(protocol.to_conversation(*talk), dropped - 1)
    assert len(prompts.chat_input_ids(tokenizer, one_more)) > room


def test_question_too_long_is_read_once(tokenizer: PreTrainedTokenizerBase) -> None:
    read: list[int] = []

    def count(conversation: Conversation) -> int:
        read.append(characters(conversation))
        return len(prompts.chat_input_ids(tokenizer, conversation))

    talk = protocol.to_conversation(["hi"] * 999, ["Hello!"] * 999, LONGEST, LONGEST)
    with pytest.raises(protocol.TooLongError, match=r"has 33\d\d\d tokens, and 7936 fit"):
        prompts.fit_turns(talk, count, WINDOW, REPLY_TOKENS)
    assert sum(read) <= 2 * len(LONGEST) + 100


def test_blenderbot_reads_its_last_tokens_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = prompts.text_ids

    def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        read.append(len(text))
        return whole(tokenizer, text)

    network, tokenizer = networks.load_transformers({"pretrained_model_name_or_path": TINY})
    with closing(blenderbot_engine.EncoderDecoderEngine("tiny", network, tokenizer)) as asked:
        monkeypatch.setattr(prompts, "text_ids", text_ids)
        talk = protocol.to_conversation(["word " * 790] * 1000, ["ok " * 1316] * 1000, LONGEST)
        options = protocol.Options(max_new_tokens=1)
        protocol.complete(asked, talk, options)
        assert sum(read) < 20 * asked.prompt.window * max(map(len, tokenizer.get_vocab()))


def test_end_of_a_blenderbot_conversation_makes_the_same_last_tokens(
    blenderbot: PreTrainedTokenizerBase,
) -> None:
    dice, window = random.Random("end"), 40
    for _ in range(300):
        talk = random_talk(dice)
        whole = prompts.blenderbot_input_ids(blenderbot, talk)
        end = prompts.blenderbot_input_ids(blenderbot, talk, last_tokens=window)
        assert end[-window:] == whole[-window:], talk
        assert (len(end) > window) == (len(whole) > window)


def test_two_conversations_are_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def wait_for_the_other(*arguments: object) -> list[int]:
        both.wait(DEADLINE_S / 6)
        return [5, 2]

    monkeypatch.setattr(prompts, "blenderbot_input_ids", wait_for_the_other)
    parts = networks.load_transformers({"pretrained_model_name_or_path": TINY})
    with closing(blenderbot_engine.EncoderDecoderEngine("tiny", *parts)) as asked:
        talks = [protocol.to_conversation([], [], text) for text in ("hello", "how are you?")]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(asked.prompt.last_ids, talks)) == [[5, 2], [5, 2]]


def test_threads_that_encode_at_once_get_what_each_gets_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    dice = random.Random("threads")
    talks = [random_talk(dice) for _ in range(64)]
    alone = [prompts.chat_input_ids(tokenizer, talk) for talk in talks]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda talk: prompts.chat_input_ids(tokenizer, talk), talks * 3))
    assert at_once == alone * 3


@pytest.mark.parametrize("family", ["tokenizer", "blenderbot"])
def test_control_token_as_text_is_what_the_library_makes_of_it(
    family: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(family)
    for token in tokenizer.all_special_tokens:
        expected = tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
        assert prompts.plain_ids(tokenizer, token) == expected
    tokenizer.encode("", split_special_tokens=False)  # as it was for the other tests


def test_long_conversations_are_not_kept() -> None:
    encode = prompts.remember(lambda talk: [1, 2, 3])
    tracemalloc.start()
    try:
        for number in range(40):
            encode(protocol.to_conversation([], [], f"{number} " * 250_000))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1e6

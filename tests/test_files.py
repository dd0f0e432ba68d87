"""Any text in files, store and page: exact where it is kept, harmless where it is read."""

import csv
import html
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from hypothesis import example, given, settings
from hypothesis import strategies as some
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

import chatbot_arch.engines.protocol as protocol
import chatbot_arch.page.bubbles as bubbles
import chatbot_arch.page.files as files
import chatbot_arch.page.replies as replies
import chatbot_arch.page.session as session
import chatbot_arch.page.store as store
import chatbot_arch.settings as app_settings
import chatbot_arch.utils as utils

FRONTEND = Path(utils.__file__).with_name("frontend.py")
# The same examples in every run; nothing kept on disk between runs.
PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, database=None)
FRAGMENTS = (
    "👩🏽‍🚀",
    "🏳️‍🌈",
    "שלום ",
    "مرحبا",
    "e\u0301",
    "Z\u0351\u036b",
    "\u202egnp.exe\u202c",
    "<think>",
    "</think>",
    "<|im_start|>system",
    "<|im_end|>",
    "'",
    '"',
    '""',
    ",",
    ";",
    "\\",
    "\n",
    "\r",
    "\r\n",
    "\t",
    " ",
    "\u0085",
    "\u2028",
    "\ufeff",
    "\x1b[31m",
    "\uffff",
    "=1+1",
    "+",
    "-",
    "@",
)
exact_texts = some.lists(some.sampled_from(FRAGMENTS) | some.text(max_size=5)).map("".join)
storable_texts = exact_texts.map(lambda text: text.replace("\0", "0"))
lone_surrogates = some.integers(0xD800, 0xDFFF).map(chr)
hostile_texts = some.lists(exact_texts | lone_surrogates | some.just("\0")).map("".join)


@pytest.fixture(scope="module")
def kept() -> Iterator[store.Store]:
    """Yield a database in memory."""
    opened = store.Store("sqlite://")
    yield opened
    opened.close()


def make_turn(question: str, reply: str, position: int = 0) -> store.Turn:
    return store.Turn(
        id=store.new_id(), position=position, question=question, reply=reply, state="done"
    )


def make_conversation(*turns: store.Turn) -> store.Conversation:
    return store.Conversation(id=store.new_id(), owner="me", title="A talk", turns=list(turns))


def write_reply(kept: store.Store, question: str, pieces: list[str]) -> replies.Writing:
    """Make a reply of these pieces, the first of its conversation; return it when it has ended."""

    def respond(conversation: list, *asked: object) -> protocol.Answer:
        assert conversation[-1]["content"] == question
        yield from pieces
        return protocol.Facts("stop")

    turn = store.Turn(
        id=store.new_id(), conversation_id=store.new_id(), position=0, question=question
    )
    kept.keep_draft(turn.conversation_id, "me", question, {})
    writing = replies.Writing(respond, kept, turn)
    replies.make(writing)
    return writing


# Exact


@PROPERTY
@given(question=storable_texts, pieces=some.lists(storable_texts))
def test_text_is_the_same_bytes_from_reply_through_store_and_file(
    kept: store.Store, question: str, pieces: list[str]
) -> None:
    text = "".join(pieces)
    writing = write_reply(kept, question, pieces)
    assert replies.look(writing).text.encode() == text.encode()
    saved = kept.load(writing.turn.conversation_id)
    content = files.conversation_json(saved).encode()
    opened = files.read_conversation(content, "someone")
    kept.add(opened)
    again = kept.load(opened.id)
    for conversation in (saved, again):
        [turn] = conversation.turns
        assert turn.question.encode() == question.encode()
        assert turn.reply.encode() == text.encode()
    assert files.conversation_json(again).encode() == content


@PROPERTY
@given(question=hostile_texts, reply=hostile_texts)
def test_nul_and_lone_surrogates_become_replacement_characters(
    kept: store.Store, question: str, reply: str
) -> None:
    def replaced(text: str) -> str:
        whole = text.encode("utf-8", "surrogatepass").replace(b"\0", "\ufffd".encode())
        return re.sub(rb"\xed[\xa0-\xbf].", "\ufffd".encode(), whole, flags=re.S).decode()

    writing = write_reply(kept, question, [reply])
    saved = kept.load(writing.turn.conversation_id)
    [turn] = saved.turns
    assert (turn.question, turn.reply) == (replaced(question), replaced(reply))


def test_reply_with_lone_surrogates_is_shown_as_it_is_saved(kept: store.Store) -> None:
    writing = write_reply(kept, "?", ["a\ud800b\0c"])
    saved = kept.load(writing.turn.conversation_id)
    [turn] = saved.turns
    assert replies.look(writing).text == turn.reply == "a\ufffdb\ufffdc"


counts = some.none() | some.integers(0, 10**6)
ended = some.builds(
    protocol.Facts,
    reason=some.sampled_from(["stop", "length", "timeout"]),
    model=exact_texts,
    engine=exact_texts,
    prompt_tokens=counts,
)
facts = some.just({}) | ended.map(lambda reply: asdict(reply) | {"first_s": 0.5, "reply_s": 1 / 3})


@PROPERTY
@given(data=some.data())
def test_saved_conversation_is_opened_exactly(data: some.DataObject) -> None:
    turns = [make_turn(*each) for each in data.draw(some.lists(some.tuples(*[exact_texts] * 2)))]
    for position, turn in enumerate(turns):
        turn.position = position
        turn.state = data.draw(some.sampled_from(["writing", "done", "stopped", "failed"]))
        turn.facts = data.draw(facts)
        turn.rating = data.draw(some.sampled_from([None, 0, 1]))
    saved = make_conversation(*turns)
    saved.title = data.draw(exact_texts.map(lambda text: text[:80]))
    saved.options = {
        "system_prompt": data.draw(exact_texts),
        "temperature": data.draw(some.floats(0, 2)),
        "top_p": data.draw(some.floats(0.05, 1)),
        "max_new_tokens": data.draw(some.none() | some.integers(1, 4096)),
    }
    opened = files.read_conversation(files.conversation_json(saved).encode(), "someone")
    assert (opened.title, opened.options) == (saved.title, saved.options)
    assert opened.owner == "someone"
    assert opened.id != saved.id
    for each in turns:
        each.state = "failed" if each.state == "writing" else each.state  # nobody writes it here
    shown = ("position", "question", "reply", "state", "facts", "rating")
    assert [[getattr(turn, name) for name in shown] for turn in opened.turns] == [
        [getattr(turn, name) for name in shown] for turn in turns
    ]
    assert not {turn.id for turn in opened.turns} & {turn.id for turn in turns}


# CSV

FIELD = r'(?:"(?:[^"]|"")*"|[^",\r\n]*)'
RFC_4180 = re.compile(rf"(?:{FIELD},{FIELD}\r\n)+")
SIGNS = "=+-@＝＋－＠\0"
SEPARATORS = ",;\t|"


def defused(text: str) -> str:
    """Return a text with an apostrophe before each sign at which some reader begins a cell."""
    said = ""
    for index, character in enumerate(text):
        before = text[:index].rstrip('"')
        begins = not index or before.endswith((*SEPARATORS, "\r", "\n"))
        runs = character in SIGNS or (not index and character in "\t\r")
        said += "'" * (begins and runs) + character
    return said


@PROPERTY
@given(texts=some.lists(some.tuples(*[hostile_texts] * 2)))
@example(texts=[("=cmd|' /C calc'!A0", "\r\n")])
@example(texts=[("sum;=1+1", "- one\n- two")])
def test_csv_is_read_back_by_any_reader(texts: list[tuple[str, str]]) -> None:
    content = files.conversation_csv([make_turn(*each) for each in texts])
    assert RFC_4180.fullmatch(content)
    header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    assert header == ["is_user", "text"]
    assert [row[0] for row in rows] == ["True", "False"] * len(texts)
    said = [text for each in texts for text in each]
    for [_, read], text in zip(rows, said, strict=True):
        assert read == defused(text)


# What a cell may say to a reader that takes another character for the separator.
cell_texts = some.lists(some.sampled_from((*SIGNS, *SEPARATORS, *'"\r\n', "1", "x y"))).map("".join)
quoting = some.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONE])


def begins_a_formula(cell: str) -> bool:
    return cell.lstrip("\t\r\n").startswith(tuple(SIGNS))


@PROPERTY
@given(texts=some.tuples(*[cell_texts | hostile_texts] * 2), quoting=quoting)
@pytest.mark.parametrize("separator", SEPARATORS)
@example(texts=("sum;=1+1", "sum,=1+1"), quoting=csv.QUOTE_MINIMAL)
@example(texts=("sum\t=1+1", "sum\n=1+1"), quoting=csv.QUOTE_MINIMAL)
@example(texts=('sum\t"=1+1"', 'sum;"";"=1+1"'), quoting=csv.QUOTE_MINIMAL)
def test_csv_cell_is_no_formula_whatever_separates_the_cells(
    texts: tuple[str, str], quoting: int, separator: str
) -> None:
    content = files.conversation_csv([make_turn(*texts)])
    file = io.StringIO(content, newline="")
    for row in csv.reader(file, delimiter=separator, quoting=quoting):
        assert not [cell for cell in row if begins_a_formula(cell)]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_csv_cell_is_no_formula_for_pandas(separator: str) -> None:
    texts = [f"sum{each}=1+1" for each in (*SEPARATORS, "\n", "\r\n", "\n\n", ';"')]
    content = files.conversation_csv([make_turn(text, f"{text};@1") for text in texts])
    file = io.StringIO(content, newline="")
    read = pd.read_csv(file, sep=separator, names=range(9), dtype=str, on_bad_lines="skip")
    cells = [cell for cell in read.to_numpy().flat if isinstance(cell, str)]
    assert len(cells) > len(texts)
    assert not [cell for cell in cells if begins_a_formula(cell)]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_csv_cell_with_a_separator_of_any_kind_is_quoted(separator: str) -> None:
    content = files.conversation_csv([make_turn(f"sum{separator}=1+1", f"a{separator} b")])
    assert content == (f'is_user,text\r\nTrue,"sum{separator}\'=1+1"\r\nFalse,"a{separator} b"\r\n')


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\0"])
def test_csv_cell_that_begins_like_a_formula_gets_one_apostrophe(first: str) -> None:
    text = f'{first}{first}HYPERLINK("http://images.example")'
    content = files.conversation_csv([make_turn(text, f" {text}"), make_turn("", "'=1")])
    rows = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    assert [text for _, text in rows[1:]] == [f"'{text}", f" {text}", "", "'=1"]


def test_csv_is_oldest_first_and_utf8_without_a_mark() -> None:
    turns = [make_turn("one", "éins"), make_turn("two", "zw,ei")]
    expected = 'is_user,text\r\nTrue,one\r\nFalse,éins\r\nTrue,two\r\nFalse,"zw,ei"\r\n'
    assert files.conversation_csv(turns).encode() == expected.encode()
    assert files.conversation_csv([]) == "is_user,text\r\n"


# Files from outside

MARK = "what-the-file-says"
TURN = {"question": "a", "reply": "b"}


def saved_file(*turns: object, **changes: object) -> bytes:
    return json.dumps({"title": "", "turns": turns, **changes}).encode()


def set_raw(name: str, raw: str) -> bytes:
    """Return a saved conversation in which one fact is this piece of JSON."""
    return saved_file(TURN | {"facts": {name: 0}}).replace(b'": 0}', f'": {raw}}}'.encode())


def refusal(content: bytes) -> str:
    with pytest.raises(files.ExportError) as caught:
        files.read_conversation(content, "me")
    return str(caught.value)


REFUSED = {
    "empty": b"",
    "csv": f"is_user,text\r\nTrue,{MARK}\r\n".encode(),
    "page": f"<html>{MARK}</html>".encode(),
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\xff",
    "cut": saved_file(TURN)[:-2],
    "two": saved_file(TURN) * 2,
    "utf-16": saved_file(TURN).decode().encode("utf-16"),
    "null": b"null",
    "list": b"[]",
    "text": f'"{MARK}"'.encode(),
    "no-turns": b'{"title": ""}',
    "turns-a-text": saved_file(turns=MARK),
    "turns-an-object": saved_file(turns={MARK: MARK}),
    "turn-a-text": saved_file(MARK),
    "turn-without-reply": saved_file({"question": MARK}),
    "question-a-number": saved_file({"question": 7, "reply": MARK}),
    "question-null": saved_file({"question": None, "reply": MARK}),
    "reply-a-list": saved_file({"question": "", "reply": [MARK]}),
    "title-null": saved_file(title=None),
    "title-too-long": saved_file(title=f"{MARK} " * 200),
    "question-too-long": saved_file(TURN | {"question": "a" * (files.LONGEST_TEXT_CHARS + 1)}),
    "reply-too-long": saved_file(TURN | {"reply": "a" * (files.LONGEST_TEXT_CHARS + 1)}),
    "too-many-turns": saved_file(*[TURN] * (files.MOST_TURNS + 1)),
    "unknown-format": saved_file(format=f"{MARK} 2"),
    "unknown-state": saved_file(TURN | {"state": MARK}),
    "unknown-option": saved_file(options={"seed": 1}),
    "rating-out-of-range": saved_file(TURN | {"rating": 2}),
    "temperature-too-low": saved_file(options={"temperature": -0.1}),
    "temperature-too-high": saved_file(options={"temperature": 2.1}),
    "temperature-a-text": saved_file(options={"temperature": MARK}),
    "temperature-nan": saved_file(options={"temperature": float("nan")}),
    "top-p-zero": saved_file(options={"top_p": 0}),
    "top-p-infinite": saved_file(options={"top_p": float("inf")}),
    "max-new-tokens-zero": saved_file(options={"max_new_tokens": 0}),
    "max-new-tokens-too-high": saved_file(options={"max_new_tokens": 4097}),
    "rating-nan": saved_file(TURN | {"rating": float("nan")}),
    "deep": b"[" * 100_000,
    "deep-turns": saved_file().replace(b"[]", b"[" * 100_000),
    "deep-facts": set_raw("model", '{"a":' * 100_000),
    "facts-a-list": set_raw("model", f'["{MARK}"]'),
    "long-number": set_raw("reply_tokens", "9" * 5000),
    "lone-surrogate": saved_file(TURN | {"reply": f"{MARK}\ud800"}),
    "lone-surrogate-raw": saved_file(TURN | {"reply": "X"}).replace(b"X", b"\xed\xa0\x80"),
    "bad-utf-8": saved_file(TURN | {"reply": "X"}).replace(b"X", b"\xff"),
    "unknown-field": saved_file(**{MARK: 1}),
    "unknown-long-field": saved_file(**{MARK * 100: 1}),
    "unknown-field-of-a-turn": saved_file(TURN | {MARK: MARK}),
    "unknown-fact": saved_file(TURN | {"facts": {MARK: [MARK]}}),
    "fact-nan": set_raw("first_s", "NaN"),
    "fact-infinite": set_raw("first_s", "1e999"),
    **{
        f"{name}-of-{len(raw)}-characters": set_raw(name, raw)
        for name in ("prompt_tokens", "reply_tokens", "turns_left_out", "first_s", "reply_s")
        for raw in ("9" * 12, "9" * 401, "9" * 4300, "-1")
    },
    "seconds-that-fill-a-page": set_raw("first_s", "1e308"),
    "model-too-long": set_raw("model", json.dumps("a" * 100_000)),
    "engine-too-long": set_raw("engine", json.dumps("a" * 100_000)),
    "reason-too-long": set_raw("reason", json.dumps("a" * 100_000)),
    "rating-of-401-digits": saved_file(TURN | {"rating": 10**400}),
    "temperature-of-401-digits": saved_file(options={"temperature": 10**400}),
    "max-new-tokens-of-401-digits": saved_file(options={"max_new_tokens": 10**400}),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_other_file_is_refused_with_a_short_sentence_of_our_own(content: bytes) -> None:
    sentence = refusal(content)
    assert sentence.startswith("This file is not a saved conversation")
    assert sentence.endswith('Choose a file from "Save as JSON".')
    assert len(sentence) < 500
    assert "\n" not in sentence
    assert MARK not in sentence


json_values = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | exact_texts,
    lambda values: some.lists(values) | some.dictionaries(exact_texts, values),
    max_leaves=10,
)
almost_saved = some.fixed_dictionaries(
    {"title": some.just("") | json_values, "turns": some.lists(some.just(TURN) | json_values)},
    optional={"options": json_values, "format": json_values},
)
any_file = some.binary() | almost_saved.map(lambda value: json.dumps(value).encode())


@PROPERTY
@given(content=any_file)
@example(content=saved_file(TURN))
def test_any_file_is_opened_whole_or_refused_in_a_sentence(content: bytes) -> None:
    try:
        opened = files.read_conversation(content, "me")
    except files.ExportError:
        return  # what it says is looked at above
    saved = files.conversation_json(opened).encode()
    assert files.conversation_json(files.read_conversation(saved, "me")).encode() == saved


def open_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conversation: store.Conversation
) -> AppTest:
    """Open the page of a conversation that was just read from a file; no backend is there."""
    monkeypatch.setenv("CHATBOT_BACKEND_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CHATBOT_DATABASE_URL", f"sqlite:///{tmp_path / 'chats.db'}")
    st.cache_resource.clear()
    st.cache_data.clear()
    session.get_store()[0].add(conversation)
    page = AppTest.from_file(FRONTEND, default_timeout=60)
    page.query_params["conversation"] = conversation.id
    return page.run()


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"reply_tokens": 5}, "tokens: 5, and 0 in the prompt"),
        ({"reply_tokens": 5, "prompt_tokens": 7}, "tokens: 5, and 7 in the prompt"),
        ({"reply_tokens": 5, "first_s": 1, "reply_s": 3}, "tokens per second: 2.0"),
        ({"first_s": 0.5}, "first word after 0.50 s"),
        ({"model": "only a model"}, "only a model"),
        ({"turns_left_out": 3}, utils.LEFT_OUT.format(turns=3)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_page_shows_every_file_that_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: dict[str, object], shown: str
) -> None:
    opened = files.read_conversation(saved_file(TURN | {"facts": facts}), "me")
    page = open_file(monkeypatch, tmp_path, opened)
    assert not page.exception
    assert page.session_state.conversation_history["generated_responses"] == ["b"]
    captions = html.unescape("\n".join(caption.value for caption in page.caption))  # of signs
    assert shown in captions
    assert "None" not in captions


@pytest.mark.parametrize(
    "facts", [{"reply_tokens": "many"}, {"first_s": "soon"}, {"turns_left_out": "all"}]
)
def test_file_with_a_word_for_a_number_is_refused(facts: dict[str, object]) -> None:
    [name] = facts
    assert f"turns.0.facts.{name}" in refusal(saved_file(TURN | {"facts": facts}))


def test_page_shows_the_largest_numbers_that_are_not_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    most = {name: app_settings.MAX_COUNT for name in ("prompt_tokens", "reply_tokens")}
    most |= {"turns_left_out": app_settings.MAX_COUNT, "model": "m" * app_settings.MAX_NAME_CHARS}
    for seconds in (5e-324, float(app_settings.MAX_COUNT)):
        content = saved_file(TURN | {"facts": most | {"reply_s": seconds}, "rating": 1})
        page = open_file(monkeypatch, tmp_path, files.read_conversation(content, "me"))
        assert not page.exception
        caption = html.unescape(page.sidebar.caption[-2].value)
        assert f"tokens: {app_settings.MAX_COUNT}" in caption
        assert "inf" not in caption


def test_page_saves_and_opens_what_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    too_long = make_turn("?", "a" * (files.LONGEST_TEXT_CHARS + 1))
    page = open_file(monkeypatch, tmp_path, make_conversation(too_long))
    assert not page.exception


# Images

IMAGE_TEXT = "![x](http://images.example/p.png)"
MARKDOWN = (
    IMAGE_TEXT,
    "![x][ref]\n\n[ref]: http://images.example/p.png\n",
    "![",
    "!",
    "[",
    "](http://images.example/p.png)",
    "\\",
    "```",
    "````",
    "~~~",
    "`",
    "``",
    "$$",
    "$",
    "\n",
    "\n\n",
    "\r",
    "\r\n",
    "\t",
    " ",
    "    ",
    "> ",
    "- ",
    "1. ",
    "# ",
    "| a | b |\n|---|---|\n",
    "|",
    "---\n",
    "===\n",
    "<!--",
    "-->",
    "<pre>",
    "</pre>",
    "<div>\n",
    "</div>",
    "<![CDATA[",
    "]]>",
    "&#33;",
    "[ref]: http://images.example/p.png '",
    "**",
    "~~",
    ":::note\n",
    ":::\n",
    "\0",
    "\x0b",
    "\x0c",
    "\u0085",
    "\u00a0",
    "\u2028",
    "\ufeff",
    "rust",
    "a",
)
markdowns = some.lists(some.sampled_from(MARKDOWN) | some.text(max_size=3), max_size=20)
RENDERERS = {name: MarkdownIt(name) for name in ("commonmark", "js-default", "gfm-like")}
RENDERERS["gfm-like"].disable("linkify")  # needs a package more, and makes links only


def has_image(renderer: MarkdownIt, text: str) -> bool:
    inline = (token.children or [] for token in renderer.parse(text))
    return any(child.type == "image" for children in inline for child in children)


@settings(PROPERTY, max_examples=2000)
@given(pieces=markdowns)
@example(pieces=["\r\r```\ncode\n```\n", IMAGE_TEXT])
def test_no_renderer_finds_an_image_in_any_text(pieces: list[str]) -> None:
    shown = bubbles.defuse_images("".join(pieces))
    assert not any(has_image(renderer, shown) for renderer in RENDERERS.values())


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS)
def test_renderers_of_this_test_do_find_images(renderer: MarkdownIt) -> None:
    assert has_image(renderer, IMAGE_TEXT)
    assert has_image(renderer, f"> - **{IMAGE_TEXT}**")


@pytest.mark.parametrize("sign", ["~~~", "$$", ":::", "<", "\t", "\r"])
def test_image_is_escaped_in_all_code_where_renderers_may_differ(sign: str) -> None:
    text = f"one {sign} other\n```\n{IMAGE_TEXT}\n```"
    assert IMAGE_TEXT not in bubbles.defuse_images(text)


@pytest.mark.parametrize("before", ["> ", "- ", "1. "])
def test_image_is_escaped_in_nested_code(before: str) -> None:
    text = f"{before}```\n{' ' * len(before)}{IMAGE_TEXT}\n{before}{IMAGE_TEXT}\n{before}```"
    assert IMAGE_TEXT not in bubbles.defuse_images(text)


@pytest.mark.parametrize(
    "code",
    [
        "```rust\nlet v = vec![1, 2];\n```",
        "````\n```\n![x](y)\n```\n````",
        "before\n\n   ```\n   println![]\n   ```\nafter",
        "```\nnever closed: ![x](y)",
    ],
    ids=["rust", "nested", "indented", "unclosed"],
)
def test_code_between_fences_is_unchanged(code: str) -> None:
    assert bubbles.defuse_images(code) == code
    beside = bubbles.defuse_images(f"{IMAGE_TEXT}\n{code}")
    assert beside == f"!\\{IMAGE_TEXT[1:]}\n{code}"


@PROPERTY
@given(text=exact_texts)
def test_text_without_images_is_unchanged(text: str) -> None:
    text = text.replace("![", "")
    assert bubbles.defuse_images(text) == text


@PROPERTY
@given(pieces=markdowns)
def test_defused_text_differs_only_by_backslashes(pieces: list[str]) -> None:
    text = "".join(pieces)
    shown = bubbles.defuse_images(text)
    assert shown.replace("!\\[", "![") == text.replace("!\\[", "![")


def test_long_text_is_defused_soon() -> None:
    started = time.monotonic()
    fences = "```\nvec![1];\n```\n" * 2_000
    assert bubbles.defuse_images(fences) == fences
    assert IMAGE_TEXT not in bubbles.defuse_images(IMAGE_TEXT * 20_000)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("look", ["bubbles", "native"])
def test_page_of_a_stranger_s_file_holds_no_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, look: str
) -> None:
    monkeypatch.setenv("CHATBOT_CHAT_UI", look)
    made_by = protocol.Facts("stop", model=IMAGE_TEXT, engine=IMAGE_TEXT)
    facts = asdict(made_by) | {"first_s": 1.0, "reply_s": 1.0}
    turn = {"question": IMAGE_TEXT, "reply": IMAGE_TEXT, "facts": facts}
    opened = files.read_conversation(saved_file(turn, title=IMAGE_TEXT), "me")
    page = open_file(monkeypatch, tmp_path, opened)
    page.session_state.browser = "me"  # whose list has the title
    page.run()
    assert not page.exception
    drawn = [json.loads(each.proto.json_args) for each in page.get("component_instance")]
    texts = [each["message"] for each in drawn]
    texts += [each.value for each in (*page.markdown, *page.caption, *page.error)]
    texts += [each.label for each in page.button]
    assert sum("images" in text for text in texts) >= 4  # twice said, a title, facts
    assert not [text for text in texts if has_image(RENDERERS["commonmark"], text)]


@pytest.mark.parametrize(
    "text", ["Grüße __x__", "*a* `b` :red[c] 你好", "1. a\n# b", "a_b ![c](d)"]
)
def test_label_shows_a_text_as_it_is(text: str) -> None:
    drawn = MarkdownIt("commonmark").render(bubbles.plain(text))
    words = " ".join(text.split())
    assert html.unescape(drawn).strip() == f"<p>{words}</p>"


PIECES = ("$5", ":red[x]", ":smile:", "\\$", "\\", "`", "``", "```\n", "~~~\n", "\n", "\n\n", " ")
PIECES += (
    "    ",
    "- ",
    "> ",
    "# ",
    "| a | b |\n|:--|--:|\n| $1 | :x: |\n",
    "word",
    "\r\n",
    "1. ",
    "*",
)
PIECES += (
    "[x](http://a:80/$y)",
    "http://b:80/$z",
    "<http://c:80/x:y>",
    "a:b",
    "&#36;",
    "<b>",
    "\t",
)


@PROPERTY
@given(some.lists(some.sampled_from(PIECES), max_size=12).map("".join))
@example("`$x` $5")
@example("a\n\n    $x: y\n\n$5: b")
def test_signs_are_escaped_and_the_markdown_stays(text: str) -> None:
    parser = MarkdownIt().enable("table")
    assert parser.render(bubbles.as_written(text)) == parser.render(text)


@pytest.mark.parametrize(
    "text",
    [
        "[note]: hello",
        "[1]: https://example.com",
        'See [there][1].\n\n[1]: https://example.com "A :smile: for $5"',
        "> [a]: b",
        "- [a]: b",
        "[a]: b\n[a]: c",
        "[a]:\nb",
        "[^1]: A note for $5 and $6.",
    ],
)
def test_what_defines_a_link_or_a_note_is_shown(text: str) -> None:
    shown = bubbles.as_written(text)
    assert "]:" not in shown
    assert "$" not in shown
    html_of = MarkdownIt().enable("table").render(shown)
    read = html.unescape(re.sub(r"<[^>]+>", " ", html_of))
    for word in re.findall(r"\w+", text):
        assert word in read


def test_definition_in_code_stays() -> None:
    text = "```\n[a]: b\n```\n\nand `[a]: b`"
    assert bubbles.as_written(text) == text


@PROPERTY
@given(
    some.lists(some.sampled_from(("$5", ":red[x]", ":a:", "word ", "\n\n", "*", "\\$")), max_size=9)
)
def test_no_sign_is_left_outside_code(pieces: list[str]) -> None:
    shown = bubbles.as_written("".join(pieces))
    assert "$" not in shown
    assert not re.search(r":\S", shown.replace("::", ""))

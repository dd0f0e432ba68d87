"""The official client of the OpenAI API against the running backend, as its documentation says."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import httpx
import openai
import pytest
from conftest import serve_backend
from openai.types.chat import ChatCompletionChunk

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol

MODEL = protocol.FakeEngine.model
LONG = "/echo " + "word " * 5000  # at SlowEngine's pace, almost a minute


class SlowEngine(protocol.FakeEngine):
    """Speak as slowly as a test needs to do something meanwhile."""

    def __init__(self) -> None:
        super().__init__(token_s=0.01)


@pytest.fixture
def speaking() -> protocol.FakeEngine:
    """Return an engine that takes no time."""
    return protocol.FakeEngine(token_s=0)


@pytest.fixture
def url(speaking: protocol.FakeEngine, monkeypatch: pytest.MonkeyPatch, at: str) -> Iterator[str]:
    """Serve the engine; a test whose settings matter sets them before it asks for this."""
    if at:
        yield at
        return
    monkeypatch.setattr(local, "load_engine", lambda choice, report: speaking)
    with serve_backend() as address:
        backend.app.state.answerer.loading.engine.result(timeout=30)
        yield address


Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    """Return how to make clients, which retry nothing unless told; all are closed afterwards."""
    with ExitStack() as stack:

        def make(api_key: str = "any", max_retries: int = 0, **hooks: list) -> openai.OpenAI:
            http = httpx.Client(trust_env=False, event_hooks=hooks)
            client = openai.OpenAI(
                base_url=f"{url}/v1",
                api_key=api_key,
                max_retries=max_retries,
                timeout=30,
                http_client=http,
            )
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(connect: Connect) -> openai.OpenAI:
    """Return a client."""
    return connect()


def ask(client: openai.OpenAI, *said: str, **options: Any) -> Any:
    """Ask for a reply to one user's messages."""
    messages = [{"role": "user", "content": each} for each in said]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages} | options)


def listen(client: openai.OpenAI, said: str, **options: Any) -> list[ChatCompletionChunk]:
    """Return all chunks of a streamed reply."""
    with ask(client, said, stream=True, **options) as stream:
        return list(stream)


def pieces_of(chunks: list[ChatCompletionChunk]) -> list[str]:
    """Return the texts in chunks, where there are any."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return [delta.content for delta in deltas if delta.content]


def reason_of(chunks: list[ChatCompletionChunk]) -> str | None:
    """Return how a stream ended; only the last of its choices may say so."""
    *before, last = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert set(before) == {None}
    return last


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "fake")


def test_reply_comes_with_reason_and_usage(client: openai.OpenAI) -> None:
    before = int(time.time())
    reply = ask(client, "/echo one two")
    (choice,) = reply.choices
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    assert before <= reply.created <= time.time()
    assert (choice.index, choice.message.role, choice.message.content) == (
        0,
        "assistant",
        "one two",
    )
    assert choice.finish_reason == "stop"
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)
    assert reply.id == f"chatcmpl-{reply._request_id}"


def test_stream_comes_in_pieces_and_ends_with_its_reason(client: openai.OpenAI) -> None:
    chunks = listen(client, "/echo one two")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert pieces_of(chunks) == ["one", " two"]
    assert reason_of(chunks) == "stop"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_stream_tells_its_usage_after_its_reason_if_asked(client: openai.OpenAI) -> None:
    *chunks, last = listen(client, "/echo one two", stream_options={"include_usage": True})
    assert (pieces_of(chunks), reason_of(chunks)) == (["one", " two"], "stop")
    assert last.choices == []
    usage = last.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (" two", "one"),
        (["three", "two"], "one "),
        ("e t", "on"),  # begins in one piece and ends in the next
        ("two three f", "one "),  # is in three pieces
        ("on", ""),
        ("five", "one two three four"),  # never comes, though a piece begins like it
        ("four five", "one two three four"),  # is held back, and does not come whole
    ],
)
def test_reply_ends_before_a_stop_string(
    client: openai.OpenAI, stop: str | list[str], shown: str
) -> None:
    said = "/echo one two three four"
    choice = ask(client, said, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (shown, "stop")
    chunks = listen(client, said, stop=stop)
    assert ("".join(pieces_of(chunks)), reason_of(chunks)) == (shown, "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_reply_is_as_long_as_it_may(client: openai.OpenAI, name: str) -> None:
    reply = ask(client, "/echo one two three", **{name: 2})
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("one two", "length")
    assert reply.usage.completion_tokens == 2
    chunks = listen(client, "/echo one two three", **{name: 2})
    assert (pieces_of(chunks), reason_of(chunks)) == (["one", " two"], "length")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the backend ask for one of two keys."""
    monkeypatch.setenv("CHATBOT_API_KEY", "new,old")


@pytest.mark.usefixtures("keys")
def test_wrong_key_is_refused_and_either_right_one_is_not(url: str, connect: Connect) -> None:
    for key in ("wrong", "new,old", "new,", "ne"):
        for refused in (lambda c: ask(c, "/echo hi"), lambda c: listen(c, "/echo hi")):
            with pytest.raises(openai.AuthenticationError) as caught:
                refused(connect(key))
            assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            connect(key).models.list()
    for key in ("new", "old"):
        assert ask(connect(key), "/echo hi").choices[0].message.content == "hi"
        assert len(list(connect(key).models.list())) == 1


def refuse_all(*asked: object) -> NoReturn:
    """Find every question too long."""
    raise protocol.TooLongError("9000 tokens, and 8144 fit.")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_told_by_its_code(
    client: openai.OpenAI,
    speaking: protocol.FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    monkeypatch.setattr(speaking, "fit", refuse_all)
    with pytest.raises(openai.BadRequestError, match="9000 tokens") as caught:
        ask(client, "hi", stream=stream)
    assert caught.value.code == "context_length_exceeded"


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


NAMED = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
AUDIO = {"voice": "alloy", "format": "wav"}


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"n": 2}, "n", "1"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "auto or none"),
        ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice", "auto or none"),
        ({"function_call": {"name": "clock"}}, "function_call", "auto or none"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"response_format": SCHEMA}, "response_format", "text"),
        ({"logprobs": True}, "logprobs", "not returned"),
        ({"top_logprobs": 2}, "top_logprobs", "not returned"),
        ({"logit_bias": {"7": 100}}, "logit_bias", "empty"),
        ({"presence_penalty": 0.5}, "presence_penalty", "0"),
        ({"frequency_penalty": 1}, "frequency_penalty", "0"),
        ({"modalities": ["text", "audio"], "audio": AUDIO}, "modalities", "text"),
        ({"audio": AUDIO}, "audio", "text"),
        ({"web_search_options": {}}, "web_search_options", "web"),
        ({"extra_body": {"grammar": 'root ::= "yes"'}}, "grammar", "plain text"),
        ({"extra_body": {"guided_json": {"type": "object"}}}, "guided_json", "plain text"),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs", "plain text"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role", "tools"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "no content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "no content"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_offered_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], param: str, says: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "/echo hi", stream=stream, **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    told = caught.value.body["message"]
    assert param in told
    assert says in told


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [TOOL]},
        {"tools": [], "tool_choice": None},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
        {"functions": [TOOL["function"]], "function_call": "auto"},
        {"response_format": {"type": "text"}},
        {"store": True, "metadata": {"chat": "7"}, "service_tier": "auto"},
        {"reasoning_effort": "low", "verbosity": "low", "modalities": ["text"]},
        {"prediction": {"type": "content", "content": "hi"}, "seed": 7, "user": "someone"},
        {"logit_bias": {}, "top_logprobs": 0, "logprobs": None, "audio": None},
        {"prompt_cache_key": "a", "safety_identifier": "b"},
        {"extra_body": {"of_next_year": {"deep": [1, None]}, "Of-Next-Year": "", "user": 7}},
        {"extra_body": {"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1, "keep_alive": "5m"}},
        {"max_tokens": 10_000_000},
    ],
)
def test_what_does_no_harm_is_taken_and_changes_nothing(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    assert ask(client, "/echo one two", **options).choices[0].message.content == "one two"
    more = {"stream_options": {"include_usage": True, "of_next_year": True}}
    assert pieces_of(listen(client, "/echo one two", **options, **more)) == ["one", " two"]


def test_messages_as_clients_keep_them_are_taken(client: openai.OpenAI) -> None:
    cached = {"type": "text", "text": "/echo hi", "cache_control": {"type": "ephemeral"}}
    failed = {"role": "assistant", "content": ""}
    called = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    chat = [
        {"role": "system", "content": "", "name": "someone"},
        {"role": "user", "content": "Hi", "id": "7", "timestamp": 7, "name": "A name!"},
        failed,
        {"role": "user", "content": "Hi?"},
        called,
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "reasoning_content": "Well."},
        {"role": "user", "content": [cached]},
    ]
    assert ask(client, messages=chat).choices[0].message.content == "hi"


OPEN_WEBUI = json.loads(Path(__file__).with_name("open_webui.json").read_text())


@pytest.mark.parametrize("task", [task for task in OPEN_WEBUI if task != "continued reply"])
def test_what_open_webui_sends_is_answered(url: str, task: str) -> None:
    """Send what Open WebUI 0.12.4 sent, with one of its 36 tools and its long prompts shortened."""
    body = OPEN_WEBUI[task]
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200
    if body["stream"]:
        *events, end, _ = answer.text.split("\n\n")
        chunks = [json.loads(each.removeprefix("data: ")) for each in events]
        said = "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)
        assert end == "data: [DONE]"
    else:
        said = answer.json()["choices"][0]["message"]["content"]
    assert said == protocol.KNOWN_TEXT


def test_picture_is_refused_by_its_place(client: openai.OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    text = {"type": "text", "text": "What is this?"}
    with pytest.raises(openai.BadRequestError, match="only text") as caught:
        ask(client, messages=[{"role": "user", "content": [text, picture]}])
    assert caught.value.param == "messages[0].content[1].type"


@pytest.mark.parametrize("content", [7, {"text": "hi"}])
def test_content_of_another_kind_is_refused_by_its_place(
    client: openai.OpenAI, content: object
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages[0].content"


def test_reply_that_is_to_be_continued_is_refused_as_such(client: openai.OpenAI) -> None:
    begun = OPEN_WEBUI["continued reply"]["messages"]
    with pytest.raises(openai.BadRequestError, match="cannot be continued") as caught:
        ask(client, messages=begun)
    assert caught.value.param == "messages"


def test_options_of_a_stream_without_one_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        ask(client, "/echo hi", stream_options={"include_usage": True})


def test_what_says_only_the_usual_is_taken(client: openai.OpenAI) -> None:
    usual = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logprobs": False}
    named = {"user": "someone", "seed": 7, "temperature": 1, "top_p": 0.5, "stop": None}
    assert ask(client, "/echo hi", **usual, **named).choices[0].message.content == "hi"


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "/echo hi", model="gpt-4o")
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "/echo hi"}, {"role": "assistant", "content": "hi"}],
        [{"role": "assistant", "content": "hi"}],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": " \n"}],
    ],
)
def test_chat_that_does_not_end_asking_is_refused(
    client: openai.OpenAI, messages: list[dict[str, str]]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=messages)
    assert caught.value.param == "messages"


def test_parts_of_a_message_and_messages_in_a_row_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": each} for each in ("/echo one", " two")]
    several = [{"role": "user", "content": parts}]
    assert ask(client, messages=several).choices[0].message.content == "one two"
    assert ask(client, "/echo one", "two").choices[0].message.content == "one\n\ntwo"
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "you"},
        {"role": "assistant", "content": "Hello!"},
        *several,
        {"role": "user", "content": "three"},
    ]
    reply = ask(client, messages=chat)
    assert reply.choices[0].message.content == "one two\n\nthree"
    assert reply.usage.prompt_tokens == len(
        ["Be", "brief.", "Hi", "you", "Hello!", "/echo", "one", "two", "three"]
    )


@pytest.mark.parametrize("stream", [False, True])
def test_error_is_found_by_its_id(client: openai.OpenAI, stream: bool) -> None:
    for options, kind in (
        ({"n": 2}, openai.BadRequestError),
        ({"model": "gpt-4o"}, openai.NotFoundError),
    ):
        with pytest.raises(kind) as caught:
            ask(client, "/echo hi", stream=stream, **options)
        told = caught.value.response.headers["x-request-id"]
        assert caught.value.request_id == caught.value.body["request_id"] == told != ""
    sent = {"X-Request-ID": "my-own-request-7"}
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "/echo hi", stream=stream, model="gpt-4o", extra_headers=sent)
    assert caught.value.request_id == caught.value.body["request_id"] == "my-own-request-7"


def test_reply_that_fails_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="This reply failed") as caught:
        ask(client, "/raise")
    assert caught.value.type == "server_error"


def test_stream_that_fails_raises_where_it_failed(client: openai.OpenAI) -> None:
    heard: list[ChatCompletionChunk] = []
    with ask(client, "/raise", stream=True) as stream:
        with pytest.raises(openai.APIError, match="This reply failed") as caught:
            heard.extend(stream)  # what came before the error is kept
        told = stream.response.headers["x-request-id"]
    assert pieces_of(heard) == [protocol.KNOWN_TEXT.split()[0]]
    assert (caught.value.type, caught.value.code) == ("server_error", "failed")
    assert caught.value.body["request_id"] == told


@pytest.fixture
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the backend make one reply at a time, with no line to wait in."""
    monkeypatch.setenv("CHATBOT_MAX_REPLIES", "1")
    monkeypatch.setenv("CHATBOT_MAX_WAITING", "0")


def wait_for_place(seconds: float) -> None:
    """Wait until the backend's only place is free."""
    deadline = time.monotonic() + seconds
    while not backend.app.state.queue.free:
        assert time.monotonic() < deadline, "the place was not given back"
        time.sleep(0.005)


@pytest.mark.usefixtures("one_place")
class TestOnePlace:
    """What happens where there is one place only, and it is taken."""

    @pytest.fixture
    def speaking(self) -> protocol.FakeEngine:
        """Return an engine that a test can interrupt."""
        return SlowEngine()

    def test_full_backend_says_so(self, client: openai.OpenAI) -> None:
        with ask(client, LONG, stream=True) as stream:
            next(iter(stream))
            for streamed in (False, True):
                with pytest.raises(openai.RateLimitError) as caught:
                    ask(client, "/echo hi", stream=streamed)
                assert (caught.value.code, caught.value.type) == ("full", "rate_limit_error")
                assert int(caught.value.response.headers["retry-after"]) > 0

    def test_client_comes_back_by_itself(self, client: openai.OpenAI, connect: Connect) -> None:
        answered: list[int] = []
        with ask(client, LONG, stream=True) as stream:
            next(iter(stream))

            def leave(response: httpx.Response) -> None:
                answered.append(response.status_code)
                stream.close()

            patient = connect(max_retries=5, response=[leave])
            reply = ask(patient, "/echo hi")
        assert reply.choices[0].message.content == "hi"
        assert (answered[0], answered[-1]) == (429, 200)

    def test_stop_string_frees_the_place(self, client: openai.OpenAI) -> None:
        chunks = listen(client, LONG, stop="word word word")
        assert (pieces_of(chunks), reason_of(chunks)) == ([], "stop")
        wait_for_place(1)

    def test_leaving_a_stream_frees_the_place(self, client: openai.OpenAI) -> None:
        for _ in range(3):
            with ask(client, LONG, stream=True) as stream:
                assert pieces_of([next(stream), next(stream)]) == ["word"]
                assert not backend.app.state.queue.free
            wait_for_place(1)
        assert ask(client, "/echo hi").choices[0].message.content == "hi"

    def test_giving_up_on_a_reply_frees_the_place(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            ask(client, "/hang", timeout=0.3)
        wait_for_place(1)
        assert ask(client, "/echo hi").choices[0].message.content == "hi"

    def test_place_is_free_after_every_error(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.InternalServerError):
            ask(client, "/raise")
        wait_for_place(1)
        with pytest.raises(openai.APIError):
            listen(client, "/raise")
        wait_for_place(1)
        with pytest.raises(openai.NotFoundError):
            ask(client, "/echo hi", model="gpt-4o")
        wait_for_place(1)


def test_stop_strings_are_found_whatever_the_pieces(client: openai.OpenAI) -> None:
    said = "a ab abc abcd"
    for start in range(len(said)):
        for end in range(start + 1, len(said) + 1):
            stop = said[start:end]
            shown = said[: said.index(stop)]
            chunks = listen(client, f"/echo {said}", stop=stop)
            assert "".join(pieces_of(chunks)) == shown, stop

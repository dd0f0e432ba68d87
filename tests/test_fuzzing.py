"""What no person would send: requests made from the service's own OpenAPI, and any bytes at all."""

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from conftest import serve_backend
from hypothesis import HealthCheck, example, given
from hypothesis import settings as effort
from hypothesis import strategies as some

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.settings as settings

EXAMPLES = 300
CHOICES = {
    "seed": 20_261_122,
    "generation": {"mode": "all", "max-examples": EXAMPLES, "allow-x00": True, "database": "none"},
    "phases": {phase: {"enabled": True} for phase in ("examples", "coverage", "fuzzing")},
    "output": {"sanitization": {"enabled": False}},  # `max_tokens` is no secret
    # All checks hold. A body beyond the limit is refused before it is read, right or wrong: 413.
    # Of what else the checks would take as an answer, only what this service says is left.
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2xx", "413"]},
        "negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "422"]},
    },
}


class NamedEngine(protocol.FakeEngine):
    """Speak at once, under the name that the OpenAPI's example asks for."""

    model = settings.EMBEDDED_MODEL


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve an engine that takes no time; afterwards it answers still, and all slots are free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "load_engine", lambda choice, report: NamedEngine(token_s=0))
        with serve_backend() as address:
            backend.app.state.answerer.loading.engine.result(timeout=30)
            yield address
            assert requests.get(f"{address}/ready", timeout=30).status_code == 200
            queue, deadline = backend.app.state.queue, time.monotonic() + 30
            while queue.free < backend.app.state.choice.max_replies:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def read_openapi() -> schemathesis.BaseSchema:
    """Return what the service tells of itself, with the name of the model that runs here.

    Which model that is, the service knows only as it runs. Without its name nearly every request
    would end at 404, and what is behind that would not be reached.
    """
    told = copy.deepcopy(backend.app.openapi())
    asked = told["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    asked["model"]["enum"] = [settings.EMBEDDED_MODEL]
    [named] = told["paths"]["/v1/models/{name}"]["get"]["parameters"]
    named["schema"]["enum"] = [settings.EMBEDDED_MODEL]
    return schemathesis.openapi.from_dict(told, config=schemathesis.Config.from_dict(CHOICES))


def obey_pairs(body: dict[str, Any]) -> None:
    """Give every earlier question a reply, and every earlier reply a question."""
    asked, answered = (body.get(name, []) for name in ("past_user_inputs", "generated_responses"))
    if isinstance(asked, list) and isinstance(answered, list):
        most = max(len(asked), len(answered))
        body["past_user_inputs"] = asked + ["?"] * (most - len(asked))
        body["generated_responses"] = answered + ["!"] * (most - len(answered))


def obey_stream(body: dict[str, Any]) -> None:
    """Ask for a stream where there are options for one."""
    if body.get("stream_options") is not None and body.get("stream") in (None, False):
        body["stream"] = True


def obey_order(body: dict[str, Any]) -> None:
    """Let a chat begin with the system's messages, go on with the user's, and end asking.

    Only the assistant's messages stay without content.
    """
    if not isinstance(messages := body.get("messages"), list):
        return
    began = asked = False
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if (role in ("system", "developer") and began) or (role == "assistant" and not asked):
            message["role"] = role = "user"
        began = began or role in ("user", "assistant")
        asked = asked or role == "user"
        if role in ("system", "developer", "user") and message.get("content") is None:
            message["content"] = "?"
    if 0 < len(messages) < 2 * settings.MAX_TURNS:
        messages.append({"role": "user", "content": "?"})


def obey(body: object) -> object:
    """Return a body that keeps the rules which OpenAPI has no words for.

    The service refuses, though its schema cannot: two lists that are not of one length, a chat in
    a wrong order or whose last message asks nothing, a message without content that is not the
    assistant's, and a stream's options without a stream.
    What is allowed becomes what is allowed, too, or gets company; what breaks the schema stays as
    it is, so that a wrong body is still wrong, and for that one reason alone.
    """
    body = copy.deepcopy(body)  # cases share what they are made of
    if isinstance(body, dict) and "user_input" in body:
        obey_pairs(body)
    elif isinstance(body, dict):
        obey_order(body)
        obey_stream(body)
    return body


service = read_openapi()


def test_service_tells_the_openapi_that_is_tried(url: str) -> None:
    assert requests.get(f"{url}/openapi.json", timeout=30).json() == backend.app.openapi()


@service.parametrize()
def test_service_does_as_its_openapi_says(case: schemathesis.Case, url: str) -> None:
    case.body = obey(case.body)
    case.call_and_validate(base_url=url, timeout=30)


POSTS = ["/chat", "/chat/stream", "/v1/chat/completions"]
plain = some.none() | some.booleans() | some.integers() | some.floats() | some.text()
anything = some.recursive(
    plain, lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner), max_leaves=5
)
halves = some.text(some.characters(categories=["Cs", "Ll"]))  # of pairs that JSON can escape
fields = ["user_input", "options", "past_user_inputs", "model", "messages", "stop", "stream"]
nearly = some.dictionaries(some.sampled_from(fields) | halves, anything | halves)
bodies = some.binary() | (anything | nearly).map(lambda value: json.dumps(value).encode())
sent_as = some.sampled_from(
    ["application/json", "application/json; charset=utf-16", "text/plain", "a", ""]
)
header = some.text(some.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"))


@pytest.mark.parametrize("path", POSTS)
@effort(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=bodies, content_type=sent_as, request_id=header, key=header)
@example(b"[" * 100_000, "application/json", "", "")
@example(b'{"a":' * 100_000, "application/json", "", "")
@example(b'{"user_input":' + b"9" * 5000 + b"}", "application/json", "", "")
@example(b'{"user_input":"\xff"}', "application/json", "", "")
@example(b'{"user_input":"\\ud800","\\udfff":NaN}', "application/json", "", "")
def test_no_bytes_are_too_much(
    url: str, path: str, body: bytes, content_type: str, request_id: str, key: str
) -> None:
    headers = {"content-type": content_type, "x-request-id": request_id, "authorization": key}
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = requests.post(f"{url}{path}", data=body, headers=encoded, timeout=30)
    assert answer.status_code in (200, 400, 422)
    if not answer.ok:
        told = answer.json().get("error", answer.json())
        assert told["request_id"] == answer.headers["x-request-id"]
        assert told["code"]

"""The front end's identity token: sent, kept, renewed; and a sentence where there is none."""

import subprocess
import sys
import time
from collections.abc import Iterator

import google.auth.compute_engine._metadata as google_metadata
import pytest
from cloudrun import HEADER, Door, Metadata, google

import chatbot_arch.engines.identity as identity
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote

SLACK_S = 5.0


class Front:
    """A front end's answerer, and Google's side of it."""

    def __init__(self, metadata: Metadata, door: Door) -> None:
        self.metadata, self.door = metadata, door
        self.answerer = remote.RemoteAnswerer()

    def ask(self) -> str:
        """Return the reply's text; raises what the answerer raises."""
        said: list[str] = []
        talk = protocol.to_conversation([], [], "Hi")
        stream = self.answerer.stream(talk, protocol.Options(), protocol.Stop())
        protocol.speak(stream, lambda text: said.append(text) if isinstance(text, str) else None)
        return "".join(said)

    def fail(self) -> str:
        """Return the sentence of a question that fails."""
        with pytest.raises(remote.BackendError) as error:
            self.ask()
        said = str(error.value)
        assert "\n" not in said
        assert not any(token in said for token in self.metadata.tokens)
        return said


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """Yield a front end with an API key that is told to use its identity."""
    with google() as (metadata, door):
        host = metadata.url.removeprefix("http://")
        monkeypatch.setenv("GCE_METADATA_IP", host)
        monkeypatch.setattr(google_metadata, "_GCE_METADATA_HOST", host)  # read at import
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        monkeypatch.setenv("CHATBOT_BACKEND_URL", door.url)
        monkeypatch.setenv("CHATBOT_BACKEND_IDENTITY", "google")
        monkeypatch.setenv("CHATBOT_API_KEY", "our-key")
        made = Front(metadata, door)
        yield made
        metadata.hold.set()
        made.answerer.close()


def test_token_and_key_are_sent_beside_each_other(front: Front) -> None:
    assert front.ask() == "Hi"
    [headers] = front.door.seen
    assert front.metadata.tokens[headers[HEADER].removeprefix("Bearer ")] == front.door.url
    assert headers["Authorization"] == "Bearer our-key"


def test_login_is_sent_beside_the_token(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_URL", front.door.url.replace("//", "//me:secret@"))
    assert front.ask() == "Hi"
    assert front.door.seen[0]["Authorization"].startswith("Basic ")


def test_token_is_kept_for_all_requests(front: Front) -> None:
    assert [front.ask(), front.ask(), front.answerer.describe().model] == ["Hi", "Hi", "a model"]
    assert len(front.metadata.tokens) == 1


def test_token_that_is_about_to_expire_is_renewed(front: Front) -> None:
    front.metadata.lives_s = 60
    assert [front.ask(), front.ask()] == ["Hi", "Hi"]
    first, second = (headers[HEADER] for headers in front.door.seen)
    assert first != second


def test_closed_backend_without_a_token_is_a_sentence(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_IDENTITY", "")
    assert "closed to this page" in front.fail()
    assert front.door.refused == 1


def test_metadata_server_that_is_not_there_is_a_sentence(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    assert "127.0.0.1 does not answer" in front.fail()
    with pytest.raises(protocol.NotReadyError, match=r"127\.0\.0\.1 does not answer"):
        front.answerer.describe()
    assert not front.door.seen
    assert not front.door.refused


def test_metadata_server_that_is_silent_is_a_sentence_in_time(front: Front) -> None:
    front.metadata.hold.clear()
    started = time.monotonic()
    assert "does not answer" in front.fail()
    most_s = remote.REFUSED_UP_TO_S + identity.FETCH_TIMEOUT_S
    assert time.monotonic() - started < most_s + SLACK_S


def test_page_goes_on_once_the_metadata_server_is_back(front: Front) -> None:
    front.metadata.status = 503
    assert "answered 503" in front.fail()
    front.metadata.status = 200
    assert front.ask() == "Hi"


@pytest.mark.parametrize("answer", [b"", b"<html>", b"secret.secret.secret", b"\xff", b"{}"])
def test_token_that_is_none_is_a_sentence(front: Front, answer: bytes) -> None:
    front.metadata.answer = answer
    said = front.fail()
    assert "what arrived is not a token" in said
    assert "secret" not in said


def test_file_of_an_account_that_cannot_be_used_is_a_sentence(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    assert "GOOGLE_APPLICATION_CREDENTIALS path is either not found" in front.fail()


def test_missing_library_is_a_sentence(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth", None)
    assert "[cloudrun]" in front.fail()


def test_page_without_an_identity_needs_no_library() -> None:
    script = (
        "import sys; sys.modules['google.auth'] = None;"
        "import chatbot_arch.engines.remote as remote, chatbot_arch.settings as settings;"
        "remote.open_client(settings.Settings()); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert not {name for name in run.stdout.split() if name.startswith("google.oauth2")}


def test_token_is_for_the_service_not_for_a_path() -> None:
    url = "https://backend-1.europe-west1.run.app"
    assert identity.audience_of(f"{url}/api") == identity.audience_of(url) == url

"""One process with one engine that serves a page and the backend's routes."""

from collections.abc import Iterator

import httpx
import pytest

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.users as users

KEY = "a-key-of-the-test"
ENVIRONMENT = {
    "CHATBOT_ENGINE": "fake",
    "CHATBOT_DATABASE_URL": "sqlite://",
    "CHATBOT_API_KEY": KEY,
}


@pytest.fixture(scope="module")
def modular() -> Iterator[launch.App]:
    with launch.start_app("modular", ENVIRONMENT) as app:
        yield app.wait_until_ready(120)


def test_page_and_routes_answer_from_one_process(modular: launch.App) -> None:
    question = "/echo from one engine"
    with users.PageUser(modular.page_url) as user:
        assert user.ask(question).text == "from one engine"
    api = {"headers": {"Authorization": f"Bearer {KEY}"}, "trust_env": False}
    chat = httpx.post(f"{modular.page_url}/api/chat", json={"user_input": question}, **api)
    assert chat.json() == "from one engine"
    assert httpx.get(f"{modular.page_url}/api/ready", **api).json()["engine"] == "fake"
    assert "<html" in httpx.get(modular.page_url, trust_env=False).text
    assert len(modular.servers[0].processes()) == 1


def test_routes_keep_their_doors_and_their_errors(modular: launch.App) -> None:
    body = {"user_input": "hello"}
    refused = httpx.post(f"{modular.page_url}/api/chat", json=body, trust_env=False)
    assert (refused.status_code, refused.json()["status"]) == (401, 401)
    headers = {"Authorization": f"Bearer {KEY}"}
    unknown = httpx.get(f"{modular.page_url}/api/nothing", headers=headers, trust_env=False)
    assert unknown.headers["content-type"] == "application/problem+json"
    assert unknown.status_code == 404


def test_conversation_is_found_again_at_its_address(modular: launch.App) -> None:
    with users.PageUser(modular.page_url) as user:
        for word in ("one", "two"):
            user.ask(f"/echo {word}")
        address = user.address
    with users.PageUser(address) as again:
        assert sorted(again.replies()) == ["one", "two"]


def test_engine_that_cannot_be_loaded_ends_the_process_with_a_sentence() -> None:
    missing = {"CHATBOT_ENGINE": "transformers", "CHATBOT_MODEL": "/nowhere/at-all"}
    with (
        pytest.raises(launch.LaunchError, match="ended with status 1"),
        launch.start_app("modular", ENVIRONMENT | missing) as app,
    ):
        app.wait_until_ready(120)


def test_stopping_leaves_no_process() -> None:
    with launch.start_app("modular", ENVIRONMENT) as app:
        app.wait_until_ready(120)
        server = app.servers[0]
    assert server.processes() == []

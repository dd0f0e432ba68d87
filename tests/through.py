"""Put a test's engine behind another server, so that the backend reaches it through that.

`pytest --through=openai` serves the engine that a test gives to the backend with a second backend,
and gives the first one an engine that asks the second: the tests of the contract stay as they are.

`pytest --at=ADDRESS` asks a running backend with the engine `fake` instead, whatever serves it.
"""

import importlib.util
import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

import chatbot_arch.backend as backend
import chatbot_arch.engines.local as local
import chatbot_arch.engines.openai as openai
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.settings as settings

# What a backend with another server behind it does otherwise, and why.
LATE = (
    "only the server behind knows that a question is too long, once it is asked: an `error` event"
)
OTHERWISE: dict[str, dict[str, str]] = {
    "openai": {
        "test_stream_refuses_before_it_begins": LATE,
        "test_too_long_a_prompt_is_told_by_its_code[True]": LATE,
    }
}


@contextmanager
def serve(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an app, on a free port by default, in a thread here; yield its address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


class Holder(local.LocalAnswerer):
    """Answer with an engine that is loaded already."""

    def __init__(self, choice: settings.Settings, engine: protocol.Engine) -> None:
        self.renews, self._lock, self._closed = False, threading.Lock(), False
        self.loading = local.Loading.__new__(local.Loading)
        self.loading.choice, self.loading.stage, self.loading._inboxes = choice, "", []
        self.loading.engine = Future()
        self.loading.engine.set_result(engine)

    def close(self) -> None:
        """Leave the engine open: who made it closes it."""


def second_backend(engine: protocol.Engine) -> FastAPI:
    """Return the app of a second backend in this process, which holds an engine."""
    spec = importlib.util.spec_from_file_location("second_backend", backend.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Local:
        LocalAnswerer = staticmethod(lambda choice, renews: Holder(choice, engine))

    module.local = Local
    return module.app


def through_openai(
    engine: protocol.Engine, choice: settings.Settings, servers: ExitStack
) -> protocol.Engine:
    """Serve an engine, and return one that asks the server."""
    address = servers.enter_context(serve(second_backend(engine)))
    key = settings.split_list(choice.api_key.get_secret_value())[:1]
    asked = choice.model_copy(
        update={
            "engine": "openai",
            "engine_url": settings.read_address(f"{address}/v1"),
            "engine_key": settings.SecretStr("".join(key)),
        }
    )
    loaded = openai.load(asked, lambda stage: None)
    loaded.name = engine.name  # the one word in which its answers may differ
    return loaded


THROUGH: dict[str, Callable[..., protocol.Engine]] = {"openai": through_openai}


@contextmanager
def engines_behind(way: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make each backend that begins from now on reach its engine in a `way`."""
    with ExitStack() as servers:

        def load(loading: local.Loading) -> None:
            try:
                engine = local.load_engine(loading.choice, loading._report)
                loading.engine.set_result(THROUGH[way](engine, loading.choice, servers))
            except BaseException as error:
                loading.engine.set_exception(error)

        patch.setattr(local.Loading, "_load", load)
        yield


HERE = {"scripted", "speaking", "crowded", "monkeypatch"}  # change the backend in this process


def needs_backend_here(item: pytest.Item) -> bool:
    """Return whether a test is not about what any running backend with `fake` answers."""
    taken = set(inspect.signature(item.function).parameters)
    marked = item.get_closest_marker("here") or item.get_closest_marker("usefixtures")
    return bool(marked or taken & HERE)


def behind(way: str | None, patch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """Return what puts engines behind a server, if a `way` is given."""
    return engines_behind(way, patch) if way else ExitStack()

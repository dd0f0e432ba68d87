"""What the tests share: the two architectures running with the engine that needs no model."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import through
from browser import require_browser
from playwright.sync_api import Browser, sync_playwright

import chatbot_arch.backend as backend
import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.outside as outside

ARCHITECTURES = ("monolith", "microservices")
FAKE = {"CHATBOT_ENGINE": "fake"}

# With several processes each takes whole files; what takes longest should not begin last.
LONGEST_FIRST = (
    "test_labs",
    "test_jupyterlab",
    "test_engines",
    "test_through",
    "test_conversations",
    "test_pages",
    "test_launch",
    "test_browser",
    "test_loading",
    "test_recovery",
)

# A test decides what it sets; what the shell happens to hold must not.
for name in [name for name in os.environ if name.startswith("CHATBOT_")]:
    if name not in ("CHATBOT_BROWSER", "CHATBOT_CACHE_DIR", "CHATBOT_PICTURES"):
        del os.environ[name]
os.environ["CHATBOT_DATABASE_URL"] = "sqlite://"  # in memory, and none of anybody's own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, and leave the order otherwise as it is.

    With `--at`, leave out what needs the backend in this process.
    """
    if config.getoption("at"):
        left_out = [item for item in items if through.needs_backend_here(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yield a headless browser; exit the test run with advice if there is none."""
    program = require_browser()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=outside.browser_arguments()
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def app(request: pytest.FixtureRequest) -> Iterator[launch.App]:
    """Yield each architecture in turn, running with the fake engine."""
    with launch.start(request.param, FAKE) as running:
        yield running.wait_until_ready(120)


def serve_backend(port: int = 0) -> AbstractContextManager[str]:
    """Serve the backend, on a free port by default, in a thread here; yield its address."""
    return through.serve(backend.app, port)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contract's tests run through another server."""
    parser.addoption("--through", choices=through.THROUGH, help="what the backend asks")
    parser.addoption("--at", default="", help="the address of a running backend to test")


@pytest.fixture
def at(request: pytest.FixtureRequest) -> str:
    """Return the address of a running backend that is tested instead of one here, or nothing."""
    return request.config.getoption("at")


@pytest.fixture(autouse=True)
def engine_behind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """With `--through`, put every engine behind a server; else change nothing."""
    way = request.config.getoption("through")
    if reason := through.OTHERWISE.get(way, {}).get(request.node.name):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    with through.behind(way, monkeypatch):
        yield


@pytest.fixture
def hosts() -> list[str]:
    """Collect the hosts that pages ask for anything."""
    return []

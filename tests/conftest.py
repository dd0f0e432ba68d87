"""What the tests share: the two architectures running with the engine that needs no model."""

import os
from collections.abc import Iterator

import pytest
from browser import arguments, require_browser
from playwright.sync_api import Browser, sync_playwright

import chatbot_arch.launch as launch

ARCHITECTURES = ("monolith", "microservices")
FAKE = {"CHATBOT_ENGINE": "fake"}

# A test decides what it sets; what the shell happens to hold must not.
for name in [name for name in os.environ if name.startswith("CHATBOT_")]:
    if name not in ("CHATBOT_BROWSER", "CHATBOT_CACHE_DIR"):
        del os.environ[name]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yield a headless browser; exit the test run with advice if there is none."""
    program = require_browser()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=arguments())
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def app(request: pytest.FixtureRequest) -> Iterator[launch.App]:
    """Yield each architecture in turn, running with the fake engine."""
    with launch.start(request.param, FAKE) as running:
        yield running.wait_until_ready(120)

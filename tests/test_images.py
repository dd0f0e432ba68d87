"""The images are built and run for real, alone and by the compose file; `make test-more`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import containers
import pytest
import requests
from playwright.sync_api import Browser, Page, expect
from tabs import MESSAGES, box, message, open_context, open_tab

import chatbot_arch.measure.images as images
import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.results as results

ROOT = containers.ROOT
DEPLOY = ROOT / "deploy"
FAKE = {"CHATBOT_ENGINE": "fake", "CHATBOT_FAKE_TOKEN_S": "0.01"}
MOST_MB = {"frontend": 350}
USER = "10001"

pytestmark = [pytest.mark.more, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def program() -> images.Program:
    return containers.find_program()


@pytest.fixture(scope="module")
def base(program: images.Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.make_base(program, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def built(program: images.Program, base: str) -> images.Program:
    """Build all images; return the program that has them."""
    for image in images.IMAGES:
        try:
            images.build(program, image, base, ROOT)
        except results.MeasureError as error:
            if base or "pull" not in str(error):
                raise
            pytest.skip(f"the base image cannot be had: {error}")
    return program


@pytest.mark.parametrize("image", images.IMAGES, ids=lambda image: image.target)
def test_image_answers_as_a_user_without_rights_and_ends_in_time(
    built: images.Program, image: images.Image
) -> None:
    row = images.look(built, image)
    assert row.user == USER
    assert row.answers.split(" words, ")[1] in ("200", "in a browser")
    assert int(row.answers.split()[0]) > 3
    assert row.stop_s < images.STOP_TIMEOUT_S
    assert row.size_mb < MOST_MB.get(image.target, 1000)


@pytest.mark.parametrize("image", images.IMAGES, ids=lambda image: image.target)
def test_image_holds_only_what_it_needs(built: images.Program, image: images.Image) -> None:
    ask = "import importlib.util as u; print(*filter(u.find_spec, ('torch', 'pip', 'fastapi')))"
    with images.running(built, image, FAKE) as container:
        container.wait_until_ready(image.ready)
        found = built.call("exec", container.name, "python3", "-c", ask).split()
        assert found == (["fastapi"] if image.chat else [])
        listed = built.call("exec", container.name, "find", "/app", "-not", "-name", "*.py*")
        assert "/app/chatbot_arch/engines" in listed
        assert not {"/app/tests", "/app/.git", "/app/nbs", "/app/.venv"} & set(listed.splitlines())
        healthy = built.call("exec", container.name, "python3", "/opt/healthy.py")
        assert healthy == "200"


def test_backend_in_a_container_finishes_the_reply_under_way(built: images.Program) -> None:
    with images.running(built, images.BACKEND, FAKE) as container:
        container.wait_until_ready(images.BACKEND.ready)
        question = {"user_input": "/echo " + "word " * 300}
        url = f"{container.url}/chat/stream"
        with requests.post(url, json=question, stream=True, timeout=60) as answer:
            lines = answer.iter_lines(decode_unicode=True)
            assert "event: token" in (next(lines), next(lines), next(lines))
            stopping = subprocess.Popen(
                [built.name, "stop", f"-t={images.STOP_TIMEOUT_S}", container.name],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert "event: done" in list(lines)
        assert stopping.wait(60) == 0


# The compose file.


class Composer:
    """Runs podman-compose with this machine's options, on free ports of loopback."""

    def __init__(self, program: images.Program, folder: Path, postgres: str) -> None:
        self.program, self.folder, self.profile = program, folder, "microservices"
        self.port, backend, database = (launch.find_free_port() for _ in range(3))
        self.url, self.backend_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{backend}"
        self.environment = os.environ | {
            "PORT": str(self.port),
            "BACKEND_PORT": str(backend),
            "PGPORT": str(database),
            "POSTGRES_IMAGE": postgres,
        }

    def call(self, *arguments: str) -> str:
        """Run a command of podman-compose and return what it prints."""
        command = [
            *(Path(sys.executable).parent / "podman-compose", "--in-pod=false"),
            f"--podman-run-args={' '.join(containers.RUN_HERE)}",
            *(f"--file={self.folder / name}" for name in ("compose.yaml", "compose-host.yaml")),
            *(f"--profile={self.profile}", *arguments),
        ]
        options = {"capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(list(map(str, command)), env=self.environment, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def up(self) -> None:
        """Start what is not running, and wait for the page and, if it has one, its backend."""
        self.call("up", "--detach", "--no-build")
        self.wait_until_ready(self.url, images.PAGE)
        if self.profile == "microservices":
            self.wait_until_ready(self.backend_url, images.BACKEND.ready)

    def wait_until_ready(self, url: str, path: str) -> None:
        """Wait until a server answers."""
        server = images.Container(self.program, url, url, time.monotonic())
        server.wait_until_ready(path)

    def down(self, *options: str) -> None:
        """Stop and remove the containers."""
        self.call("down", *options)

    def has_database(self) -> bool:
        """Return whether PostgreSQL takes connections."""
        asked = (
            "exec",
            "chatbot_database_1",
            "sh",
            "-c",
            "/usr/lib/postgresql/*/bin/pg_isready -h 127.0.0.1",
        )
        command = [self.program.name, *asked]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; fail after a minute."""
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pid(self, service: str) -> int:
        """Return the id of the first process of a service's container, 0 if it does not run."""
        return int(self.program.call("inspect", "--format={{.State.Pid}}", f"chatbot_{service}_1"))


@pytest.fixture(scope="module")
def composer(
    built: images.Program, base: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composer]:
    """Yield the compose file with secrets of its own; all it made is removed at the end."""
    if not shutil.which("podman-compose", path=str(Path(sys.executable).parent)):
        pytest.skip("podman-compose is not installed")
    if built.name != "podman":
        pytest.skip("only podman-compose is driven here")
    folder = tmp_path_factory.mktemp("checkout") / "deploy"
    shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("secrets"))
    shutil.copy(ROOT / "tests" / "compose-host.yaml", folder)
    subprocess.run([sys.executable, folder / "make_secrets.py"], check=True, timeout=60)
    made = Composer(built, folder, containers.make_postgres(built, base))
    yield made
    made.down("--volumes")


def expect_answered(tab: Page, question: str) -> str:
    """Ask on the page, wait until the reply rests, and return it."""
    before = tab.locator(MESSAGES).count()
    box(tab).fill(question)
    box(tab).press("Enter")
    expect(tab.locator(MESSAGES)).to_have_count(before + 2)
    reply = message(tab, 1, "native")
    expect(reply).to_contain_text(re.compile(r"\w"))
    expect(tab.get_by_role("button", name="Stop")).to_have_count(0)
    return reply.inner_text()


def shown(tab: Page) -> list[str]:
    """Return all messages, the oldest first."""
    return tab.locator(MESSAGES).all_inner_texts()


def test_a_conversation_outlives_backend_database_and_containers(
    composer: Composer, browser: Browser
) -> None:
    composer.up()
    hosts: list[str] = []
    with open_context(browser, hosts) as context:
        tab = open_tab(context, composer.url, hosts)
        for question in ("What is a container?", "And an image?"):
            expect_answered(tab, question)
        kept = shown(tab)
        assert len(kept) == 4

        # The backend is killed, as by the system, and the restart policy brings it back.
        killed = composer.pid("backend")
        os.kill(killed, signal.SIGKILL)
        composer.wait_until(lambda: composer.pid("backend") not in (0, killed))
        composer.wait_until_ready(composer.backend_url, images.BACKEND.ready)
        expect_answered(tab, "Are you back?")
        assert shown(tab)[:4] == kept

        # PostgreSQL restarts, and the page with it.
        composer.call("restart", "database")
        composer.wait_until(composer.has_database)
        tab.reload()
        expect(tab.locator(MESSAGES)).to_have_count(6)
        expect_answered(tab, "And the database?")
        kept = shown(tab)

        # All containers are removed and made anew; the volume stays.
        composer.down()
        composer.up()
        tab.reload()
        expect(tab.locator(MESSAGES)).to_have_count(8)
        assert shown(tab) == kept
        expect_answered(tab, "All of you?")


def test_secrets_are_files_and_no_container_shows_them(composer: Composer) -> None:
    composer.up()
    for service in ("database", "backend", "frontend"):
        told = composer.program.call("inspect", f"chatbot_{service}_1")
        for secret in (composer.folder / "secrets").iterdir():
            assert secret.read_text() not in told
    key = (composer.folder / "secrets" / "chatbot_api_key").read_text()
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {key}"}, 200)):
        url, asked = f"{composer.backend_url}/chat", {"user_input": "Hi"}
        answer = requests.post(url, json=asked, headers=headers, timeout=60)
        assert answer.status_code == status


def test_the_monolith_shares_the_database(composer: Composer, browser: Browser) -> None:
    composer.down()
    composer.profile = "monolith"
    composer.up()
    hosts: list[str] = []
    with open_context(browser, hosts) as context:
        tab = open_tab(context, composer.url, hosts)
        assert expect_answered(tab, "What is a monolith?")

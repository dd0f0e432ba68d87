"""The images are built and run for real, alone and by the compose file; `make test-more`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import containers
import psutil
import pytest
import requests

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


@pytest.fixture(scope="module")
def composer(
    built: images.Program, base: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Composer"]:
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
        """Start what is not running, and wait for the page and, if there is one, the backend."""
        self.call("up", "--detach", "--no-build")
        images.Container(self.program, "page", self.url, time.monotonic()).wait_until_ready(
            images.PAGE
        )

    def down(self, *options: str) -> None:
        """Stop and remove the containers."""
        self.call("down", *options)

    def process(self, service: str) -> psutil.Process:
        """Return the first process of a service's container."""
        name = f"chatbot_{service}_1"
        pid = int(self.program.call("inspect", "--format={{.State.Pid}}", name))
        return psutil.Process(pid)
